"""The order of a lookup: policy before the network, policy again after it, nothing kept too long."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.support.guard_rig import PUBLIC, NoSuffixes

from exeat.dns.judge import Asker, Judge
from exeat.dns.resolver import Finding, Resolver
from exeat.dns.vet import Status
from exeat.dns.wire import Answer, Record, wire_name
from exeat.ledger.reactor import Reactor
from exeat.policy.document import load_policy
from exeat.policy.model import Address, Subject
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
