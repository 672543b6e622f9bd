"""`widens`: does a policy let anything out that another does not? Exact, with a concrete witness.

Every test of the language is constant on each of finitely many cells (host x address class x
protocol x agent x node x time), and in a cell authority is a set of ports; so comparing the sets
in one representative of each cell compares the policies. Budgets are compared by what they still
let through when they are used up. Cells that both policies see alike are skipped, and cells that
look alike share one computation.

The project's name, `hold`, `why` and rule ids give nothing away and are not compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from exeat.policy.addresses import embedded_v4
from exeat.policy.authority import LEVELS, NOTHING, Authority, Level, Place, Side, Who, new_tables
from exeat.policy.cells import cells
from exeat.policy.loosened import loosened_knob, lost_limits, softened_limits
from exeat.policy.model import Address, Sni
from exeat.policy.places import Covers, Host
from exeat.policy.portsets import lowest
from exeat.policy.representatives import (
    every_rule,
    is_public,
    isatap_places,
    literals_of,
    names_of,
    refused,
    resolved_of,
)
from exeat.policy.rules import ALWAYS, Kind, Rule
from exeat.policy.witness import Spent, Witness, witness_of

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator

    from exeat.policy.authority import Grip
    from exeat.policy.document import Document

__all__ = ["Level", "Witness", "widens"]


class Finding(NamedTuple):
    """A difference within one cell, whatever the host."""

    level: Level
    port: int
    who: Who
    what: str
    spent: Spent | None = None
    sni: str | Sni = Sni.UNSEEN

    @property
    def kind(self) -> Hashable:
        """What makes it another difference than one found elsewhere."""
        return self.level, self.what, self.who.speech


class Cell(NamedTuple):
    """A host, the address its name resolves to (None: public, and named by no rule), and its class."""

    host: Host
    address: Address | None = None
    public: bool = True


def widens(a: Document, b: Document, *, now_ms: int) -> Witness | None:
    """A flow that `b` gives away and `a` does not, at `now_ms` or later, of the widest kind that there
    is; None if there is none."""
    found = _Comparison(a, b, now_ms).run()
    return None if not found else _witness(a, b, *found[0])


def differences(a: Document, b: Document, *, now_ms: int) -> tuple[Witness, ...]:
    """One flow of each kind that `b` gives away and `a` does not, the widest first; first of all what
    `widens` gives. It looks everywhere, and so takes longer than `widens` where there is much."""
    found = _Comparison(a, b, now_ms, every=True).run()
    return tuple(_witness(a, b, cell, finding) for cell, finding in found)


def _witness(a: Document, b: Document, cell: Cell, finding: Finding) -> Witness:
    return witness_of(
        a,
        b,
        cell.host,
        cell.address,
        finding.port,
        finding.who,
        level=finding.level,
        what=finding.what,
        spent=finding.spent,
        sni=finding.sni,
    )


_Found = tuple[Cell, Finding]


class _Comparison:
    """`every`: look for all kinds of differences, not only until one cannot be widened."""

    def __init__(self, a: Document, b: Document, now_ms: int, *, every: bool = False) -> None:
        tables = new_tables()
        self._every = every
        self._traits = tables.traits.values
        self._a, self._b = Side(a, tables), Side(b, tables)
        self._now_ms = now_ms
        self._alike = _setting(a) == _setting(b)
        self._changed = _changed(a, b)
        self._lost, self._softened = lost_limits(a, b), softened_limits(a, b)
        self._memo: dict[tuple[Place, Place], list[Finding]] = {}
        self._found: dict[Hashable, _Found] = {}

    def run(self) -> list[_Found]:
        """The first difference of each kind that was met, the widest first."""
        if self._alike and not self._changed:
            return []
        self._look()
        return sorted(self._found.values(), key=lambda found: -found[1].level.rank)

    def _look(self) -> None:
        documents = (self._a.document, self._b.document)
        names = names_of(documents)
        literals = [*literals_of(documents), *self._isatap()]
        touched_names = self._touched(names)
        stages: tuple[Iterable[Cell], ...] = (
            map(Cell, touched_names),
            (Cell(place) for place in self._touched(literals) if not refused(place)),
            (Cell(name, each, public=False) for each in self._private() for name in touched_names),
            # Only what a name resolves to is left to make a difference: deny rules on networks.
            (Cell(name, *each) for each in self._judged_apart() for name in names),
        )
        for stage in stages:
            if self._search(stage):
                return
        found = self._looser_knob([*map(Cell, names), *map(Cell, literals)])
        if found is not None:
            self._found.setdefault(found[1].kind, found)

    def _touched(self, hosts: Iterable[Host]) -> list[Host]:
        """The hosts on which the policies may differ: all of them if more than rules changed."""
        if not self._alike:
            return list(hosts)
        changed = Covers((scope, None) for rule in self._changed for scope in rule.to)
        return [host for host in hosts if any(map(changed.of, _judged(host)))]

    def _isatap(self) -> Iterator[Address]:
        """Only deny rules that changed can make these differ from the plain addresses around them."""
        changed = [scope.net for rule in self._changed if rule.kind is Kind.DENY for scope in rule.to]
        documents = (self._a.document, self._b.document)
        prefixes = {scope.net for each in documents for rule in every_rule(each) for scope in rule.to}
        return isatap_places(filter(None, prefixes), filter(None, changed))

    def _private(self) -> Iterator[Address]:
        """One address that is not public and that no rule denies; where all are denied, all kinds."""
        kinds: dict[tuple[Hashable, Hashable], Address] = {}
        for address in resolved_of((self._a.document, self._b.document)):
            if not is_public(address) and not refused(address):
                mine, theirs = self._denials(self._a, address), self._denials(self._b, address)
                if mine == theirs == _UNDENIED:
                    return iter([address])
                kinds.setdefault((mine, theirs), address)
        return iter(kinds.values())

    def _judged_apart(self) -> Iterator[tuple[Address, bool]]:
        """One address of each kind that `a` denies more of than `b`, and whether it is public."""
        known: set[tuple[Hashable, ...]] = set()
        for address in self._touched(resolved_of((self._a.document, self._b.document))):
            if not isinstance(address, Address) or refused(address):
                continue
            mine, theirs = self._denials(self._a, address), self._denials(self._b, address)
            kind = (is_public(address), mine, theirs)
            if kind not in known and not self._covered(mine, theirs):
                known.add(kind)
                yield address, is_public(address)

    def _denials(self, side: Side, address: Address) -> _Denials:
        grips, closed = side.denials(address)
        return frozenset(grips), closed, side.excepts_names(address)

    def _covered(self, mine: _Denials, theirs: _Denials) -> bool:
        """Whether theirs plainly denies all that mine does."""
        return mine[0] <= theirs[0] and not mine[1] & ~theirs[1] and not theirs[2]

    # -- cells

    def _search(self, cells_: Iterable[Cell]) -> bool:
        """Look for findings of kinds not met so far; whether the search is over."""
        for cell in cells_:
            before = self._a.place(cell.host, cell.address, public=cell.public)
            after = self._b.place(cell.host, cell.address, public=cell.public)
            if self._alike and before == after:
                continue
            key = (before, after)
            if key not in self._memo:
                self._memo[key] = self._difference(before, after)
            for finding in self._memo[key]:
                self._found.setdefault(finding.kind, (cell, finding))
                if finding.level is Level.ALLOW and not self._every:
                    return True
        return False

    def _difference(self, before: Place, after: Place) -> list[Finding]:
        found: dict[Hashable, Finding] = {}
        for who in self._cells(before, after):
            theirs = self._b.authority(after, who)
            if theirs == NOTHING:
                continue
            for finding in self._findings(self._a.authority(before, who), theirs, who):
                found.setdefault(finding.kind, finding)
                if finding.level is Level.ALLOW and not self._every:
                    return [finding]
        return list(found.values())

    def _cells(self, *places: Place) -> Iterator[Who]:
        numbers = {number for place in places for number, _ in (*place.rules, *(place.ceiling or ()))}
        expiries = (self._a.document.expires_ms, self._b.document.expires_ms)
        return cells([self._traits[number] for number in sorted(numbers)], expiries, self._now_ms)

    def _findings(self, mine: Authority, theirs: Authority, who: Who) -> Iterator[Finding]:
        for level in LEVELS:
            more = theirs.at_least(level) & ~mine.at_least(level)
            if more:
                yield Finding(level, lowest(more), who, f"{level} instead of {_level_at(mine, lowest(more))}")
                break
        if mine.terms and theirs.terms:
            yield from _softer_terms(mine, theirs, who)
        if mine.budgets:
            yield from self._freer_budgets(mine, theirs, who)

    def _freer_budgets(self, mine: Authority, theirs: Authority, who: Who) -> Iterator[Finding]:
        """What theirs still lets through when a budget of mine is used up."""
        charged = dict(theirs.budgets)
        for name, ports in mine.budgets:
            budget = self._a.document.budgets.get(name)
            if budget is None or not budget.limits:
                continue
            lost = self._lost.get(name)
            left = ports if lost is not None else ports & ~charged.get(name, 0)
            limit = lost if lost is not None else budget.limits[0]
            spent = Spent(name, limit.counter, limit.window_ms, limit.amount)
            for level in LEVELS:
                # A soft budget of mine still asks when it is used up. Beyond what policies open by
                # themselves only `default` ones count: a rule's budget goes when the rule goes.
                if budget.soft and level is not Level.ALLOW:
                    break
                if level is Level.GRANTABLE and name not in ALWAYS:
                    break
                freer = left & theirs.at_least(level)
                if freer:
                    yield Finding(level, lowest(freer), who, f"no longer held by budget {name}", spent)
                    break
            soft = self._softened.get(name)
            given = theirs.grantable if name in ALWAYS else theirs.allow | theirs.ask
            if soft is not None and (asked := ports & charged.get(name, 0) & given):
                spent = Spent(name, soft.counter, soft.window_ms, soft.amount)
                yield Finding(Level.ASK, lowest(asked), who, f"budget {name} asks, not denies", spent)

    # -- the preset's knobs

    def _looser_knob(self, cells_: list[Cell]) -> _Found | None:
        """Knobs matter wherever the policy gives anything: shown on the most that it gives."""
        loosened = loosened_knob(self._a.document, self._b.document)
        if not loosened:
            return None
        what, sni, most = loosened
        best: _Found | None = None
        for cell in cells_:
            if refused(cell.host):
                continue
            place = self._b.place(cell.host)
            for who in self._cells(place):
                theirs = self._b.authority(place, who)
                for level in LEVELS:
                    if theirs.at_least(level) and (best is None or level.rank > best[1].level.rank):
                        best = (cell, Finding(level, lowest(theirs.at_least(level)), who, what, None, sni))
                        break
                if best is not None and best[1].level.rank >= most.rank:
                    return (best[0], best[1]._replace(level=min(most, best[1].level, key=lambda x: x.rank)))
        return best


_Denials = tuple[frozenset["Grip"], int, tuple[str, ...]]
_UNDENIED: _Denials = (frozenset(), 0, ())


def _judged(host: Host) -> tuple[Host, ...]:
    return (host, *embedded_v4(host)) if isinstance(host, Address) else (host,)


def _setting(document: Document) -> Hashable:
    """Everything of a document that can matter at every host."""
    return (
        document.posture,
        document.default,
        document.preset,
        document.expires_ms,
        document.ceiling is None,
        frozenset(document.budgets.values()),
        frozenset(document.control),
    )


def _changed(a: Document, b: Document) -> list[Rule]:
    """The rules of either side that the other does not have. Among asks the order matters too."""
    mine, theirs = (
        {_content(rule): rule for rule in every_rule(a)},
        {_content(rule): rule for rule in every_rule(b)},
    )
    changed = [rule for key, rule in mine.items() if key not in theirs]
    changed += [rule for key, rule in theirs.items() if key not in mine]
    asks = [
        [key for key in side if key[0] is Kind.ASK and key in mine and key in theirs]
        for side in (mine, theirs)
    ]
    if asks[0] != asks[1]:
        changed += [rule for rule in a.rules if rule.kind is Kind.ASK]
    return changed


def _content(rule: Rule) -> tuple[Hashable, ...]:
    return (
        rule.kind,
        rule.to,
        rule.ports,
        rule.protocols,
        rule.except_,
        rule.agents,
        rule.nodes,
        rule.when,
        rule.budget,
        rule.private,
        rule.raw,
        rule.ech,
        rule.direct,
        rule.records,
        rule.approvals,
        rule.max_ttl_ms,
    )


def _softer_terms(mine: Authority, theirs: Authority, who: Who) -> Iterator[Finding]:
    for now in theirs.terms:
        for was in mine.terms:
            both = now.ports & was.ports
            if both and now.approvals < was.approvals:
                what = f"{now.approvals} instead of {was.approvals} approvals"
                yield Finding(Level.ASK, lowest(both), who, what)
            elif both and now.max_ttl_ms > was.max_ttl_ms:
                what = f"leases of up to {now.max_ttl_ms}ms instead of {was.max_ttl_ms}ms"
                yield Finding(Level.ASK, lowest(both), who, what)


def _level_at(authority: Authority, port: int) -> Level:
    for level in LEVELS:
        if authority.at_least(level) >> port & 1:
            return level
    return Level.NONE
