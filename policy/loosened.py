"""What a document gives up besides rules: limits of its budgets, and knobs of its preset."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from exeat.policy.authority import Level
from exeat.policy.model import Sni
from exeat.policy.postures import SniRule

if TYPE_CHECKING:
    from exeat.policy.document import Document
    from exeat.policy.rules import Limit

OTHER_NAME: Final = "another.invalid"
_STRICTNESS = {SniRule.LOG: 0, SniRule.MATCH: 1, SniRule.REQUIRE: 2}


def lost_limits(a: Document, b: Document) -> dict[str, Limit]:
    """By name of a budget of `a`: a limit that the budget of that name in `b` does not keep."""
    lost: dict[str, Limit] = {}
    for budget in a.budgets.values():
        kept = b.budgets.get(budget.name)
        held = {(x.counter, x.window_ms): x.amount for x in kept.limits} if kept is not None else {}
        for limit in budget.limits:
            amount = held.get((limit.counter, limit.window_ms))
            if amount is None or amount > limit.amount:
                lost.setdefault(budget.name, limit)
    return lost


def softened_limits(a: Document, b: Document) -> dict[str, Limit]:
    """By name of a budget that denies in `a` and asks in `b`: a limit of it that `b` keeps."""
    softened: dict[str, Limit] = {}
    for budget in a.budgets.values():
        kept = b.budgets.get(budget.name)
        if kept is None or budget.soft or not kept.soft:
            continue
        held = {(x.counter, x.window_ms): x.amount for x in kept.limits}
        for limit in budget.limits:
            if held.get((limit.counter, limit.window_ms), limit.amount + 1) <= limit.amount:
                softened.setdefault(budget.name, limit)
    return softened


def loosened_knob(a: Document, b: Document) -> tuple[str, str | Sni, Level] | None:
    """A knob that `b` sets looser: in words, the server name that shows it, and the level it is of."""
    was, now = a.knobs, b.knobs
    if _STRICTNESS[now.sni] < _STRICTNESS[was.sni]:
        absent = was.sni is SniRule.REQUIRE
        what = "a ClientHello without a server name passes" if absent else "any server name passes"
        return what, Sni.ABSENT if absent else OTHER_NAME, Level.ALLOW
    if now.max_ttl_ms > was.max_ttl_ms:
        return (
            f"leases of up to {now.max_ttl_ms}ms instead of {was.max_ttl_ms}ms",
            Sni.UNSEEN,
            Level.GRANTABLE,
        )
    if now.approvals < was.approvals or now.approvals_wide < was.approvals_wide:
        return "leases need fewer approvals", Sni.UNSEEN, Level.GRANTABLE
    if now.freshness_ms > was.freshness_ms:
        return (
            f"a stale policy counts for {now.freshness_ms}ms instead of {was.freshness_ms}ms",
            Sni.UNSEEN,
            Level.ALLOW,
        )
    if now.drain_ms > was.drain_ms:
        return "flows outlive their lease for longer", Sni.UNSEEN, Level.GRANTABLE
    return None
