"""What loads but hardly means what it says: said when a policy is checked and when it comes into force.

Warnings only: nothing here changes what a policy does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from exeat.policy.authority import OPEN
from exeat.policy.containment import excess
from exeat.policy.document import Warn
from exeat.policy.model import Speech, permits
from exeat.policy.places import Covers
from exeat.policy.portsets import mask_of
from exeat.policy.postures import Default, Posture
from exeat.policy.rules import ALWAYS, Kind, Rule
from exeat.policy.scopes import Reach, Scope

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exeat.policy.document import Document

MAX_COMPARED = 64  # rules that may shadow one rule, so that checking stays linear
WIDE_PREFIX = {4: 8, 6: 16}  # an allow on a network at least this large is worth a word


def lint(document: Document) -> tuple[Warn, ...]:
    """Warnings about the document as a whole and about single rules; lines are not known here (0)."""
    return (*_about_the_whole(document), *_about_rules(document))


def _warn(code: str, message: str) -> Warn:
    return Warn(code, message, 0, 0)


def _about_the_whole(document: Document) -> Iterator[Warn]:
    grants = [rule for rule in document.rules if rule.kind is not Kind.DENY and not rule.never_matches]
    closed = document.posture is Posture.ALLOWLIST or (
        document.posture is Posture.CUSTOM and document.default is Default.DENY
    )
    if not document.rules and closed:
        yield _warn("policy.empty", "no rules: nothing is let out without a lease")
    elif closed and not grants:
        yield _warn("policy.denies_all", "no rule allows or asks: nothing is let out without a lease")
    if document.ceiling is not None and not document.ceiling:
        yield _warn("policy.denies_all", "an empty ceiling refuses everything, leases too")
    elif document.ceiling is not None and grants and all(_outside(document, rule) for rule in grants):
        yield _warn("policy.denies_all", "no allow or ask rule reaches anything under the ceiling")
    if document.posture is Posture.OFF:
        yield _warn("policy.unenforced", "posture off: everything but deny rules is let out")
    if document.posture in (Posture.PUBLIC, Posture.OFF) and document.budgets.keys().isdisjoint(ALWAYS):
        yield _warn("policy.no_budget", "any name is let out and no `default` budget limits how much")


def _outside(document: Document, rule: Rule) -> bool:
    roof = document.ceiling or ()
    return not any(a.covers(b) or b.covers(a) for each in roof for a in each.to for b in rule.to)


def _about_rules(document: Document) -> Iterator[Warn]:
    rules = list(document.of_kind(Kind.ALLOW))
    for rule in rules:
        for scope in rule.to:
            if reason := _too_wide(rule, scope):
                yield _warn("rule.wide", f"rule `{rule.id}` lets out {reason}")
                break
    above = Covers((scope, rule) for rule in document.rules for scope in rule.to)
    for rule in document.rules:
        shadow = _shadow(rule, above)
        if shadow is not None:
            yield _warn("rule.shadowed", f"rule `{rule.id}` never decides: `{shadow.id}` covers all of it")


def _too_wide(rule: Rule, scope: Scope) -> str:
    ports = mask_of(scope.ports or rule.ports)
    if scope.reach is Reach.ANY:
        return "every name"
    if scope.net is not None and scope.net.length <= WIDE_PREFIX[scope.net.family]:
        return f"the whole of {scope.net}"
    if scope.wide and ports & OPEN == OPEN:
        return f"every port below {scope}"
    return ""


_BEATS = {
    Kind.ALLOW: (Kind.DENY, Kind.ASK, Kind.ALLOW),
    Kind.ASK: (Kind.DENY,),
    Kind.DENY: (Kind.DENY,),
}


def _shadow(rule: Rule, above: Covers[Rule]) -> Rule | None:
    """A single rule that takes the whole of `rule` out of its hands."""
    known = {other.id: other for other in above.around(rule.to[0])}
    for other in list(known.values())[:MAX_COMPARED]:
        if other.id == rule.id or other.kind not in _BEATS[rule.kind]:
            continue
        same_kind = other.kind is rule.kind
        if same_kind and (
            not _no_narrower(other, rule) or (other.order > rule.order and _equal(other, rule))
        ):
            continue
        if _always(other, rule) and excess([other], rule) is None:
            return other
    return None


def _always(other: Rule, rule: Rule) -> bool:
    """Whether `other` speaks whenever, and to whomever, `rule` does."""
    return (
        set(rule.protocols) <= set(other.protocols)
        and (not other.agents or (bool(rule.agents) and rule.agents <= other.agents))
        and (not other.nodes or (bool(rule.nodes) and rule.nodes <= other.nodes))
        and other.when in (None, rule.when)
    )


def _no_narrower(other: Rule, rule: Rule) -> bool:
    """A budget of its own, private addresses or what may be spoken are reasons for a rule to stand
    beside a wider one."""
    spoken = all(permits(other, speech) for speech in Speech if permits(rule, speech))
    return rule.budget in ("", other.budget) and (other.private or not rule.private) and spoken


def _equal(other: Rule, rule: Rule) -> bool:
    return excess([rule], other) is None and _always(rule, other)
