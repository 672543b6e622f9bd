"""The organisation's baseline in a running gateway: it holds for every project, at both doors."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING

import dns.message
import dns.query
import dns.rcode
import pytest
from tests.support.dns_servers import name_server, zone_handler
from tests.support.proxy_world import HOME, Origin, in_namespace, read_all, read_head
from tests.support.running import wait_for
from tests.support.standalone import Standalone

if TYPE_CHECKING:
    from exeat.ledger.records import Record

pytestmark = pytest.mark.root

POLICY = "egress: v1\nproject: builds\nallow: [{id: site, to: .example.org, ports: [443, 7000, 7001]}]\n"
BASELINE = """
egress: v1
project: baseline
ceiling: [{to: "*", ports: [443, 7000], broad: true}]
deny: [{id: never, to: no.example.org}]
budgets: {default: {connections: 2/1d}}
"""
ZONE = [(f"{name}.example.org", 60, "A", HOME) for name in ("www", "no")]
IDENTITY = '[[identity]]\nsource = "127.0.0.0/8"\nproject = "builds"\n'


def answer_once(sock: socket.socket) -> None:
    read_head(sock)
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")


def get(host: str, port: int = 7000) -> bytes:
    with socket.create_connection(("127.0.0.1", 3128), 10) as sock:
        sock.sendall(
            f"GET http://{host}:{port}/ HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode()
        )
        return read_all(sock)


def refusals(made: Standalone) -> list[tuple[str, str]]:
    def proxy(record: Record) -> bool:
        return record.name_source == "http" and record.decision == "deny"

    return [(record.reason_code, record.rule_id) for record in made.records() if proxy(record)]


def body(made: Standalone) -> None:
    Origin(7000, answer_once)
    assert get("www.example.org").endswith(b"hi")
    for host, port in (("no.example.org", 7000), ("www.example.org", 7001)):
        assert b" 403 " in get(host, port).split(b"\r\n")[0]
    answer = dns.query.udp(dns.message.make_query("no.example.org", "A"), "127.0.0.1", timeout=30)
    assert answer.rcode() is dns.rcode.NXDOMAIN
    assert get("www.example.org").endswith(b"hi")
    assert b" 403 " in get("www.example.org").split(b"\r\n")[0]
    wanted = [
        ("rule.deny", "baseline/never"),
        ("ceiling.exceeded", ""),
        ("budget.exceeded", "baseline/default"),
    ]
    wait_for(lambda: refusals(made) == wanted)
    assert "holds for every project" in made.exeat("status").stdout
    assert json.loads(made.exeat("status", "--json").stdout)["projects"] == ["builds"]
    # Taking it away would let more out of a project whose own file did not change.
    (made.base / "policies" / "baseline.yaml").unlink()
    refused = made.exeat("policy", "reload")
    assert refused.returncode == 1
    assert "project baseline would let more out: project builds: allow:" in refused.stderr
    assert b" 403 " in get("no.example.org").split(b"\r\n")[0]
    assert made.exeat("policy", "reload", "--as", "ann", "--reviewed-by", "ben").returncode == 0
    assert get("no.example.org").endswith(b"hi")


def test_it_holds_at_both_doors_until_two_people_take_it_away() -> None:
    def run() -> None:
        with name_server(zone_handler(ZONE)) as server:
            made = Standalone(server.address, {"builds": POLICY, "baseline": BASELINE}, IDENTITY)
            try:
                made.up()
                body(made)
                assert made.down() == 0
            finally:
                made.close()
                Origin.close_all()

    in_namespace(run)
