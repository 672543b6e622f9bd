"""What was decided comes out again from its record, though that holds only a part of what it rested on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.policy_strategies import NOW_MS, document_of, lease_lists, policy_trees, requests

from exeat.policy.again import Recorded, Result, decide_again
from exeat.policy.model import Decision, Request, Sni, Verdict
from exeat.policy.snapshot import Snapshot
from exeat.policy.usage import Usage

if TYPE_CHECKING:
    from exeat.policy.leases import Lease

USED = st.sampled_from([{}, {"hard": 100}, {"soft": 5}, {"default": 1000}, {"hard": 100, "default": 1000}])


def snapshot_of(tree: dict[str, Any], leases: list[Lease]) -> Snapshot:
    document = document_of(tree)
    projects = {"p": document.digest}
    message = Snapshot.message(
        generation=1, fresh_ms=0, documents=[document], projects=projects, leases=leases
    )
    return Snapshot.load(message)


def recorded(request: Request, decision: Decision, **changes: Any) -> Recorded:
    """As a record has it: of the addresses the dialled one, and no word of a ClientHello without a name."""
    kept = request.resolved[:1] if decision.allowed else ()
    sni = Sni.UNSEEN if request.sni is Sni.ABSENT and decision.reason != "sni.missing" else request.sni
    request = replace(request, resolved=kept, sni=sni)
    said = (decision.verdict, decision.reason, decision.rule, decision.lease)
    return replace(Recorded(request, NOW_MS, *said), **changes)


@settings(max_examples=120)
@given(policy_trees(), lease_lists(), st.lists(requests(), min_size=3, max_size=8), USED)
def test_what_was_decided_is_never_said_to_differ(
    tree: dict[str, Any], leases: list[Lease], asked: list[Request], used: dict[str, int]
) -> None:
    snapshot, usage = snapshot_of(tree, leases), Usage()
    usage.define("p", document_of(tree).budgets)
    for budget, amount in used.items():
        usage.charge("p", [budget], now_ms=NOW_MS, connections=amount, bytes_up=amount)
    for request in asked:
        decision = snapshot.decide(request, NOW_MS, usage)
        again = decide_again(snapshot, recorded(request, decision))
        assert again.result is not Result.DIFFERS, (request, decision, again)
        if not request.resolved or decision.allowed:
            assert again.result is Result.SAME, (request, decision, again)
        if isinstance(request.host, str):
            looked = snapshot.decide_lookup(request.subject, request.host, NOW_MS, usage)
            plain = replace(request, port=443, proto="tcp", resolved=(), sni=Sni.UNSEEN)
            again = decide_again(snapshot, recorded(plain, looked, lookup=True))
            assert again.result is Result.SAME, (request, looked, again)


@settings(max_examples=60)
@given(policy_trees(), lease_lists(), st.lists(requests(), min_size=3, max_size=8))
def test_what_was_not_decided_is_never_the_same(
    tree: dict[str, Any], leases: list[Lease], asked: list[Request]
) -> None:
    snapshot = snapshot_of(tree, leases)
    for request in asked:
        decision = snapshot.decide(request, NOW_MS, Usage())
        if decision.verdict is Verdict.DENY and not any(rule.when for rule in _rules(snapshot)):
            allowed = recorded(request, decision, verdict=Verdict.ALLOW, reason="posture.public", rule="")
            assert decide_again(snapshot, replace(allowed, request=request)).result is Result.DIFFERS
        made_up = recorded(request, decision, rule="made-up", reason="rule.allow")
        assert decide_again(snapshot, made_up).result is Result.DIFFERS


def _rules(snapshot: Snapshot) -> tuple[Any, ...]:
    return tuple(rule for policy in snapshot.policies.values() for rule in policy.document.rules)
