"""Which scopes cover a target, without looking at every rule.

Names: one dictionary for exact names and one for suffixes, walked label by label from the right.
Networks: one dictionary per prefix length; all covering prefixes count, not the longest only,
because any deny must win.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from exeat.policy.addresses import WIDTH
from exeat.policy.model import Address
from exeat.policy.rules import Grantable, excepted
from exeat.policy.scopes import Ports, Reach, Scope, port_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ItemT = TypeVar("ItemT", bound=Grantable)


class Entry(NamedTuple, Generic[ItemT]):
    """One scope of one item, with the ports that hold for it."""

    item: ItemT
    ports: Ports
    specificity: tuple[int, int]
    below_only: bool


class ScopeIndex(Generic[ItemT]):
    """Immutable after construction. Items are rules or leases."""

    def __init__(self, items: Iterable[ItemT]) -> None:
        self._exact: dict[str, list[Entry[ItemT]]] = {}
        self._suffix: dict[str, list[Entry[ItemT]]] = {}
        self._any: list[Entry[ItemT]] = []
        self._nets: dict[int, dict[int, dict[int, list[Entry[ItemT]]]]] = {4: {}, 6: {}}
        for item in items:
            for scope in item.to:
                self._add(item, scope)

    def _add(self, item: ItemT, scope: Scope) -> None:
        entry = Entry(item, scope.ports or item.ports, scope.specificity, scope.reach is Reach.BELOW)
        if scope.net is not None:
            shift = WIDTH[scope.net.family] - scope.net.length
            table = self._nets[scope.net.family].setdefault(shift, {})
            table.setdefault(scope.net.value >> shift, []).append(entry)
        elif scope.reach is Reach.ANY:
            self._any.append(entry)
        else:
            names = self._exact if scope.reach is Reach.HOST else self._suffix
            names.setdefault(scope.name, []).append(entry)

    def covering(self, target: str | Address) -> Iterator[Entry[ItemT]]:
        """Every entry whose scope covers the target, ports and except aside."""
        if isinstance(target, Address):
            for shift, table in self._nets[target.family].items():
                yield from table.get(target.value >> shift, ())
            return
        yield from self._any
        yield from self._exact.get(target, ())
        if not self._suffix:
            return
        for entry in self._suffix.get(target, ()):
            if not entry.below_only:
                yield entry
        start = target.find(".")
        while start >= 0:
            yield from self._suffix.get(target[start + 1 :], ())
            start = target.find(".", start + 1)

    def hits(self, target: str | Address, port: int) -> dict[str, tuple[tuple[int, int], ItemT]]:
        """Items whose scope, ports and except admit target:port, with their best specificity, by id."""
        found: dict[str, tuple[tuple[int, int], ItemT]] = {}
        for item, ports, specificity, _ in self.covering(target):
            if not port_in(ports, port) or (item.except_ and excepted(item, target, port)):
                continue
            known = found.get(item.id)
            if known is None or known[0] < specificity:
                found[item.id] = (specificity, item)
        return found
