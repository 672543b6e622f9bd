"""Which scopes cover a target, without looking at every rule.

The scopes cut names and addresses into places: a name and what lies below it, and the stretches
between the edges of networks. A place is a `Cell`: its own entries and the cell of the next wider
place. All covering places count, not the most specific only, because any deny must win. Finding the
cell is a dictionary look-up per label, or one bisection.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from exeat.policy.addresses import WIDTH
from exeat.policy.model import Address
from exeat.policy.rules import Grantable
from exeat.policy.scopes import Ports, Reach

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

ItemT = TypeVar("ItemT", bound=Grantable)


class Entry(NamedTuple, Generic[ItemT]):
    """One scope of one item, with the ports that hold for it."""

    item: ItemT
    ports: Ports
    specificity: tuple[int, int]


class Cell(Generic[ItemT]):
    """One place. `table` is room for what its reader has worked out; nothing here looks at it."""

    __slots__ = ("above", "own", "table")

    def __init__(self, own: tuple[Entry[ItemT], ...], above: Cell[ItemT] | None) -> None:
        self.own = own
        self.above = above
        self.table: Any = None

    def entries(self) -> Iterator[Entry[ItemT]]:
        """Everything that covers this place, from narrow to wide, except and ports aside."""
        cell: Cell[ItemT] | None = self
        while cell is not None:
            yield from cell.own
            cell = cell.above


_Entries = dict[Any, list[Entry[ItemT]]]


class ScopeIndex(Generic[ItemT]):
    """Immutable after construction. Items are rules or leases."""

    def __init__(self, items: Iterable[ItemT]) -> None:
        found: dict[Reach, _Entries[ItemT]] = {reach: {} for reach in Reach}
        for item in items:
            for scope in item.to:
                entry = Entry(item, scope.ports or item.ports, scope.specificity)
                found[scope.reach].setdefault(scope.net or scope.name, []).append(entry)
        everywhere = found[Reach.ANY].get("")
        self._any: Cell[ItemT] | None = Cell(tuple(everywhere), None) if everywhere else None
        self._here, self._below = _name_cells(found, self._any)
        # No suffix has more labels, so no more of a name need be looked at, however long it is.
        self._depth = max((name.count(".") + 1 for name in self._below), default=0)
        self._nets = {family: _net_cells(found[Reach.NET], family) for family in (4, 6)}

    def cell(self, target: str | Address) -> Cell[ItemT] | None:
        """The narrowest place that holds the target; None where no scope reaches."""
        if isinstance(target, Address):
            starts, cells = self._nets[target.family]
            return cells[bisect_right(starts, target.value) - 1]
        cell = self._here.get(target)
        if cell is not None or not self._depth:
            return self._any if cell is None else cell
        below = self._below
        tail = target
        if target.count(".") > self._depth:
            tail = "." + ".".join(target.rsplit(".", self._depth)[1:])
        start = tail.find(".") + 1
        while start:
            cell = below.get(tail[start:])
            if cell is not None:
                return cell
            start = tail.find(".", start) + 1
        return self._any

    def cells(self) -> Iterator[Cell[ItemT]]:
        """Every place."""
        if self._any is not None:
            yield self._any
        yield from self._here.values()
        yield from self._below.values()
        for _, cells in self._nets.values():
            yield from (cell for cell in cells if cell is not None)

    def covering(self, target: str | Address) -> Iterator[Entry[ItemT]]:
        """Every entry whose scope covers the target, ports and except aside."""
        cell = self.cell(target)
        return cell.entries() if cell is not None else iter(())


_Names = dict[str, Cell[ItemT]]


def _name_cells(
    found: Mapping[Reach, _Entries[ItemT]], wide: Cell[ItemT] | None
) -> tuple[_Names[ItemT], _Names[ItemT]]:
    """The cells of names themselves, and of all that lies below them."""
    hosts, trees, belows = found[Reach.HOST], found[Reach.TREE], found[Reach.BELOW]
    below: _Names[ItemT] = {}
    # Fewest labels first, so that the wider place is there before the narrower one asks for it.
    for name in sorted(trees.keys() | belows.keys(), key=lambda name: name.count(".")):
        own = (*trees.get(name, ()), *belows.get(name, ()))
        below[name] = Cell(own, _wider(name, below, wide))
    here: _Names[ItemT] = {}
    for name in hosts.keys() | trees.keys():
        own = (*hosts.get(name, ()), *trees.get(name, ()))
        here[name] = Cell(own, _wider(name, below, wide))
    return here, below


def _wider(name: str, below: _Names[ItemT], wide: Cell[ItemT] | None) -> Cell[ItemT] | None:
    start = name.find(".") + 1
    while start:
        cell = below.get(name[start:])
        if cell is not None:
            return cell
        start = name.find(".", start) + 1
    return wide


_Stretches = tuple[list[int], list[Cell[ItemT] | None]]


def _net_cells(found: _Entries[ItemT], family: int) -> _Stretches[ItemT]:
    """Elementary intervals: the cell of x is `cells[bisect_right(starts, x) - 1]`."""
    starts: list[int] = [0]
    cells: list[Cell[ItemT] | None] = [None]

    def begin(start: int, cell: Cell[ItemT] | None) -> None:
        if starts[-1] == start:
            cells[-1] = cell
        else:
            starts.append(start)
            cells.append(cell)

    open_: list[tuple[int, Cell[ItemT]]] = []  # (end, cell), the narrowest last

    def close(until: int) -> None:
        while open_ and open_[-1][0] <= until:
            end, _ = open_.pop()
            begin(end, open_[-1][1] if open_ else None)

    # Prefixes nest or are apart, so sorted by start and then from wide to narrow they form a stack.
    for net in sorted(net for net in found if net.family == family):
        close(net.value)
        cell = Cell(tuple(found[net]), open_[-1][1] if open_ else None)
        open_.append((net.value + (1 << (WIDTH[family] - net.length)), cell))
        begin(net.value, cell)
    close(1 << WIDTH[family])
    return starts, cells
