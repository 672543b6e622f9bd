"""`exeat ledger why` on ledgers of our own making: what is right, what is not, and what nobody can tell."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.ledgers import flow_id

from exeat.appliance.cli import main
from exeat.appliance.documents import Documents
from exeat.appliance.public_suffixes import bundled_suffixes
from exeat.ledger.in_force import PLACE, Place, lease_data
from exeat.ledger.records import Dest, Kind, Record, encode
from exeat.ledger.store import Store
from exeat.policy.document import load_policy
from exeat.policy.leases import Lease, State
from exeat.policy.scopes import parse_scope

if TYPE_CHECKING:
    from pathlib import Path

NOW_MS = 1_768_003_200_000  # 2026-01-10T00:00:00Z
POLICY = """
egress: v1
project: p
allow:
  - {id: a, to: .example.org, ports: [443, 8443]}
  - {id: u, to: www.example.org, ports: [4500], proto: udp}
  - {id: late, to: day.example.net, when: {daily: "22:00-00:00"}}
ask: [{id: q, to: ask.example.net}]
deny: [{id: d, to: bad.example.org}, {id: n, to: 203.0.113.0/24}]
"""
OTHER = "egress: v1\nproject: p\nallow: [{id: o, to: other.example.net}]\n"
BASELINE = "egress: v1\nproject: baseline\ndeny: [{id: b, to: never.example.org}]\n"
HERE = Place(("198.51.100.0/24",), ("192.0.2.9:3128",), ("192.0.2.1",))
FIRST, OTHERS, BASE = (
    load_policy(text, file="p.yaml", suffixes=bundled_suffixes()) for text in (POLICY, OTHER, BASELINE)
)
LEASE = Lease("p/a/1", "p", (parse_scope("www.example.net"),), exp_ms=NOW_MS + 60_000, reason="\u202ewords")
ALLOW = {"decision": "allow", "reason_code": "rule.allow", "rule_id": "a"}
LEASED = {"decision": "allow", "reason_code": "lease.active", "rule_id": LEASE.id, "lease_id": LEASE.id}
NO = {"decision": "deny"}
UNKNOWN = "cannot be recomputed"


def at(address: str) -> Dest:
    return Dest("www.example.org", 443, "tcp", ip_address(address).packed)


class Book:
    """A ledger in which control said what is in force from snapshot 10 on; decisions are of snapshot 11."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys
        self.store = Store.create(folder / "ledger" / "abc", "exeat/n1", 1)
        (folder / "control").mkdir()
        self.documents = Documents(folder / "control" / "documents")
        for document in (FIRST, OTHERS, BASE):
            self.documents.keep(document)

    def starts(self) -> None:
        self.put(Kind.POLICY, decision=PLACE, actor="start", data=HERE.data())
        self.binds(FIRST.digest)
        self.binds(BASE.digest, project="baseline")

    def put(self, kind: Kind, *, generation: int = 10, **fields: Any) -> int:
        seq = self.store.size
        said = Record(kind, NOW_MS * 1_000_000, 1, generation=generation, **fields)
        self.store.append([encode(said)], 1)
        return seq

    def binds(self, digest: str, project: str = "p", **more: Any) -> None:
        said = {"decision": "first", "policy_digest": bytes.fromhex(digest), **more}
        self.put(Kind.POLICY, project=project, **said)

    def lease(self, lease: Lease, **more: Any) -> None:
        said = {"data": lease_data(lease), **more}
        self.put(Kind.LEASE, lease_id=lease.id, project="p", decision=str(lease.state), **said)

    def decides(
        self, kind: Kind, host: str, port: int = 443, digest: str = FIRST.digest, **fields: Any
    ) -> int:
        dest = fields.pop("dest", Dest(host, port, "dns" if kind is Kind.DNS else "tcp"))
        known = {
            "generation": 11,
            "project": "p",
            "agent": "a",
            "policy_digest": bytes.fromhex(digest),
            **fields,
        }
        if kind in (Kind.OPEN, Kind.CLOSE):
            known["flow"] = flow_id(7)
        return self.put(kind, dest=dest, **known)

    def why(self, seq: int) -> tuple[str, str]:
        """The result, and the reason now; exit 0 is for `same` alone."""
        code = main(["--state-dir", str(self.folder), "ledger", "why", str(seq), "--json"])
        said = json.loads(self.capsys.readouterr().out)
        assert (code == 0) == (said["result"] == "same")
        self.said: dict[str, Any] = said
        return said["result"], said["now"]["reason"] if said["now"] else ""

    def refused(self, *words: str) -> str:
        assert main(["--state-dir", str(self.folder), "ledger", "why", *words]) == 2
        return self.capsys.readouterr().err


@pytest.fixture
def book(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Book:
    made = Book(tmp_path, capsys)
    made.starts()
    return made


@pytest.mark.parametrize(
    ("host", "fields", "now"),
    [
        ("bad.example.org", ALLOW, "rule.deny"),
        ("never.example.org", ALLOW, "rule.deny"),  # it is the baseline that denies
        ("elsewhere.example.net", ALLOW, "posture.default_deny"),
        ("www.example.org", {**ALLOW, "rule_id": "zz"}, "rule.allow"),
        ("www.example.org", {**ALLOW, "dest": Dest("www.example.org", 22, "tcp")}, "posture.default_deny"),
        ("www.example.org", {**ALLOW, "dest": at("203.0.113.1")}, "rule.deny"),
        ("www.example.org", {**ALLOW, "dest": at("192.0.2.1")}, "meta."),
        ("www.example.net", LEASED, "posture.default_deny"),
        ("www.example.org", {**NO, "reason_code": "kill"}, "rule.allow"),
        ("www.example.org", {**NO, "reason_code": "posture.default_deny"}, "rule.allow"),
        ("www.example.org", {**NO, "reason_code": "rule.deny", "rule_id": "made-up"}, "rule.allow"),
        ("www.example.org", {**NO, "reason_code": "budget.exceeded", "rule_id": "x"}, "rule.allow"),
        ("ask.example.net", {**ALLOW, "rule_id": "q"}, "rule.ask"),
    ],
)  # fmt: skip
def test_what_was_not_decided_so_differs(book: Book, host: str, fields: dict[str, Any], now: str) -> None:
    kind = Kind.OPEN if fields["decision"] == "allow" else Kind.DENY
    result, reason = book.why(book.decides(kind, host, **fields))
    assert (result, reason.startswith(now)) == ("differs", True), book.said


@pytest.mark.parametrize(
    ("kind", "host", "fields", "supposed"),
    [
        (Kind.OPEN, "www.example.org", ALLOW, []),
        # Public in this lab only: the ledger says so.
        (Kind.OPEN, "www.example.org", {**ALLOW, "dest": at("198.51.100.1")}, []),
        (Kind.DENY, "ask.example.net", {"decision": "ask", "reason_code": "rule.ask", "rule_id": "q"}, []),
        (
            Kind.DENY,
            "www.example.org",
            {**NO, "reason_code": "meta.control_plane", "port": 3128},
            ["the name led to an address such as 192.0.2.9"],
        ),
        (
            Kind.OPEN,
            "day.example.net",
            {**ALLOW, "rule_id": "late"},
            ["it was decided up to a minute before it was recorded"],
        ),
        (Kind.DNS, "www.example.org", ALLOW, []),
        (Kind.DNS, "www.example.org", {**ALLOW, "rule_id": "u"}, ["the lookup was for port 4500/udp"]),
        (Kind.DNS, "ask.example.net", {"decision": "ask", "reason_code": "rule.ask", "rule_id": "q"}, []),
        (
            Kind.DNS,
            "www.example.org",
            {**NO, "reason_code": "posture.default_deny"},
            ["the lookup was for port 1/tcp"],
        ),
        (Kind.DENY, "192.0.2.1", {**NO, "reason_code": "meta.loopback"}, []),
    ],
)  # fmt: skip
def test_what_a_record_does_not_hold_is_supposed(
    book: Book, kind: Kind, host: str, fields: dict[str, Any], supposed: list[str]
) -> None:
    assert book.why(book.decides(kind, host, **fields)) == ("same", fields["reason_code"]), book.said
    assert book.said["supposed"] == supposed


@pytest.mark.parametrize(
    ("host", "fields", "why"),
    [
        ("www.example.org", {"reason_code": "dial.refused"}, "dial.refused is not a policy's answer"),
        ("www.example.org", {"reason_code": "policy.expired"}, "no news of control"),
        ("www.example.org", {"reason_code": "budget.state", "rule_id": "x"}, "could not be trusted"),
        ("www.example.org", {"reason_code": "rule.deny", "rule_id": "d"}, "a name that this one led to"),
        ("", {"reason_code": "malformed.host"}, "malformed.host: it was refused before it had a destination"),
        ("x", {"reason_code": "rule.deny", "dest": None, "count": 9}, "several destinations"),
    ],
)
def test_what_nobody_can_tell_is_said(book: Book, host: str, fields: dict[str, Any], why: str) -> None:
    result, _ = book.why(book.decides(Kind.DENY, host, decision="deny", **fields))
    assert result == UNKNOWN
    assert why in book.said["why"]


def test_a_lease_counts_while_it_runs_and_not_before_or_after(book: Book) -> None:
    before = book.decides(Kind.OPEN, "www.example.net", **LEASED, generation=11)
    book.lease(LEASE, generation=11)
    running = book.decides(Kind.OPEN, "www.example.net", **LEASED, generation=12)
    book.lease(replace(LEASE, state=State.REVOKED), generation=12)
    on_its_way = book.decides(
        Kind.DENY, "www.example.net", decision="deny", reason_code="posture.default_deny", generation=13
    )
    after = book.decides(Kind.OPEN, "www.example.net", **LEASED, generation=13)
    late = book.decides(
        Kind.OPEN, "www.example.net", **LEASED, generation=12
    )  # recorded late, decided before
    found = [book.why(seq)[0] for seq in (before, running, on_its_way, after, late)]
    assert found == ["differs", "same", "same", "differs", "same"]
    assert b"words" not in lease_data(LEASE)


def test_a_lease_that_its_record_does_not_hold(book: Book) -> None:
    book.lease(LEASE, data=b"")
    assert book.why(book.decides(Kind.OPEN, "www.example.net", **LEASED))[0] == UNKNOWN
    assert book.said["why"] == "the records of p/a/1 do not hold those leases"
    many = replace(LEASE, to=tuple(parse_scope(f"a{n}.{'x' * 50}.example.net") for n in range(90)))
    assert lease_data(many) == b""


def test_a_spent_lease_and_a_kill_switch(book: Book) -> None:
    book.lease(replace(LEASE, max_uses=1))
    seq = book.decides(Kind.DENY, "www.example.net", decision="deny", reason_code="posture.default_deny")
    assert book.why(seq) == ("same", "posture.default_deny")
    assert book.said["supposed"] == ["a lease for it was spent"]
    book.put(Kind.POLICY, decision="kill.on")
    stopped = book.decides(Kind.DENY, "www.example.org", decision="deny", reason_code="kill")
    slipped = book.decides(Kind.OPEN, "www.example.org", **ALLOW)
    book.put(Kind.POLICY, decision="kill.off", generation=11)
    freed = book.decides(Kind.OPEN, "www.example.org", **ALLOW, generation=12)
    assert [book.why(seq)[0] for seq in (stopped, slipped, freed)] == ["same", "differs", "same"]


def test_a_policy_that_was_not_in_force_explains_nothing(book: Book) -> None:
    said = {**ALLOW, "rule_id": "o"}
    assert (
        book.why(book.decides(Kind.OPEN, "other.example.net", digest=OTHERS.digest, **said))[0] == "differs"
    )
    assert book.said["why"].endswith(f"by the ledger it was {FIRST.digest} that was in force")
    unbound = book.decides(
        Kind.DENY, "other.example.net", digest="", decision="deny", reason_code="meta.project"
    )
    assert book.why(unbound)[0] == "differs"
    # A job may bring its own; and what a start of control does not name again is not in force any more.
    book.put(Kind.JOB, decision="start", job="j1", project="p", policy_digest=bytes.fromhex(OTHERS.digest))
    own = book.decides(Kind.OPEN, "other.example.net", digest=OTHERS.digest, job="j1", **said)
    book.put(Kind.POLICY, decision=PLACE, actor="start", data=HERE.data(), generation=19)
    gone = book.decides(
        Kind.DENY, "other.example.net", digest="", decision="deny", reason_code="meta.project", generation=20
    )
    assert [book.why(seq)[0] for seq in (own, gone)] == ["same", "same"]


def test_without_a_word_of_the_place_a_difference_proves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    book = Book(tmp_path, capsys)
    book.binds(FIRST.digest)
    assert book.why(book.decides(Kind.OPEN, "www.example.org", **ALLOW))[0] == "same"
    assert book.why(book.decides(Kind.OPEN, "bad.example.org", **ALLOW))[0] == UNKNOWN
    assert "own addresses" in book.said["why"]


def test_what_follows_a_flow_leads_to_its_open(book: Book) -> None:
    opened = book.decides(Kind.OPEN, "www.example.org", **ALLOW)
    closed = book.decides(Kind.CLOSE, "www.example.org", **ALLOW)
    assert book.why(closed) == ("same", "rule.allow")
    assert book.said["record"]["seq"] == opened


def test_input_that_cannot_be_used(book: Book) -> None:
    assert "record 0 is of kind policy" in book.refused("0")
    assert "there is none yet" in book.refused("77")
    with pytest.raises(SystemExit) as caught:
        book.refused("1e3")
    assert caught.value.code == 2


def test_a_document_is_what_its_name_says(book: Book) -> None:
    seq = book.decides(Kind.OPEN, "www.example.org", **ALLOW)
    for digest in (FIRST.digest, BASE.digest):
        path = book.folder / "control" / "documents" / f"{digest}.json"
        text = path.read_text()
        path.write_text(text[:-1])
        assert book.why(seq) == (UNKNOWN, "")
        assert f"{digest}.json was altered" in book.said["why"]
        path.unlink()
        assert book.why(seq) == (UNKNOWN, "")
        path.write_text("[]")
        for document in (FIRST, BASE):
            book.documents.keep(document)  # as control does when it comes into force again
        assert path.read_text() == text
        assert book.why(seq)[0] == "same"
