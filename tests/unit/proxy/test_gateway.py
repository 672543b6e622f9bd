"""What the gateway answers flows without a socket in sight."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.support.proxy_world import Suffixes

from exeat.ledger.reactor import Reactor
from exeat.policy.document import load_policy
from exeat.policy.model import Decision, Request, Subject, Verdict
from exeat.policy.snapshot import Snapshot
from exeat.proxy.gateway import STANDS_S, Gateway, ProxySettings

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


def test_flow_ids_are_never_the_same(gateway: Gateway) -> None:
    made = [gateway.flow_id() for _ in range(1000)]
    assert len(set(made)) == 1000
    assert {len(each) for each in made} == {16}
