"""A shadow policy beside the one in force: judged, recorded where it differs, never enforced."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

import dns.message
import dns.query
import dns.rcode
import pytest
from tests.support.dns_servers import name_server, zone_handler
from tests.support.proxy_world import HOME, Origin, in_namespace, read_all, read_head
from tests.support.standalone import Standalone

from exeat.ledger.records import Kind, Record

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.root

POLICY = """
egress: v1
project: builds
allow: [{id: site, to: .example.org, ports: [443, 7000]}]
budgets: {default: {connections: 9/1d}}
"""
SHADOW = """
egress: v1
project: builds
allow: [{id: some, to: [www.example.org, more.example.net], ports: [443, 7000]}]
deny: [{id: inside, to: 203.0.113.64/26}]
ask: [{id: person, to: git.example.org, ports: [443, 7000]}]
budgets: {default: {connections: 2/1d}}
"""
ZONE = [
    *((f"{name}.example.org", 60, "A", HOME) for name in ("www", "git", "old")),
    ("in.www.example.org", 60, "A", "203.0.113.70"),
]
IDENTITY = '[[identity]]\nsource = "127.0.0.0/8"\nproject = "builds"\nagent = "local"\n'


def alone(body: Callable[[Standalone], None], shadow: str = SHADOW) -> None:
    def run() -> None:
        with name_server(zone_handler(ZONE)) as server:
            made = Standalone(server.address, {"builds": POLICY}, IDENTITY)
            try:
                (made.base / "shadow").mkdir()
                (made.base / "shadow" / "builds.yaml").write_text(shadow)
                (made.base / "conf.d").mkdir()
                (made.base / "conf.d" / "shadow.toml").write_text(
                    f'[policy]\nshadow = "{made.base}/shadow"\n'
                )
                made.up()
                Origin(7000, answer_once)
                body(made)
                assert made.down() == 0
            finally:
                made.close()
                Origin.close_all()

    in_namespace(run)


def answer_once(sock: socket.socket) -> None:
    read_head(sock)
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")


def get(host: str) -> bytes:
    with socket.create_connection(("127.0.0.1", 3128), 10) as sock:
        sock.sendall(
            f"GET http://{host}:7000/ HTTP/1.1\r\nHost: {host}:7000\r\nConnection: close\r\n\r\n".encode()
        )
        return read_all(sock)


def said(made: Standalone, kind: Kind) -> dict[str, str]:
    """What the records of a kind say of the shadow, by host."""
    return {r.dest.host: r.detail for r in made.records() if r.kind is kind and r.dest is not None}


def changes(made: Standalone) -> tuple[int, dict[tuple[str, str], Any]]:
    done = made.exeat("policy", "shadow", "--from", str(made.base / "state" / "ledger"), "--json")
    found = json.loads(done.stdout)["changes"]
    return done.returncode, {(change["kind"], change["host"]): change for change in found}


def test_it_is_judged_recorded_and_not_enforced() -> None:
    def body(made: Standalone) -> None:
        for host in ("www.example.org", "git.example.org", "old.example.org"):
            assert get(host).endswith(b"hi")  # the policy in force lets them all out
        assert b"403" in get("more.example.net").split(b"\r\n")[0]
        answer = dns.query.udp(dns.message.make_query("in.www.example.org", "A"), "127.0.0.1", timeout=30)
        assert answer.rcode() is dns.rcode.NOERROR
        assert said(made, Kind.OPEN) == {
            "www.example.org": "",
            "git.example.org": "shadow: ask rule.ask person",
            # The shadow counts in the budgets of the policy in force, by its own limit.
            "old.example.org": "shadow: deny budget.exceeded default",
        }
        made.wait_records(1, "posture.default_deny")  # nobody waits for the record of a refusal
        assert said(made, Kind.DENY) == {"more.example.net": "shadow: deny budget.exceeded default"}
        assert said(made, Kind.DNS)["in.www.example.org"] == "shadow: deny posture.default_deny"
        code, found = changes(made)
        assert code == 1
        assert {name for name, change in found.items() if change["breaking"]} == {
            ("flow", "old.example.org"),
            ("lookup", "old.example.org"),
            ("lookup", "in.www.example.org"),
        }
        git = found["flow", "git.example.org"]
        assert (git["was"], git["was_rule"], git["now"], git["now_rule"]) == (
            "allow",
            "site",
            "ask",
            "person",
        )
        status = json.loads(made.exeat("status", "--json").stdout)
        assert status["shadows"] == ["builds"]
        assert "not enforced" in made.exeat("status").stdout

    alone(body)


def test_addresses_are_judged_too_and_a_reload_changes_the_shadow() -> None:
    def body(made: Standalone) -> None:
        assert get("www.example.org").endswith(b"hi")
        (made.base / "shadow" / "builds.yaml").write_text(POLICY.replace("7000", "7001"))
        assert "judged beside" in made.exeat("policy", "reload").stdout
        assert get("old.example.org").endswith(b"hi")
        assert said(made, Kind.OPEN) == {
            "www.example.org": "shadow: deny rule.deny here",
            "old.example.org": "shadow: deny posture.default_deny",
        }
        assert [r.decision for r in made.records() if r.kind is Kind.POLICY] == [
            *("place", "first", "shadow", "shadow")
        ]
        (made.base / "shadow" / "builds.yaml").write_text("egress: v2")
        refused = made.exeat("policy", "reload")
        assert refused.returncode == 1
        assert "shadow/builds.yaml:1:" in refused.stderr
        (made.base / "shadow" / "builds.yaml").unlink()
        assert "judged beside" not in made.exeat("policy", "reload").stdout
        assert get("git.example.org").endswith(b"hi")
        assert said(made, Kind.OPEN)["git.example.org"] == ""

    alone(body, POLICY + "deny: [{id: here, to: 203.0.113.0/24}]\n")


def test_a_broken_shadow_does_not_stop_the_policy() -> None:
    def body(made: Standalone) -> None:
        assert get("www.example.org").endswith(b"hi")
        assert "NOT RELOADED" in made.exeat("status").stdout
        assert not any(record_has_shadow(record) for record in made.records())

    alone(body, "egress: v1\nproject: builds\nposture: none\n")


def record_has_shadow(record: Record) -> bool:
    return record.detail.startswith("shadow:")
