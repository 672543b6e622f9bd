"""Direct flows against a second book: what conntrack counted of the connections with their pinhole's mark.

Their bytes in the ledger are those that nftables let through the pinhole, headers among them. Conntrack
sees each packet before the pinhole judges it: what it has more was refused there, at the end of the time
or the bytes. What it has less nobody explains. Pure: records and connections in, findings out.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final, NamedTuple

from exeat.ledger.records import Kind, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from exeat.ledger.conntrack import Tracked

PINHOLE: Final = "pinhole "  # in `src` of a direct flow, before the pinhole's number


class DirectFinding(NamedTuple):
    """A direct flow that ended: `refused` are bytes (out, in) that conntrack saw and the pinhole did not let
    through; below 0 the ledger has more than the kernel. None: conntrack counted no bytes of it."""

    seq: int
    record: Record
    refused: tuple[int, int] | None

    @property
    def unexplained(self) -> int:
        return sum(-each for each in self.refused or () if each < 0)


class DirectBooks:
    """Takes flows that open and close, and connections that end. `mark_of` is of a pinhole's number."""

    def __init__(self, mark_of: Callable[[int], int]) -> None:
        self._mark_of = mark_of
        self._opened: set[bytes] = set()
        self._closed: list[tuple[int, int, Record]] = []
        self._ended: list[Tracked] = []

    def record(self, seq: int, record: Record) -> None:
        number = record.src.removeprefix(PINHOLE)
        if number == record.src or not number.isdecimal():
            return
        if record.kind is Kind.OPEN:
            self._opened.add(record.flow)
        elif record.kind is Kind.CLOSE and record.flow in self._opened:  # else part of it was told to nobody
            self._closed.append((self._mark_of(int(number)), seq, record))

    def ended(self, connection: Tracked) -> None:
        self._ended.append(connection)

    def settle(self, living: Iterable[Tracked]) -> list[DirectFinding]:
        """All flows that opened and closed meanwhile; `living` are the connections that are still there."""
        sums: defaultdict[int, list[int]] = defaultdict(lambda: [0, 0])
        uncounted = set[int]()
        for connection in (*self._ended, *living):
            if connection.out is None or connection.into is None:
                uncounted.add(connection.mark)
            else:
                sums[connection.mark][0] += connection.out
                sums[connection.mark][1] += connection.into
        return [
            DirectFinding(seq, record, None if mark in uncounted else _more(sums[mark], record))
            for mark, seq, record in self._closed
        ]


def _more(counted: list[int], record: Record) -> tuple[int, int]:
    return counted[0] - record.bytes_out, counted[1] - record.bytes_in
