"""Finitely many hosts that stand for all of them.

Whether a scope covers a host depends only on which names of the policies are a suffix of it, or
which networks hold it. So each name that occurs, one fresh name below it, two names that nothing
mentions, and the first address of every interval between network edges meet every combination of
scopes there is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from exeat.policy.addresses import WIDTH, collapse
from exeat.policy.model import Address
from exeat.policy.names import MAX_NAME
from exeat.policy.scopes import Reach, Scope

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from exeat.policy.addresses import Cidr

ItemT = TypeVar("ItemT")
Host = str | Address
_TOPS = ("com", "net", "org", "io", "dev")


class Covers(Generic[ItemT]):
    """Which of many scopes cover a host; `item` is whatever the caller filed with the scope."""

    def __init__(self, filed: Iterable[tuple[Scope, ItemT]]) -> None:
        self._exact: dict[str, list[ItemT]] = {}
        self._below: dict[str, list[ItemT]] = {}
        self._any: list[ItemT] = []
        self._nets: dict[int, dict[int, dict[int, list[ItemT]]]] = {4: {}, 6: {}}
        for scope, item in filed:
            self._add(scope, item)

    def _add(self, scope: Scope, item: ItemT) -> None:
        if scope.net is not None:
            shift = WIDTH[scope.net.family] - scope.net.length
            table = self._nets[scope.net.family].setdefault(shift, {})
            table.setdefault(scope.net.value >> shift, []).append(item)
        elif scope.reach is Reach.ANY:
            self._any.append(item)
        else:
            if scope.reach is not Reach.BELOW:
                self._exact.setdefault(scope.name, []).append(item)
            if scope.reach is not Reach.HOST:
                self._below.setdefault(scope.name, []).append(item)

    def of(self, host: Host) -> list[ItemT]:
        if isinstance(host, Address):
            found: list[ItemT] = []
            for shift, table in self._nets[host.family].items():
                found += table.get(host.value >> shift, ())
            return found
        found = [*self._any, *self._exact.get(host, ())]
        below = self._below
        if below:
            start = host.find(".")
            while start >= 0:
                items = below.get(host[start + 1 :])
                if items:
                    found += items
                start = host.find(".", start + 1)
        return found

    def around(self, scope: Scope) -> list[ItemT]:
        """What is filed under scopes that cover all of `scope`, and perhaps more."""
        if scope.net is not None:
            return self.of(Address(scope.net.family, scope.net.value))
        if scope.reach is Reach.ANY:
            return list(self._any)
        return self.of(scope.name if scope.reach is not Reach.BELOW else f"a.{scope.name}")


def name_places(names: Iterable[str]) -> Iterator[str]:
    """One of two and one of one label that are nowhere mentioned; each name, and one below each."""
    known = set(names)
    labels = {label for name in known for label in name.split(".")}
    fresh = _fresh(("any", "a"), labels)
    top = _fresh(_TOPS, labels)
    yield f"{fresh}.{top}"
    yield top
    for name in sorted(known, key=lambda name: (name.count("."), name)):
        yield name
        below = f"{fresh}.{name}" if len(fresh) + 1 + len(name) <= MAX_NAME else f"{_short(labels)}.{name}"
        if len(below) <= MAX_NAME:  # else there is no room for anything below it
            yield below


def _fresh(wanted: tuple[str, ...], taken: set[str]) -> str:
    """A label that is no label of any name, so that it starts nothing that is mentioned."""
    for label in wanted:
        if label not in taken:
            return label
    number = 0
    while f"{wanted[0]}{number}" in taken:
        number += 1
    return f"{wanted[0]}{number}"


def _short(taken: set[str]) -> str:
    free = [label for label in "abcdefghijklmnopqrstuvwxyz0123456789_" if label not in taken]
    return free[0] if free else "a"


def edges(nets: Iterable[Cidr]) -> set[Address]:
    """The first address of each network, and the one behind its last."""
    found = set()
    for net in nets:
        found.add(Address(net.family, net.value))
        behind = net.value + (1 << (WIDTH[net.family] - net.length))
        if behind < 1 << WIDTH[net.family]:
            found.add(Address(net.family, behind))
    return found


def address_places(nets: Iterable[Cidr]) -> list[Address]:
    """The first address of every interval between edges. v4-mapped IPv6 is IPv4 and stands for itself."""
    found = edges(nets) | {Address(4, 0), Address(6, 0)}
    return sorted(place for place in found if collapse(place) == place)
