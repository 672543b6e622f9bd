"""`exeat ledger why` of what a running appliance recorded: every decision comes out as it was."""

from __future__ import annotations

import json
import socket
import threading
from typing import TYPE_CHECKING, Any

import dns.message
import dns.query
import pytest
from tests.support.dns_servers import name_server, zone_handler
from tests.support.proxy_world import HOME, Origin, in_namespace, read_all, read_head
from tests.support.running import wait_for
from tests.support.standalone import Standalone

from exeat.ledger.reader import read_records
from exeat.ledger.records import Kind

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root

POLICY = """
egress: v1
project: builds
hold: 20s
allow:
  - {id: site, to: .example.org, ports: [443, 7000]}
  - {id: few, to: few.example.net, ports: [443, 7000], budget: two}
ask: [{id: person, to: ask.example.net, ports: [443, 7000]}]
deny: [{id: paste, to: paste.example.org}, {id: net, to: 203.0.113.64/26}]
budgets: {two: {connections: 2/1d}}
"""
BASELINE = """
egress: v1
project: baseline
ceiling: [{to: "*", ports: [443, 7000], broad: true}]
deny: [{id: never, to: never.example.org}]
"""
ZONE = [
    *((f"{name}.example.org", 60, "A", HOME) for name in ("www", "paste", "never", "gone")),
    *((f"{name}.example.net", 60, "A", HOME) for name in ("few", "ask", "other")),
    ("inside.example.org", 60, "A", "10.0.0.7"),
    ("net.example.org", 60, "A", "203.0.113.70"),
]
IDENTITY = '[[identity]]\nsource = "127.0.0.0/8"\nproject = "builds"\nagent = "local"\n'


def answer_once(sock: socket.socket) -> None:
    read_head(sock)
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")


def get(host: str, port: int = 7000) -> bytes:
    with socket.create_connection(("127.0.0.1", 3128), 30) as sock:
        head = f"GET http://{host}:{port}/ HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n"
        sock.sendall(head.encode())
        return read_all(sock).split(b"\r\n")[0][9:12]


class Asked:
    """What `exeat ledger why` says of the newest record of a kind for a host."""

    def __init__(self, made: Standalone) -> None:
        self.made = made

    def number(self, kind: Kind, host: str, reason: str) -> int:
        def found() -> list[int]:
            records = read_records(self.made.base / "state" / "ledger")
            return [
                seq
                for seq, r in records
                if (r.kind, r.reason_code) == (kind, reason) and r.dest and r.dest.host == host
            ]

        return int(wait_for(found)[-1])

    def why(self, seq: int) -> tuple[int, dict[str, Any]]:
        done = self.made.exeat("ledger", "why", str(seq), "--json")
        return done.returncode, json.loads(done.stdout)

    def same(self, kind: Kind, host: str, reason: str) -> dict[str, Any]:
        code, said = self.why(self.number(kind, host, reason))
        assert (code, said["result"], said["why"]) == (0, "same", ""), said
        assert said["now"]["reason"] == reason
        return said


def documents(made: Standalone) -> Path:
    return made.base / "state" / "control" / "documents"


def traffic(made: Standalone, asked: Asked) -> None:
    assert get("www.example.org") == b"200"
    for host in ("paste.example.org", "never.example.org", "inside.example.org", "net.example.org"):
        assert get(host) == b"403"
    assert get("other.example.net") == b"403"
    assert get("www.example.org", 7001) == b"403"
    assert [get("few.example.net") for _ in range(3)] == [b"200", b"200", b"403"]
    for name in ("www.example.org", "other.example.net"):
        dns.query.udp(dns.message.make_query(name, "A"), "127.0.0.1", timeout=30)
    waiting = threading.Thread(target=get, args=("ask.example.net",))
    waiting.start()
    [lease] = wait_for(lambda: json.loads(made.exeat("lease", "ls", "--json").stdout))
    assert made.exeat("lease", "approve", lease["id"], "--as", "ann").returncode == 0
    waiting.join(30)
    asked.number(Kind.OPEN, "ask.example.net", "lease.active")
    assert made.exeat("lease", "revoke", lease["id"]).returncode == 0
    made.exeat("kill", "on", "--project", "builds", "--network-only")
    assert get("www.example.org") == b"403"
    made.exeat("kill", "off", "--project", "builds")


def check(asked: Asked) -> None:
    """Everything that `traffic` did."""
    said = asked.same(Kind.OPEN, "www.example.org", "rule.allow")
    assert (said["supposed"], said["now"]["rule"], said["leases"], said["killed"]) == ([], "site", [], [])
    assert asked.same(Kind.DENY, "paste.example.org", "rule.deny")["now"]["rule"] == "paste"
    assert asked.same(Kind.DENY, "never.example.org", "rule.deny")["now"]["rule"] == "baseline/never"
    assert asked.same(Kind.DENY, "other.example.net", "posture.default_deny")["supposed"] == []
    assert asked.same(Kind.DENY, "www.example.org", "ceiling.exceeded")["supposed"] == []
    [led] = asked.same(Kind.DENY, "inside.example.org", "address.not_public")["supposed"]
    assert led == "the name led to an address such as 10.0.0.1"
    [led] = asked.same(Kind.DENY, "net.example.org", "rule.deny")["supposed"]
    assert led == "the name led to an address such as 203.0.113.64"
    spent = asked.same(Kind.DENY, "few.example.net", "budget.exceeded")
    assert spent["supposed"] == ["the budget two was used up"]
    counted = {"counter": "connections", "used": 2, "limit": 2, "window_ms": 86_400_000}
    assert spent["budget"] == [counted]
    assert asked.same(Kind.DNS, "www.example.org", "rule.allow")["supposed"] == []
    assert asked.same(Kind.DNS, "other.example.net", "posture.default_deny")["supposed"] == []
    assert len(asked.same(Kind.OPEN, "ask.example.net", "lease.active")["leases"]) == 1
    assert asked.same(Kind.DENY, "www.example.org", "kill")["killed"] == ["builds"]


def reload(made: Standalone, asked: Asked) -> None:
    """An old record is explained by the old document, though no file has it any more."""
    before = asked.number(Kind.OPEN, "www.example.org", "rule.allow")
    policies = made.base / "policies"
    (policies / "builds.yaml").write_text(POLICY.replace("id: paste, to: paste.", "id: gone, to: gone."))
    (policies / "baseline.yaml").unlink()
    assert made.exeat("policy", "reload", "--as", "ann", "--reviewed-by", "ben").returncode == 0
    assert get("gone.example.org") == b"403"
    new = asked.same(Kind.DENY, "gone.example.org", "rule.deny")
    _, old = asked.why(before)
    assert old["policy"] != new["policy"]
    assert (bool(old["baseline"]), new["baseline"]) == (True, "")
    assert new["policy_since"] > before > old["policy_since"]
    (policies / "builds.yaml").unlink()


def tamper(made: Standalone, asked: Asked) -> None:
    seq = asked.number(Kind.DENY, "gone.example.org", "rule.deny")
    _, said = asked.why(seq)
    path = documents(made) / f"{said['policy']}.json"
    text = path.read_text()
    path.write_text(text.replace("gone", "lost"))
    code, said = asked.why(seq)
    assert (code, said["result"], said["now"]) == (1, "cannot be recomputed", None)
    assert f"{path} was altered: its digest is" in said["why"]
    path.unlink()
    assert asked.why(seq)[1]["why"] == f"{path} is missing"
    path.write_text(text)
    told = made.exeat("ledger", "why", str(seq))
    assert (told.returncode, told.stdout.splitlines()[-1]) == (0, "same")
    assert "project builds, agent local" in told.stdout
    assert "deny by gone: a deny rule matches [rule.deny]" in told.stdout
    for seq, said_of_it in ((0, "is of kind"), (99_999, "no record 99999: there is none yet")):
        refused = made.exeat("ledger", "why", str(seq))
        assert (refused.returncode, said_of_it in refused.stderr) == (2, True)


def test_every_decision_comes_out_again_with_the_appliance_gone() -> None:
    def run() -> None:
        with name_server(zone_handler(ZONE)) as server:
            made = Standalone(server.address, {"builds": POLICY, "baseline": BASELINE}, IDENTITY)
            asked = Asked(made)
            try:
                made.up()
                Origin(7000, answer_once)
                traffic(made, asked)
                reload(made, asked)
                assert made.down() == 0
                check(asked)
                tamper(made, asked)
            finally:
                made.close()
                Origin.close_all()

    in_namespace(run)
