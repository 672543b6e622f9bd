"""What is remembered of replies, and for how long: never past anything that could change them."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.guard_rig import PUBLIC, NoSuffixes

from exeat.dns.batch import remembered
from exeat.dns.journal import Journal
from exeat.dns.judge import MAX_LOOKED_AT, Judge
from exeat.dns.other_records import OtherRecords
from exeat.dns.resolver import Resolver
from exeat.dns.responder import HOT_S, STEADY_NO_S, STEADY_SHARE, Jail, Responder
from exeat.dns.wire import Answer, Record, wire_name
from exeat.ledger.reactor import Reactor
from exeat.policy.document import load_policy
from exeat.policy.leases import Lease
from exeat.policy.model import Address, Subject
from exeat.policy.scopes import parse_scope
from exeat.policy.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

POLICY = "{egress: v1, project: p, posture: allowlist, allow: [{to: .wild.net}]"
ASKED = POLICY + ", ask: [{to: .asked.net}]}"
NIGHTS = ", deny: [{to: .night.net, when: {daily: '22:00-06:00'}}]}"
SUBJECT = Subject("p", "a", "j", "", "n")
TTL_S = 30


class Ledger:
    """Says yes when the test lets it."""

    available = True

    def __init__(self) -> None:
        self.waiting: list[Callable[[bool], None]] = []

    def append(self, _records: Sequence[bytes], on_done: Callable[[bool], None]) -> None:
        self.waiting.append(on_done)

    def settle(self) -> None:
        waiting, self.waiting = self.waiting, []
        for done in waiting:
            done(True)


class Upstream:
    def ask(self, name: bytes, qtype: int, done: Callable[[Answer | None], None]) -> None:
        record = Record(name, qtype, TTL_S, Address(4, 0xCB007101))
        done(Answer(1, 0, False, b"", (record,), None))


class Stage:
    def __init__(self) -> None:
        self.time = 1000.0
        self.ledger = Ledger()
        self.jail = Jail.new("j", SUBJECT, self.time)
        reactor = Reactor()
        self.judge = Judge(self.now)
        journal = Journal(reactor, self.ledger)  # type: ignore[arg-type]
        reactor.now = self.now  # type: ignore[method-assign]
        resolver = Resolver(reactor, Upstream(), self.judge)  # type: ignore[arg-type]
        others = OtherRecords(reactor, Upstream(), self.judge)  # type: ignore[arg-type]
        self.responder = Responder(self.now, self.judge, resolver, others, journal)
        self.replies: list[bytes] = []

    def now(self) -> float:
        return self.time

    def load(self, policy: str, **more: Any) -> None:
        document = load_policy(policy, file="test", suffixes=NoSuffixes())
        documents = [document, *more.pop("documents", ())]
        message = Snapshot.message(
            generation=1, fresh_ms=10**6, documents=documents, projects={"p": document.digest},
            treat_as_public=PUBLIC, **more,
        )  # fmt: skip
        self.judge.replace(Snapshot.load(message))
        self.responder.forget([self.jail])

    def ask(self, host: str, *, settle: bool = True, ident: int = 1) -> None:
        self.responder.answer(self.jail, self.query(host, ident), self.replies.append, udp=True)
        if settle:
            self.ledger.settle()

    @staticmethod
    def query(host: str, ident: int = 1) -> bytes:
        return struct.pack(">6H", ident, 0x100, 1, 0, 0, 0) + wire_name(host) + b"\0\1\0\1"

    def held_s(self, host: str, ident: int = 1) -> float:
        """Ask twice; for how long the reply is remembered then, 0 for not at all."""
        self.ask(host, ident=ident)
        self.ask(host, ident=ident)
        entry = self.jail.hot.get(self.query(host)[2:])
        return entry.expires - self.time if entry is not None else 0.0


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_what_only_a_new_snapshot_can_change_is_remembered_longer(stage: Stage) -> None:
    stage.load(ASKED)
    for ident, share in ((0, 256), (255, 511), (0x1280, 384)):  # of 512
        stage.responder.forget([stage.jail])
        for host, longest in (
            ("www.evil.net", STEADY_NO_S),
            ("www.asked.net", STEADY_NO_S),
            ("www.wild.net", TTL_S * STEADY_SHARE),
        ):
            assert stage.held_s(host, ident) == pytest.approx(longest * share / 512)


@pytest.mark.parametrize(
    "policy",
    [
        POLICY + NIGHTS,
        POLICY + ", expires: '2030-01-01T00:00:00Z'}",
        POLICY + ", preset: strict}",
        POLICY + ", budgets: {default: {lookups: 100/1h}}}",
        POLICY.replace(".wild.net", ", ".join(["[.wild.net", *(f"h{i}.net" for i in range(9))]) + "]")
        + NIGHTS,
    ],
)
def test_what_ends_by_itself_is_not(stage: Stage, policy: str) -> None:
    stage.load(policy)
    assert stage.held_s("www.wild.net") == HOT_S
    if "budgets" not in policy:
        assert stage.held_s("www.evil.net") == 5


def test_nor_is_what_too_many_rules_decide(stage: Stage) -> None:
    rules = ", ".join(f"{{to: h{i}.example.net}}" for i in range(MAX_LOOKED_AT))
    stage.load(POLICY.replace("allow: [", f"allow: [{rules}, ") + "}")
    assert stage.held_s("www.wild.net") == HOT_S


def test_nor_is_what_a_shadow_says_something_of(stage: Stage) -> None:
    shadow = load_policy(POLICY + NIGHTS, file="test", suffixes=NoSuffixes())
    stage.load(ASKED, documents=[shadow], shadows={"p": shadow.digest})
    assert stage.held_s("www.wild.net") == HOT_S


def test_a_lease_that_is_still_to_begin_is_waited_for(stage: Stage, lease: Lease) -> None:
    stage.load(ASKED, leases=[lease])
    assert stage.held_s("www.evil.net") == 5


@pytest.fixture
def lease() -> Lease:
    return Lease("p/1", "p", (parse_scope("lease.asked.net"),), nbf_ms=(1 << 45) - 1, exp_ms=1 << 45)


@pytest.mark.parametrize("host", ["www.evil.net", "www.asked.net"])
def test_a_no_that_a_new_snapshot_overtook_is_not_remembered(stage: Stage, host: str) -> None:
    stage.load(ASKED)
    stage.ask(host, settle=False)
    stage.ask(host, settle=False)  # decided, and waiting for its record
    stage.load(POLICY.replace(".wild.net", f"[.wild.net, {host}]") + "}")
    stage.ledger.settle()
    assert len(stage.replies) == 2
    assert not stage.jail.hot
    stage.ask(host)
    assert stage.replies[-1][3] & 15 == 0


def test_a_new_snapshot_forgets_everything(stage: Stage) -> None:
    stage.load(ASKED)
    for host in ("www.evil.net", "www.wild.net"):
        stage.held_s(host)
        assert remembered(stage.jail.hot, stage.query(host), stage.time)
    stage.load(ASKED)
    assert not stage.jail.hot
