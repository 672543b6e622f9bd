"""Rules flattened into verdict tables: per place, port interval and protocol, what holds there.

A `Slot` is what all matching rules of one spot come to: sorted, with their budgets and the ceiling
settled. Rules that look at more than the spot (except, agent, node, when) stay rules and are asked
each time. Tables are worked out when a place is first asked for: most of a large policy never is,
and working out everything ahead could take the square of its size.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Final

from exeat.policy.index import Cell, ScopeIndex
from exeat.policy.model import Decision, Verdict
from exeat.policy.rules import ALWAYS, Budget, Kind, Rule
from exeat.policy.scopes import port_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from exeat.policy.index import Entry
    from exeat.policy.leases import Lease
    from exeat.policy.model import Address
    from exeat.policy.usage import Peek

# What tables may hold, in references of eight bytes, before all are dropped and worked out again:
# some 40 MB. Rules over one another times ports asked for could otherwise fill the memory.
MAX_WEIGHT: Final = 5_000_000
_TABLE_WEIGHT: Final = 24
_SLOT_WEIGHT: Final = 48

# What sorts rules of one kind: most specific first, then document order, then id.
Rank = tuple[int, int, int, str]
Hit = tuple[Rank, Rule]


class Slot:
    """The matching rules of one spot, each kind with the attributed one first, and the leases."""

    __slots__ = ("_answers", "allow", "ask", "budgets", "ceiling", "deny", "hits", "leases", "loose", "peeks")

    def __init__(
        self,
        hits: Iterable[Hit],
        budgets: Budgets,
        *,
        loose: tuple[Hit, ...] = (),
        leases: Sequence[Lease] = (),
        ceiling: bool,
    ) -> None:
        """`ceiling`: whether there is one that has to be met by a rule among the hits."""
        self.hits = tuple(sorted(hits))
        self.loose = loose
        self.leases = leases
        groups: dict[Kind, list[Rule]] = {}
        for _, rule in self.hits:
            groups.setdefault(rule.kind, []).append(rule)
        self.deny = tuple(groups.get(Kind.DENY, ()))
        self.ask = tuple(groups.get(Kind.ASK, ()))
        self.allow = tuple(groups.get(Kind.ALLOW, ()))
        self.ceiling = not ceiling or Kind.CEILING in groups
        names = [rule.budget for rule in (*self.ask, *self.allow)] + [lease.budget for lease in leases]
        self.budgets, self.peeks = budgets.applying(names)
        self._answers: dict[tuple[str, str], Decision] | None = None

    def answer(self, verdict: Verdict, reason: str, by: str = "", lease: str = "") -> Decision:
        """The decision; `by` names the rule, lease or budget that decided."""
        if self._answers is None:
            self._answers = {}
        known = self._answers.get((reason, by))
        if known is None:
            groups = (self.deny, self.ask, self.allow, self.leases)
            matched = tuple([item.id for group in groups for item in group])
            known = Decision(verdict, reason, by, matched, self.budgets, lease)
            self._answers[reason, by] = known
        return known


class Budgets:
    """The budgets of a policy, by the sets of names that apply together."""

    def __init__(self, project: str, known: Mapping[str, Budget]) -> None:
        self._project = project
        self._known = known
        self._always = frozenset(name for name in ALWAYS if name in known)
        self._sets: dict[frozenset[str], tuple[tuple[str, ...], tuple[Peek, ...]]] = {}

    def applying(self, named: Iterable[str]) -> tuple[tuple[str, ...], tuple[Peek, ...]]:
        """`named` with `ALWAYS`, in order, and where to look before they let anything go on."""
        names = frozenset(name for name in named if name)
        found = self._sets.get(names)
        if found is not None:
            return found
        whole = sorted(names | self._always)
        peeks = [peek for name in whole for peek in self._peeks(name)]
        found = tuple(whole), tuple(peeks)
        if names <= self._known.keys():  # else a lease made the name up, and there is no end of those
            self._sets[names] = found
        return found

    def _peeks(self, name: str) -> Iterator[Peek]:
        if name not in self._known:
            yield ((self._project, name, ""), 1), -1  # never has room
            return
        for limit in self._known[name].limits:
            yield ((self._project, name, limit.counter), limit.window_ms), limit.amount


class _Table:
    """The slots of one cell: per port interval one for tcp and one for udp."""

    __slots__ = ("slots", "starts")

    def __init__(self, starts: list[int]) -> None:
        self.starts = starts
        self.slots: list[Slot | None] = [None] * (2 * len(starts))


class Verdicts:
    """All rules of a policy, ceiling included. Immutable to its user; answers are kept as they come."""

    def __init__(self, rules: Iterable[Rule], ceiling: Iterable[Rule] | None, budgets: Budgets) -> None:
        self.index = ScopeIndex((*rules, *(ceiling or ())))
        self._budgets = budgets
        self._ceiling = ceiling is not None
        self._nothing = Slot((), budgets, ceiling=self._ceiling)
        self._touched: list[Cell[Rule]] = []
        self.weight = 0  # of all tables, in references

    def at(self, target: str | Address, port: int, proto: str) -> Slot:
        """What the rules that look at nothing but the spot come to; `loose` are the others."""
        cell = self.index.cell(target)
        if cell is None:
            return self._nothing
        table: _Table = cell.table or self._new_table(cell)
        number = 2 * (bisect_right(table.starts, port) - 1) + (proto == "udp")
        return table.slots[number] or self._new_slot(cell, table, number, port, proto)

    def joined(self, slot: Slot, hits: Iterable[Hit], leases: Sequence[Lease] = ()) -> Slot:
        """The slot with further matches."""
        return Slot(
            (*slot.hits, *hits), self._budgets, loose=slot.loose, leases=leases, ceiling=self._ceiling
        )

    def _new_table(self, cell: Cell[Rule]) -> _Table:
        starts = {0}
        for entry in cell.entries():
            starts.update(edge for low, high in entry.ports for edge in (low, high + 1))
        table = _Table(sorted(starts))
        self._weigh(_TABLE_WEIGHT + 3 * len(starts))
        self._touched.append(cell)
        cell.table = table
        return table

    def _new_slot(self, cell: Cell[Rule], table: _Table, number: int, port: int, proto: str) -> Slot:
        fixed: list[Hit] = []
        loose: list[Hit] = []
        for hit in best_hits(cell.entries(), port):
            rule = hit[1]
            if proto in rule.protocols:
                plain = not (rule.except_ or rule.agents or rule.nodes or rule.when)
                (fixed if plain else loose).append(hit)
        slot = self._nothing
        if fixed or loose:
            slot = Slot(fixed, self._budgets, loose=tuple(loose), ceiling=self._ceiling)
            self._weigh(_SLOT_WEIGHT + 3 * len(fixed) + len(loose))
        table.slots[number] = slot
        return slot

    def _weigh(self, more: int) -> None:
        self.weight += more
        if self.weight > MAX_WEIGHT:
            for cell in self._touched:
                cell.table = None
            self._touched = []
            self.weight = 0


def best_hits(entries: Iterable[Entry[Rule]], port: int) -> Iterator[Hit]:
    """The rules among the entries whose ports admit `port`, each with the rank of its best scope."""
    best: dict[int, Entry[Rule]] = {}
    for entry in entries:
        if port_in(entry.ports, port):
            best.setdefault(id(entry.item), entry)  # from narrow to wide: the first scope is the best
    for rule, _, (exact, length) in best.values():
        yield (-exact, -length, rule.order, rule.id), rule
