"""`[[prices]]`: a flow's record says what it is estimated to cost, and by which tariff."""

from __future__ import annotations

import socket
from contextlib import closing

import pytest
from tests.support.dns_servers import name_server, zone_handler
from tests.support.ledgers import wait_for
from tests.support.proxy_world import HOME, Origin, in_namespace, read_all, read_head
from tests.support.standalone import Standalone

from exeat.appliance.config import load
from exeat.appliance.prices import tariff
from exeat.ledger.records import Kind, Record
from exeat.policy.addresses import parse_address
from exeat.policy.tariff import Wire

pytestmark = pytest.mark.root

POLICY = """
egress: v1
project: builds
posture: allowlist
allow:
  - {id: all, to: [www.example.org, free.example.org], ports: 7000}
"""
MORE = """
[[identity]]
source = "127.0.0.0/8"
project = "builds"
[[prices]]
name = "cloud"
to = ["www.example.org:7000"]
out_per_gb = 90_000_000_000_000
per_flow = 5
"""


def talk(sock: socket.socket) -> None:
    while len(sock.recv(65536)):
        pass
    sock.sendall(b"y" * 500)


def test_a_flow_says_what_it_costs() -> None:
    def run() -> None:
        zone = [(f"{name}.example.org", 60, "A", HOME) for name in ("www", "free")]
        with (
            name_server(zone_handler(zone)) as server,
            closing(Standalone(server.address, {"builds": POLICY}, MORE)) as made,
        ):
            Origin(7000, talk)
            made.up()
            for name in ("www", "free"):
                with socket.create_connection(("127.0.0.1", 3128), 10) as sock:
                    sock.sendall(b"CONNECT %s.example.org:7000 HTTP/1.1\r\n\r\n" % name.encode())
                    assert read_head(sock).startswith(b"HTTP/1.1 200 ")
                    sock.sendall(b"x" * 1000)
                    sock.shutdown(socket.SHUT_WR)
                    assert len(read_all(sock)) == 500

            def closed() -> list[Record]:
                return [record for record in made.records() if record.kind is Kind.CLOSE]

            wait_for(lambda: len(closed()) == 2, "both flows are closed")
            priced, free = closed()
            used = tariff(load(made.config).prices)
            assert used is not None
            wire = Wire(1000, 500, priced.segs_out, priced.segs_in)
            wanted = used.cost("www.example.org", parse_address(HOME), 7000, wire)
            assert (priced.cost_nano_usd, priced.tariff) == (wanted, used.digest)
            assert wanted is not None
            assert wanted > 5 + 90_000 * 1000  # headers cost, too
            assert (free.cost_nano_usd, free.tariff) == (0, "")
            done = made.exeat("ledger", "review", "--day", "today", "--json")
            assert f'"cost_nano_usd": {wanted}' in done.stdout
            assert made.exeat("ledger", "verify").returncode == 0

    try:
        in_namespace(run)
    finally:
        Origin.close_all()
