"""Marks of what was sent: close together where that was lately, far apart where long ago. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

Mark = tuple[int, str]


class Marks(tuple[Mark, ...]):
    """(end, leaf) with rising `end`: the record before number `end` has this leaf hash, in hex."""

    __slots__ = ()

    def add(self, end: int, leaf: str) -> Marks:
        """With a new last one. Of those that lie between 2^n and 2^(n+1) records back, the oldest stays."""
        kept: dict[int, Mark] = {}
        for mark in self:
            if mark[0] < end:
                kept.setdefault((end - mark[0]).bit_length(), mark)
        return Marks((*kept.values(), (end, leaf)))

    def newest(self, holds: Callable[[int, str], bool]) -> int:
        """The `end` of the newest mark that holds; 0 if none does."""
        return next((end for end, leaf in reversed(self) if holds(end, leaf)), 0)

    def until(self, end: int) -> Marks:
        return Marks(mark for mark in self if mark[0] <= end)
