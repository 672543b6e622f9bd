"""What the gateway answers flows without a socket in sight."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.proxy_world import Suffixes

from exeat.ledger.reactor import Reactor
from exeat.policy.addresses import parse_address
from exeat.policy.document import load_policy
from exeat.policy.model import Address, Decision, Request, Subject, Verdict
from exeat.policy.snapshot import Snapshot
from exeat.proxy.evidence import Evidence
from exeat.proxy.gateway import SLOW_SWEEPS, Gateway, ProxySettings
from exeat.proxy.jails import Jail
from exeat.proxy.judging import STANDS_S

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

POLICY = """
egress: v1
project: p
posture: allowlist
allow:
  - {id: web, to: www.example.org}
"""
HOME = parse_address("11.0.0.1")
ALLOW = Decision(Verdict.ALLOW, "rule.allow", "web")


class Hands(Reactor):
    """A loop whose time the test sets."""

    time = 1000.0

    def now(self) -> float:
        return self.time


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    reactor = Hands()
    made = Gateway(ProxySettings(tmp_path, "n1", os.getuid()), reactor)
    document = load_policy(POLICY, file="test", suffixes=Suffixes())
    message = Snapshot.message(
        generation=1, fresh_ms=60_000, documents=[document], projects={"p": document.digest}
    )
    made._in_force(Snapshot.load(message), None)
    yield made
    reactor.close()


def test_an_allow_of_a_moment_ago_stands(gateway: Gateway) -> None:
    decided = gateway.decide(Request(Subject("p", "a"), "www.example.org", 443))
    assert decided == replace(ALLOW, matched=decided.matched)
    assert gateway.stands(decided, gateway.snapshot, 1000.0)
    assert gateway.stands(decided, gateway.snapshot, 1000.0 - STANDS_S * 0.9)


@pytest.mark.parametrize(
    "decided",
    [
        replace(ALLOW, budgets=("default",)),  # others may have spent it meanwhile
        replace(ALLOW, lease="l-1"),  # it may have ended, or have been used up
        Decision(Verdict.DENY, "rule.deny"),
        Decision(Verdict.ASK, "rule.ask"),
    ],
)
def test_what_can_change_is_decided_again(gateway: Gateway, decided: Decision) -> None:
    assert not gateway.stands(decided, gateway.snapshot, 1000.0)


def test_no_decision_outlives_its_snapshot_or_its_moment(gateway: Gateway) -> None:
    before = gateway.snapshot
    assert before is not None
    assert not gateway.stands(ALLOW, before, 1000.0 - STANDS_S)
    assert not gateway.stands(ALLOW, None, 1000.0)
    gateway.reactor.time = 1060.0  # type: ignore[attr-defined]
    assert not gateway.stands(ALLOW, before, 1060.0), "the snapshot is stale"
    gateway._in_force(replace(before), None)
    assert not gateway.stands(ALLOW, before, 1060.0)
    assert gateway.stands(ALLOW, gateway.snapshot, 1060.0)


class Known:
    """Flows that go where the guard has just given addresses for; `decided` counts decisions."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.decided = 0
        self._decide = gateway.decide
        gateway.decide = self._counted  # type: ignore[method-assign]

    def _counted(self, request: Request) -> Decision:
        self.decided += 1
        return self._decide(request)

    def flow(self, addresses: tuple[Address, ...]) -> Decision:
        subject = Subject("p", "a")
        evidence = Evidence(bytes(16), subject, "test")
        question = (subject, "www.example.org", 443, "")
        decision, at = self.gateway.judge_known(
            evidence, question, Request(*question[:3], resolved=addresses)
        )
        assert evidence.decision is decision
        assert (evidence.generation, evidence.posture) == (1, "allowlist")
        assert self.gateway.reactor.woke - STANDS_S < at <= self.gateway.reactor.woke
        return decision


def test_the_next_flow_to_the_same_place_gets_the_same_yes(gateway: Gateway) -> None:
    known, addresses = Known(gateway), (HOME,)
    assert known.flow(addresses).allowed
    assert known.flow(addresses).allowed
    assert known.decided == 1
    known.flow((HOME, HOME))
    assert known.decided == 2, "other addresses"


@pytest.mark.parametrize("change", ["time", "clock", "snapshot", "stale", "shadow", "lease", "budget", "no"])
def test_a_yes_to_one_flow_does_not_stand_for_long(gateway: Gateway, change: str) -> None:
    addresses, snapshot = (HOME,), gateway.snapshot
    assert snapshot is not None
    if change == "shadow":
        gateway._in_force(replace(snapshot, shadows={"p": next(iter(snapshot.policies.values()))}), None)
    known = Known(gateway)
    said = {
        "lease": replace(ALLOW, lease="l-1"),
        "budget": replace(ALLOW, budgets=("default",)),
        "no": Decision(Verdict.DENY, "rule.deny"),
    }
    if change in said:
        known._decide = lambda _request: said[change]
    known.flow(addresses)
    if change == "time":
        gateway.reactor.woke += STANDS_S
    elif change == "clock":  # set back
        gateway.clock.now_ms = lambda: 0  # type: ignore[method-assign]
    elif change == "snapshot":
        gateway._in_force(replace(snapshot), None)
    elif change == "stale":
        gateway.reactor.time += 60  # type: ignore[attr-defined]
        gateway.reactor.woke += 60
    assert known.flow(addresses).allowed is (change not in ("stale", "no"))
    assert known.decided == 2


def test_flow_ids_are_never_the_same(gateway: Gateway) -> None:
    made = [gateway.flow_id() for _ in range(1000)]
    assert len(set(made)) == 1000
    assert {len(each) for each in made} == {16}


class Broken:
    """A flow with a bug: whatever it is told fails."""

    jail = Jail("j", Subject("p", "a", "job"), None, {})
    evidence = Evidence(bytes(16), jail.subject, "test")
    deadline = 0.0
    lease = "l-1"

    def __init__(self) -> None:
        self.told: list[str] = []

    def _fail(self, *said: object) -> None:
        self.told.append(" ".join(map(str, said)))
        raise RuntimeError("a bug")

    cut = end = expire = sweep = recheck = _fail


@pytest.mark.parametrize("live", [False, True])
def test_a_flow_with_a_bug_does_not_save_the_others(gateway: Gateway, *, live: bool) -> None:
    flows: list[Any] = [Broken(), Broken()]
    gateway.reactor._on_error = lambda _: None
    if live:
        gateway._tunnels.update((flow, flow) for flow in flows)
    else:
        gateway._waiting.update(flows)
    gateway._cut(flows, "kill")
    assert [flow.told for flow in flows] == [["kill"], ["kill"]]
    for _ in range(SLOW_SWEEPS):
        gateway._sweep()
    once = ["lease.revoked"] * SLOW_SWEEPS + ["1000.0"] if live else [""] * SLOW_SWEEPS
    assert [flow.told[1:] for flow in flows] == [once, once]
    if live:
        assert gateway.snapshot is not None
        gateway._in_force(replace(gateway.snapshot, generation=2), None)
        assert [flow.told[-2:] for flow in flows] == [["lease.revoked", ""]] * 2
