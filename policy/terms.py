"""What a policy asks of a lease that somebody wants ahead of time: as much as of one that a flow asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from exeat.policy.containment import meet
from exeat.policy.rules import Kind

if TYPE_CHECKING:
    from exeat.policy.document import Document
    from exeat.policy.leases import Lease
    from exeat.policy.rules import Rule


class Terms(NamedTuple):
    """How many people must say yes, and how long it may last at most."""

    approvals: int
    max_ttl_ms: int


def terms(document: Document, wanted: Lease) -> Terms:
    """The strictest of all `ask` rules that share a destination with it; the policy's own where none does.

    A rule that asks only some agents, at some times or over another protocol counts, too: what is
    granted is not bound to those.
    """
    knobs = document.knobs
    rules = _touching(document, wanted)
    least = knobs.approvals_wide if any(scope.wide for scope in wanted.to) else 1
    if not rules:
        return Terms(max(least, knobs.approvals), knobs.max_ttl_ms)
    return Terms(
        max([least, *(rule.approvals or knobs.approvals for rule in rules)]),
        min(rule.max_ttl_ms or knobs.max_ttl_ms for rule in rules),
    )


def stricter(asks: Terms, baseline: Document, wanted: Lease) -> Terms:
    """The same under the organisation's baseline: its `ask` rules that share a destination with the lease
    take away where they say so themselves. What its posture gives says nothing about other projects."""
    rules = _touching(baseline, wanted)
    return Terms(
        max([asks.approvals, *(rule.approvals for rule in rules if rule.approvals)]),
        min([asks.max_ttl_ms, *(rule.max_ttl_ms for rule in rules if rule.max_ttl_ms)]),
    )


def _touching(document: Document, wanted: Lease) -> list[Rule]:
    return [
        rule
        for rule in document.of_kind(Kind.ASK)
        if any(meet(rule, a, wanted, b) is not None for a in rule.to for b in wanted.to)
    ]
