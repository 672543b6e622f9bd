"""`[proxy] transparent`: clients outside jails that the documented ruleset redirects."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
from pathlib import Path

import pytest
from tests.support.dns_servers import name_server, zone_handler
from tests.support.proxy_world import HOME, Origin, client_hello, in_namespace, read_all, read_head
from tests.support.running import wait_for
from tests.support.standalone import Standalone

from exeat.ledger.records import Kind

pytestmark = pytest.mark.root

PAGE = (Path(__file__).parents[2] / "docs" / "gateway.md").read_text(encoding="utf-8")
SIX = "2001:db8:1::1"
POLICY = """
egress: v1
project: builds
posture: allowlist
allow:
  - {id: site, to: www.example.org, ports: [443, 7000]}
"""
# Redirected connections keep their source: an address of this machine, not of loopback.
MORE = f"""
transparent = ["127.0.0.1:3129", "[::1]:3129"]
[[identity]]
source = "{HOME}"
project = "builds"
[[identity]]
source = "{SIX}"
project = "builds"
agent = "six"
"""
ZONE = [("www.example.org", 60, "A", HOME), ("www.example.org", 60, "AAAA", SIX)]


def redirect_ourselves() -> None:
    """The documented rules, for the test's own uid; exeat's users dial without them."""
    (rules,) = re.findall(r"```nft\n(.*?)```", PAGE, re.DOTALL)
    assert "skuid != 1000" in rules
    text = rules.replace("skuid != 1000", "skuid != 0")
    subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True)


def echo(sock: socket.socket) -> None:
    while data := sock.recv(65536):
        sock.sendall(data)


def talk(address: str, port: int, said: bytes) -> bytes:
    with socket.create_connection((address, port), 10) as sock:
        sock.sendall(said)
        with contextlib.suppress(OSError):  # a refusal may have closed it already
            sock.shutdown(socket.SHUT_WR)
        return read_all(sock)


def check(made: Standalone) -> None:
    hello = client_hello("www.example.org")
    for address in (HOME, SIX):
        Origin(443, echo, address)
        assert talk(address, 443, hello) == hello
    assert talk(HOME, 443, client_hello("else.example.org"))[:1] == b"\x15"
    request = b"GET / HTTP/1.1\r\nHost: else.example.org:7000\r\n\r\n"
    with socket.create_connection((HOME, 7000), 10) as sock:
        sock.sendall(request)
        assert b"[posture.default_deny]" in read_head(sock)
    # The door itself, to which nothing was redirected.
    for place in (("127.0.0.1", 3129), ("::1", 3129)):
        with pytest.raises(ConnectionResetError), socket.create_connection(place, 10) as sock:
            sock.recv(1)
    wait_for(lambda: [r.reason_code for r in made.records()].count("transparent.direct") == 2)
    opened = [record for record in made.records() if record.kind is Kind.OPEN]
    assert [(record.name_source, record.agent) for record in opened] == [("sni", "client"), ("sni", "six")]
    assert all(
        f" to {place}:443" in record.src for record, place in zip(opened, (HOME, f"[{SIX}]"), strict=True)
    )


def test_the_documented_rules_bring_clients_here() -> None:
    def body() -> None:
        with name_server(zone_handler(ZONE)) as server:
            made = Standalone(server.address, {"builds": POLICY}, MORE)
            try:
                made.up()
                redirect_ourselves()
                check(made)
                assert made.down() == 0
            finally:
                made.close()
                Origin.close_all()

    in_namespace(body)
