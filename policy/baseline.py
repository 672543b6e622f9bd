"""The organisation's baseline over the document of a project.

`under` gives one document that lets out what both do, so that nothing else needs to know that there
is a baseline: it is decided by, compared and shown like any other. Ceilings are met scope by scope;
deny rules, control endpoints and the `default` budget join the project's own, under names that no file can
use; so do the folders that it denies. What the baseline allows or groups says nothing about other
projects, nor what it asks, but for how many must approve a lease there and how long one may last
(`policy.terms`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from exeat.policy.containment import meet
from exeat.policy.document import Document, format_endpoint
from exeat.policy.rules import BASELINE_BUDGET, DEFAULT_BUDGET, Budget, Kind, Rule

if TYPE_CHECKING:
    from collections.abc import Mapping

BASELINE: Final = "baseline"  # the `project` of the document that holds for all others
MARK: Final = "baseline/"  # before the ids of its deny rules, in answers and records


def under(document: Document, baseline: Document | None) -> Document:
    """The document as the baseline lets it be; its digest stays that of the project's own."""
    if baseline is None:
        return document
    expiries = [each.expires_ms for each in (document, baseline) if each.expires_ms is not None]
    control = {*document.control, *baseline.control}
    return replace(
        document,
        expires_ms=min(expiries, default=None),
        rules=(*document.rules, *_denies(baseline, len(document.rules))),
        ceiling=_both(document.ceiling, baseline.ceiling),
        budgets={**document.budgets, **_default(baseline.budgets)},
        control=tuple(sorted(control, key=format_endpoint)),
        files=document.files.under(baseline.files),
        own_digest=document.digest,
    )


def files_under(document: Document, baseline: Document | None) -> Document:
    """`under`, as far as folders go; it costs nothing, however long the documents are."""
    if baseline is None:
        return document
    expiries = [each.expires_ms for each in (document, baseline) if each.expires_ms is not None]
    files = document.files.under(baseline.files)
    return replace(document, expires_ms=min(expiries, default=None), files=files)


def _denies(baseline: Document, first: int) -> tuple[Rule, ...]:
    return tuple(
        replace(rule, id=f"{MARK}{rule.id}", order=order)
        for order, rule in enumerate(baseline.of_kind(Kind.DENY), first)
    )


def _default(budgets: Mapping[str, Budget]) -> dict[str, Budget]:
    budget = budgets.get(DEFAULT_BUDGET)
    return {} if budget is None else {BASELINE_BUDGET: replace(budget, name=BASELINE_BUDGET)}


def _both(one: tuple[Rule, ...] | None, two: tuple[Rule, ...] | None) -> tuple[Rule, ...] | None:
    """A ceiling that covers what both do. A ceiling rule looks at place and protocol only."""
    if one is None or two is None:
        return two if one is None else one
    met = (_rule(a, b) for a in one for b in two)
    return tuple(replace(rule, order=order) for order, rule in enumerate(rule for rule in met if rule))


def _rule(a: Rule, b: Rule) -> Rule | None:
    protocols = tuple(proto for proto in a.protocols if proto in b.protocols)
    to = dict.fromkeys(both for x in a.to for y in b.to if (both := meet(a, x, b, y)))
    if not protocols or not to:
        return None
    return replace(
        a,
        id=f"{a.id}/{b.id}",
        to=tuple(to),
        protocols=protocols,
        except_=tuple(dict.fromkeys((*a.except_, *b.except_))),
        broad=a.broad or b.broad,
        why="",
    )
