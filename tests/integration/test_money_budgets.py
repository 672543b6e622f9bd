"""A budget in USD: what flows cost by `[[prices]]` is held to it, also by a gateway that has just started."""

from __future__ import annotations

import re
import socket
from contextlib import closing

import pytest
from tests.support.dns_servers import name_server, zone_handler
from tests.support.ledgers import wait_for
from tests.support.proxy_world import HOME, Origin, in_namespace, read_all, read_head
from tests.support.standalone import Standalone

from exeat.ledger.records import Kind, Record

pytestmark = pytest.mark.root

# 1 USD a GB, so 0.001 USD is 1 MB.
POLICY = """
egress: v1
project: builds
posture: allowlist
allow:
  - {id: all, to: [www.example.org, free.example.org], ports: 7000, budget: money}
budgets:
  money: {usd: 0.001/1d}
"""
MORE = """
[[identity]]
source = "127.0.0.0/8"
project = "builds"
[[prices]]
name = "cloud"
to = ["www.example.org"]
out_per_gb = 1_000_000_000
in_per_gb = 1_000_000_000
"""
LIMIT_NANO = 1_000_000
BULK = 3_000_000


def pour(sock: socket.socket) -> None:
    sock.sendall(b"d" * BULK)


def ask(name: str = "www") -> tuple[bytes, int]:
    """What the gateway answers, and how many bytes come through the tunnel."""
    with socket.create_connection(("127.0.0.1", 3128), 10) as sock:
        sock.sendall(b"CONNECT %s.example.org:7000 HTTP/1.1\r\n\r\n" % name.encode())
        head = read_head(sock)
        if not head.startswith(b"HTTP/1.1 200 "):
            return head + read_all(sock), 0
        count = 0
        try:
            while data := sock.recv(1 << 16):
                count += len(data)
        except ConnectionResetError:
            pass
        return head, count


def test_money_runs_out_and_stays_spent() -> None:
    def run() -> None:
        zone = [(f"{name}.example.org", 60, "A", HOME) for name in ("www", "free")]
        with (
            name_server(zone_handler(zone)) as server,
            closing(Standalone(server.address, {"builds": POLICY}, MORE)) as made,
        ):
            Origin(7000, pour)
            made.up()

            def closes() -> list[Record]:
                return [record for record in made.records() if record.kind is Kind.CLOSE]

            head, _ = ask("free")
            assert head.startswith(b"HTTP/1.1 200 ")  # what costs nothing takes nothing
            head, _ = ask()
            assert head.startswith(b"HTTP/1.1 200 ")
            wait_for(lambda: len(closes()) == 2, "both flows are closed")
            free, cut = closes()
            assert (free.close_reason, free.bytes_in, free.cost_nano_usd) == ("eof", BULK, 0)
            assert cut.close_reason == "budget.exceeded"
            payload = cut.bytes_in + cut.bytes_out
            headers = 52 * (cut.segs_out + cut.segs_in)
            assert cut.cost_nano_usd == payload + headers
            assert payload <= LIMIT_NANO <= cut.cost_nano_usd + 65536
            assert b"[budget.exceeded]" in ask()[0]
            old = made.pid_of("proxy")
            made.kill("proxy")
            wait_for(lambda: made.pid_of("proxy") not in (0, old), "it is started again")
            assert b"[budget.exceeded]" in ask()[0]
            said = made.exeat("ledger", "query", "--sum", "host", "--verdict", "allow")
            assert re.search(rf"www\.example\.org .* {cut.cost_nano_usd}$", said.stdout, re.MULTILINE)

    try:
        in_namespace(run)
    finally:
        Origin.close_all()
