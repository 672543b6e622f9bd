"""Snapshots come into force in order, a large policy off the loop, and never the wider of two."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from exeat.ledger.reactor import Reactor
from exeat.ledger.snapshots import SnapshotLoader
from exeat.policy.document import Document
from exeat.policy.leases import Lease
from exeat.policy.model import Request, Subject
from exeat.policy.postures import Posture
from exeat.policy.rules import HTTPS, Kind, Rule
from exeat.policy.scopes import parse_scope
from exeat.policy.snapshot import Snapshot
from exeat.policy.usage import Usage

if TYPE_CHECKING:
    from collections.abc import Iterator

NOW = 1_767_614_400_000
WHO = Subject("p", "a1", job="j1")
LEASE = Lease("L", "p", (parse_scope("leased.org"),), exp_ms=NOW + 1000)


def policy(host: str) -> Document:
    rule = Rule(host, Kind.ALLOW, (parse_scope(host),), HTTPS, ("tcp",))
    return Document(project="p", posture=Posture.ALLOWLIST, rules=(rule,))


def message(generation: int, document: Document, **more: Any) -> dict[str, Any]:
    return Snapshot.message(
        generation=generation,
        fresh_ms=1000,
        documents=[document],
        projects=more.pop("projects", {"p": document.digest}),
        **more,
    )


class Stage:
    """A loader that takes every policy for a large one, and what came into force."""

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor
        self.force: list[tuple[Snapshot, bool]] = []
        self.loader = SnapshotLoader(reactor, "test", self._apply, large=1)

    def _apply(self, snapshot: Snapshot, message: dict[str, Any] | None) -> None:
        self.force.append((snapshot, message is not None))

    @property
    def now(self) -> Snapshot:
        return self.force[-1][0]

    def offer(self, message: dict[str, Any]) -> None:
        self.loader.offer(message, self.now if self.force else None)

    def settle(self) -> None:
        while self.loader.busy:
            self.reactor.turn()

    def allows(self, host: str) -> bool:
        return self.now.decide(Request(WHO, host, 443), NOW, Usage()).allowed


@pytest.fixture
def stage() -> Iterator[Stage]:
    reactor = Reactor()
    made = Stage(reactor)
    yield made
    made.settle()
    made.loader.close()
    reactor.close()


def test_the_first_is_in_force_at_once(stage: Stage) -> None:
    stage.offer(message(1, policy("one.org")))
    assert stage.allows("one.org")
    assert not stage.loader.busy


def test_a_large_policy_comes_into_force_when_it_is_ready(stage: Stage) -> None:
    stage.offer(message(1, policy("one.org"), leases=[LEASE]))
    assert stage.allows("leased.org")
    stage.offer(message(2, policy("two.org")))
    assert stage.loader.busy
    assert stage.now.generation == 1
    assert stage.allows("one.org")
    assert not stage.allows("leased.org")  # what is taken away goes at once
    stage.settle()
    assert stage.now.generation == 2
    assert stage.allows("two.org")
    assert not stage.allows("one.org")


def test_bindings_and_revocations_do_not_wait(stage: Stage) -> None:
    stage.offer(message(1, policy("one.org"), leases=[LEASE]))
    stage.offer(message(2, policy("two.org"), leases=[LEASE], revoked=["L"]))
    assert not stage.allows("leased.org")
    stage.offer(message(3, policy("two.org"), projects={}))
    assert not stage.allows("one.org")
    stage.settle()
    assert stage.now.generation == 3
    assert not stage.allows("two.org")


def test_the_newest_message_wins(stage: Stage) -> None:
    stage.offer(message(1, policy("one.org")))
    for generation, host in enumerate(("two.org", "three.org", "four.org"), 2):
        stage.offer(message(generation, policy(host)))
    stage.settle()
    assert stage.now.generation == 4
    assert stage.allows("four.org")
    assert [snapshot.generation for snapshot, whole in stage.force if whole] == [1, 4]


def test_a_message_that_needs_no_work_overtakes(stage: Stage) -> None:
    first = policy("one.org")
    stage.offer(message(1, first))
    stage.offer(message(2, policy("two.org")))
    stage.offer(message(3, first))
    assert (stage.now.generation, stage.loader.busy) == (3, True)
    stage.settle()
    assert stage.now.generation == 3
    assert stage.allows("one.org")


def test_control_repeats_itself(stage: Stage) -> None:
    stage.offer(message(1, policy("one.org")))
    for _ in range(3):
        stage.offer(message(2, policy("two.org")))
    stage.settle()
    assert [snapshot.generation for snapshot, whole in stage.force if whole] == [1, 2]


@pytest.mark.parametrize("change", [{"policies": {"00": "{}"}}, {"leases": 7}, {"policies": 3}])
def test_what_is_no_snapshot_changes_nothing(
    stage: Stage, change: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    stage.offer(message(1, policy("one.org")))
    stage.offer(message(2, policy("two.org")) | change)
    stage.settle()
    assert stage.now.generation == 1
    assert stage.allows("one.org")
    assert "snapshot refused" in capsys.readouterr().err


def test_the_loop_turns_while_a_policy_is_compiled(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.offer(message(1, policy("one.org")))
    go, load = threading.Event(), Snapshot.load
    monkeypatch.setattr(Snapshot, "load", lambda *args: (go.wait(30), load(*args))[1])
    stage.offer(message(2, policy("two.org")))
    turned: list[int] = []
    stage.reactor.call_soon(lambda: turned.append(1))
    stage.reactor.turn()
    assert turned
    assert stage.loader.busy
    go.set()
    stage.settle()
    assert stage.allows("two.org")
