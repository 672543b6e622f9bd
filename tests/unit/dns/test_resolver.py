"""The order of a lookup: policy before the network, policy again after it, nothing kept too long."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.support.guard_rig import PUBLIC, NoSuffixes

from exeat.dns.judge import STANDS_S, Admitted, Asker, Judge
from exeat.dns.resolver import Finding, Resolver
from exeat.dns.vet import Status
from exeat.dns.wire import Answer, Record, wire_name
from exeat.ledger.reactor import Reactor
from exeat.policy.document import load_policy
from exeat.policy.model import Address, Subject, Verdict
from exeat.policy.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable

ALLOWED = "{egress: v1, project: p, posture: allowlist, allow: [{to: [.wild.net]}]}"
DENIED = "{egress: v1, project: p, posture: allowlist, deny: [{to: [.wild.net]}]}"
ASKER = Asker(Subject("p", "a", "j", "", "n"))
NAME = wire_name("www.wild.net")


class HeldUpstream:
    """An upstream whose answers come when the test lets them."""

    def __init__(self) -> None:
        self.asked: list[tuple[bytes, int, Callable[[Answer | None], None]]] = []

    def ask(self, name: bytes, qtype: int, done: Callable[[Answer | None], None]) -> None:
        self.asked.append((name, qtype, done))

    def answer(self, address: int = 0xCB007101, ttl: int = 60) -> None:
        name, qtype, done = self.asked.pop(0)
        done(Answer(1, 0, False, b"", (Record(name, qtype, ttl, Address(4, address)),), None))


class Stage:
    def __init__(self) -> None:
        self.reactor = Reactor()
        self.upstream = HeldUpstream()
        self.judge = Judge(self.reactor.now)
        self.resolver = Resolver(self.reactor, self.upstream, self.judge)  # type: ignore[arg-type]
        self.found: list[Finding] = []

    def load(self, policy: str) -> None:
        document = load_policy(policy, file="test", suffixes=NoSuffixes())
        message = Snapshot.message(
            generation=1,
            fresh_ms=60_000,
            documents=[document],
            projects={"p": document.digest},
            treat_as_public=PUBLIC,
        )
        self.judge.replace(Snapshot.load(message))
        self.resolver.clear()

    def find(self, host: str = "www.wild.net") -> None:
        self.resolver.find(ASKER, host, 1, self.found.append)


@pytest.fixture
def stage() -> Stage:
    stage = Stage()
    stage.load(ALLOWED)
    return stage


def test_a_denied_name_is_not_asked_for_even_here(stage: Stage) -> None:
    stage.find("www.evil.net")
    stage.load(DENIED)
    stage.find()
    assert stage.upstream.asked == []
    assert [finding.reason for finding in stage.found] == ["posture.default_deny", "rule.deny"]


def test_a_denial_that_comes_while_waiting_counts(stage: Stage) -> None:
    stage.find()
    stage.load(DENIED)
    stage.upstream.answer()
    assert [(finding.reason, finding.addresses) for finding in stage.found] == [("rule.deny", ())]


def test_an_answer_is_kept_for_its_time_and_one_snapshot(stage: Stage) -> None:
    stage.find()
    stage.upstream.answer()
    stage.find()
    assert [finding.status for finding in stage.found] == [Status.FOUND] * 2
    assert stage.upstream.asked == []
    stage.load(ALLOWED)
    stage.find()
    assert len(stage.upstream.asked) == 1


def test_an_answer_from_before_a_snapshot_is_given_but_not_kept(stage: Stage) -> None:
    stage.find()
    stage.load(ALLOWED)
    stage.upstream.answer()
    assert stage.found[0].status is Status.FOUND
    stage.find()
    assert len(stage.upstream.asked) == 1


def test_no_answer_is_not_kept(stage: Stage) -> None:
    stage.find()
    stage.upstream.asked.pop()[2](None)
    assert stage.found[0].reason == "dns.unavailable"
    stage.find()
    assert len(stage.upstream.asked) == 1


def test_a_kept_answer_is_judged_again_on_each_use(stage: Stage) -> None:
    stage.find()
    stage.upstream.answer(0x0A000001)
    stage.find()
    assert [finding.reason for finding in stage.found] == ["address.not_public"] * 2


def test_both_families_end_once_and_do_not_wait_for_ever(stage: Stage) -> None:
    stage.resolver.find_both(ASKER, "www.wild.net", stage.found.append)
    assert [qtype for _, qtype, _ in stage.upstream.asked] == [1, 28]
    stage.upstream.answer()
    assert stage.found == []
    for _ in range(50):
        if stage.found:
            break
        stage.reactor.turn(0.1)
    (finding,) = stage.found
    assert finding.addresses == ((Address(4, 0xCB007101), 30),)
    stage.upstream.asked.pop()[2](None)
    assert len(stage.found) == 1


class Late(Reactor):
    """A loop whose clock the test moves."""

    moved = 0.0

    def now(self) -> float:
        return super().now() + self.moved


@pytest.fixture
def late() -> Stage:
    stage = Stage()
    stage.reactor = Late()
    stage.judge = Judge(lambda: 0.0)
    stage.resolver = Resolver(stage.reactor, stage.upstream, stage.judge)  # type: ignore[arg-type]
    stage.load(ALLOWED)
    stage.find()
    stage.upstream.answer(ttl=30)
    return stage


def move(stage: Stage, seconds: float) -> None:
    assert isinstance(stage.reactor, Late)
    stage.reactor.moved += seconds
    stage.reactor.turn(0)


def test_an_old_answer_stands_in_when_the_upstreams_fail(late: Stage) -> None:
    move(late, 31)
    late.find()
    late.upstream.asked.pop()[2](None)
    finding = late.found[-1]
    assert (finding.status, finding.stale, finding.ttl) == (Status.FOUND, True, 2)
    assert finding.addresses == ((Address(4, 0xCB007101), 2),)


def test_it_stands_in_when_they_are_late_and_the_late_answer_is_kept(late: Stage) -> None:
    move(late, 31)
    late.find()
    move(late, 1.4)
    assert len(late.found) == 1
    move(late, 0.2)
    assert late.found[-1].stale
    late.upstream.answer(0xCB007102)
    assert len(late.found) == 2
    late.find()
    assert late.found[-1].addresses[0][0] == Address(4, 0xCB007102)
    assert not late.found[-1].stale


def test_it_does_not_stand_in_for_ever(late: Stage) -> None:
    move(late, 30 + 301)
    late.find()
    late.upstream.asked.pop()[2](None)
    assert late.found[-1].reason == "dns.unavailable"


def test_it_does_not_outlive_its_policy(late: Stage) -> None:
    move(late, 31)
    late.find()
    late.load(DENIED)
    late.upstream.asked.pop()[2](None)
    assert late.found[-1].reason == "rule.deny"
    late.load(ALLOWED)
    late.find()
    late.upstream.asked.pop()[2](None)
    assert late.found[-1].reason == "dns.unavailable"


def test_what_the_upstreams_say_beats_what_they_said(late: Stage) -> None:
    move(late, 31)
    late.find()
    late.upstream.asked.pop()[2](Answer(1, 3, False, b"", (), 60))
    assert late.found[-1].status is Status.NXDOMAIN
    move(late, 31)
    late.find()
    late.upstream.asked.pop()[2](None)
    assert late.found[-1].reason == "dns.unavailable"


def test_what_is_asked_for_often_is_renewed_before_it_ends(late: Stage) -> None:
    for _ in range(5):
        late.find()
    move(late, 25)
    assert late.upstream.asked == []
    late.find()
    late.find()
    assert len(late.upstream.asked) == 1
    late.upstream.answer(0xCB007102, ttl=30)
    move(late, 6)
    late.find()
    assert late.found[-1].addresses == ((Address(4, 0xCB007102), 24),)
    assert late.upstream.asked == []


def test_what_is_asked_for_once_is_not_renewed(late: Stage) -> None:
    move(late, 25)
    late.find()
    assert late.upstream.asked == []


def admitted(stage: Stage, host: str = "www.wild.net") -> Admitted:
    return stage.judge.admitted(stage.judge.admit(ASKER, host))


def test_a_fresh_admission_is_not_made_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    given = admitted(stage)
    monkeypatch.setattr(stage.judge, "admit", lambda *_: pytest.fail("decided twice"))
    stage.resolver.find(ASKER, "www.wild.net", 1, stage.found.append, given)
    stage.upstream.answer()
    assert stage.found[0].status is Status.FOUND


def test_an_admission_that_something_may_have_ended_is_made_again(stage: Stage) -> None:
    given = admitted(stage)
    assert stage.judge.stands(given)
    assert not stage.judge.stands(given._replace(at=given.at - STANDS_S))
    for change in ({"lease": "l"}, {"budgets": ("b",)}, {"verdict": Verdict.DENY}):
        assert not stage.judge.stands(given._replace(decision=replace(given.decision, **change)))
    stage.load(DENIED)
    assert not stage.judge.stands(given)
    stage.resolver.find(ASKER, "www.wild.net", 1, stage.found.append, given)
    assert stage.found[0].refused
    assert not stage.upstream.asked


def test_an_admission_ends_with_its_snapshot(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    given = admitted(stage)
    monkeypatch.setattr(stage.judge, "_fresh_until", stage.reactor.now())
    assert not stage.judge.stands(given)
