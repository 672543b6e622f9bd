"""The records from some moment on, without reading the segments that are older.

Segments are in the order of arrival and their heads say when they were begun, by a wall clock that
may have been set back: where the heads show that, everything from there on is read. A flow that was
open when the first segment to be read began is told of by its `open` record, fetched from where it
stands, and by what it had reserved by then.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

from exeat.ledger import flows, segment
from exeat.ledger.reader import (
    Follower,
    ReaderError,
    begun_ns,
    dropped_before,
    find_segments,
    segment_of,
)
from exeat.ledger.records import Kind, Record, decode, outline

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Clocks are set back a little all the time; a moment is taken to be this much earlier than it is said to be.
_SLACK_NS: Final = 5_000_000_000
_REMEMBERED: Final = 4096  # records by who, where and why


class Gist(NamedTuple):
    """What counts of a record. `who` is it, or another that says the same from `job` to `node`, but `src`."""

    kind: Kind
    t_real_ns: int
    flow: bytes
    bytes_out: int
    bytes_in: int
    reserved: int
    times: int  # the record's `count`
    cost_nano_usd: int
    who: Record

    @classmethod
    def of(cls, record: Record) -> Gist:
        """Of a record that is decoded already."""
        counts = record.bytes_out, record.bytes_in, record.reserved, record.count, record.cost_nano_usd
        return cls(record.kind, record.t_real_ns, record.flow, *counts, record)


class _Reading:
    """Decodes what has not been seen yet, which is little: jobs do the same things again and again."""

    def __init__(self) -> None:
        self._known: dict[bytes, Record] = {}

    def gist(self, data: bytes) -> Gist:
        found = outline(data)
        if found is None:
            return Gist.of(decode(data))
        who = self._known.get(found.who)
        if who is None:
            who = decode(data)
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[found.who] = who
        kind, real, flow, out, into, reserved, _, count, cost = found
        return Gist(Kind(kind), real, flow, out, into, reserved, count, cost, who)


def gists_since(root: Path, since_ns: int) -> Iterator[Gist]:
    """The records of every ledger in `root` (the folder `ledger` of a state directory), oldest first.

    All that arrived at `since_ns` (CLOCK_REALTIME) or later, and others before them. A flow that was
    open before the first of them is one `open` and one `reserve` with its counts so far. Raises
    OSError; ValueError or ReaderError on damage.
    """
    for directory in sorted(path.parent for path in root.glob("*/seg")):
        yield from gists(directory, since_ns)


def gists(directory: Path, since_ns: int, before: int | None = None) -> Iterator[Gist]:
    """As `gists_since`, of one ledger, and up to the record number `before`."""
    reading = _Reading()
    index = first_segment(directory, since_ns)
    yield from map(Gist.of, open_before(directory, index))
    for seq, data in Follower(directory, index=index).poll():
        if before is not None and seq >= before:
            return
        yield reading.gist(data)


def first_segment(directory: Path, since_ns: int) -> int:
    """The index of the segment from which on nothing may be left out."""
    begun = [begun_ns(path) for path in find_segments(directory)]
    for index, (this, following) in enumerate(pairwise(begun)):
        if following >= since_ns - _SLACK_NS or following < this - _SLACK_NS:
            return index
    return len(begun) - 1


def open_before(directory: Path, index: int) -> Iterator[Record]:
    """What is known at the start of a segment of the flows that can still spend, oldest first."""
    data = find_segments(directory)[index].read_bytes()
    head = next(segment.scan(data), None)
    if head is None:
        raise ReaderError(f"{directory}: segment {index} has no head")
    table = flows.FlowTable()
    table.restore(segment.parse_head(head).carry)
    dropped = dropped_before(directory)  # an open flow's records are not; long settled ones' may be
    unfinished = [each for each in table.unfinished() if each[1].open_seq >= dropped]
    opened = _entries(directory, {state.open_seq for _, state in unfinished})
    for flow, state in sorted(unfinished, key=lambda item: item[1].open_seq):
        record = opened[state.open_seq]
        yield record
        if isinstance(state, flows.OpenFlow):
            yield Record(
                Kind.RESERVE,
                t_real_ns=record.t_real_ns,
                flow=flow,
                bytes_out=state.bytes_out,
                bytes_in=state.bytes_in,
                reserved=state.reserved,
            )


def _entries(directory: Path, wanted: set[int]) -> dict[int, Record]:
    """The records of these numbers; each segment that holds one is read once."""
    found: dict[int, Record] = {}
    for seq in sorted(wanted):
        if seq in found:
            continue
        data = find_segments(directory)[segment_of(directory, seq)].read_bytes()
        for frame in segment.scan(data):
            if frame.kind == segment.RECORD and frame.seq in wanted:
                found[frame.seq] = decode(frame.payload)
        if seq not in found:
            raise ReaderError(f"{directory}: record {seq} is missing")
    return found
