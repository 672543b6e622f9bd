"""What a policy would have said to traffic that was recorded, or did say as a shadow: only what differs.

Recorded leases are taken to exist still. What depends on counters or on the wire (budgets, server
names that were refused, dial errors, limits) says nothing about a policy and is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from exeat.policy.decide import decide, decide_lookup
from exeat.policy.model import Decision, Request, Verdict
from exeat.policy.units import format_time
from exeat.policy.usage import Overlay
from exeat.policy.witness import host_text, universal_lease

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from exeat.policy.decide import CompiledPolicy

_POLICY_CODES = (
    *("rule.", "posture.", "meta.", "ceiling.", "lease.", "address.", "ip_literal."),
    "policy.expired",
)


class Observation(NamedTuple):
    """One recorded decision; `lookup` if it was about a name only. `at_ms` is wall clock. `shadow` is
    what the shadow policy said instead."""

    request: Request
    at_ms: int
    verdict: Verdict
    reason: str
    rule: str = ""
    leased: bool = False
    lookup: bool = False
    times: int = 1
    shadow: Decision | None = None


@dataclass
class Change:
    """Recorded traffic whose answer changes: `count` times, first at `first_ms`."""

    observation: Observation
    decision: Decision
    first_ms: int
    count: int = 0

    @property
    def breaking(self) -> bool:
        return self.observation.verdict is Verdict.ALLOW and self.decision.verdict is Verdict.DENY

    def to_json(self) -> dict[str, Any]:
        request = self.observation.request
        return {
            "kind": "lookup" if self.observation.lookup else "flow",
            "project": request.subject.project,
            "host": host_text(request.host),
            "port": 0 if self.observation.lookup else request.port,
            "proto": request.proto,
            "agent": request.subject.agent,
            "was": str(self.observation.verdict),
            "was_reason": self.observation.reason,
            "was_rule": self.observation.rule,
            "now": str(self.decision.verdict),
            "now_reason": self.decision.reason,
            "now_rule": self.decision.rule,
            "breaking": self.breaking,
            "count": self.count,
            "first": format_time(self.first_ms),
        }


@dataclass(frozen=True)
class Trial:
    """`replayed` observations were judged again; `skipped` ones do not depend on a policy."""

    changes: tuple[Change, ...]
    replayed: int
    skipped: int

    @property
    def breaking(self) -> bool:
        return any(change.breaking for change in self.changes)


def run_trial(policy: CompiledPolicy, observations: Iterable[Observation]) -> Trial:
    """Every observation of the policy's project, judged again at the time it was made."""
    project = policy.document.project

    def judge(seen: Observation) -> Decision | None:
        decision = _judge(policy, seen)
        return None if decision.verdict is seen.verdict else decision

    return _changes(observations, judge, lambda seen: seen.request.subject.project == project)


def read_shadow(observations: Iterable[Observation]) -> Trial:
    """What shadow policies said of the observations while they were made."""
    return _changes(observations, lambda seen: seen.shadow, lambda _: True)


def _changes(
    observations: Iterable[Observation],
    judge: Callable[[Observation], Decision | None],
    concerns: Callable[[Observation], bool],
) -> Trial:
    """`judge` gives the other answer, None for the same."""
    changes: dict[tuple[object, ...], Change] = {}
    replayed = skipped = 0
    for seen in observations:
        if not concerns(seen) or not _judgeable(seen):
            skipped += seen.times
            continue
        replayed += seen.times
        decision = judge(seen)
        if decision is None:
            continue
        change = changes.setdefault(_kind_of(seen, decision), Change(seen, decision, seen.at_ms))
        change.count += seen.times
        change.first_ms = min(change.first_ms, seen.at_ms)
    ordered = sorted(changes.values(), key=lambda change: (not change.breaking, change.first_ms))
    return Trial(tuple(ordered), replayed, skipped)


def _kind_of(seen: Observation, decision: Decision) -> tuple[object, ...]:
    request = seen.request
    place = (
        request.subject.project,
        seen.lookup,
        request.host,
        request.port,
        request.proto,
        request.subject.agent,
    )
    return (*place, seen.verdict, seen.reason, decision.verdict, decision.reason)


def _judgeable(seen: Observation) -> bool:
    return seen.verdict is Verdict.ALLOW or seen.reason.startswith(_POLICY_CODES)


def _judge(policy: CompiledPolicy, seen: Observation) -> Decision:
    request = seen.request
    leases = (universal_lease(request.subject.project, request.host),) if seen.leased else ()
    overlay = Overlay.of(leases)
    if seen.lookup and isinstance(request.host, str):
        return decide_lookup(policy, request.subject, request.host, seen.at_ms, overlay)
    return decide(policy, request, seen.at_ms, overlay)
