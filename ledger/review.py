"""One day of a ledger, summed up for people: where bytes went, what was refused, who approved what.

Pure but for reading: records in, figures out. A day is of UTC, and a flow belongs to the day on
which it ended; what is still open at the end of the day is said, with no bytes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from exeat.ledger import records
from exeat.ledger.reader import Follower, begun_ns, dropped_before, find_segments, gone
from exeat.ledger.reconcile import differences
from exeat.ledger.records import Kind, Record
from exeat.ledger.since import first_segment, open_before

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

DAY_NS: Final = 86_400_000_000_000
_HOUR_NS: Final = 3_600_000_000_000
_SKIPPED: Final = frozenset({Kind.RESERVE, Kind.PROGRESS, Kind.RESUME, Kind.WITNESS})
_EVENTS: Final = frozenset({Kind.ANOMALY, Kind.GAP, Kind.KEY, Kind.RECONCILE, Kind.POLICY, Kind.ADMIN})
_ORDINARY: Final = frozenset({"link.add", "session.open", "session.close"})  # of each day's work
_MAX_EVENTS: Final = 500  # of each sort; `more` counts the rest
_MAX_PLACES: Final = 100_000  # destinations or refusals; a job that scans must not take all memory


class Place(NamedTuple):
    project: str
    host: str
    port: int


class Refusal(NamedTuple):
    """`lookup`: a name that was asked for, not a flow."""

    project: str
    host: str
    port: int
    reason: str
    rule: str
    lookup: bool


@dataclass(slots=True)
class Traffic:
    flows: int = 0
    bytes_out: int = 0
    bytes_in: int = 0
    cost_nano_usd: int = 0

    def add(self, record: Record) -> None:
        self.flows += 1
        self.bytes_out += record.bytes_out
        self.bytes_in += record.bytes_in
        self.cost_nano_usd += record.cost_nano_usd


class Entry(NamedTuple):
    """A record that is shown as it is."""

    seq: int
    record: Record


@dataclass(slots=True)
class Review:
    """`hours`: 24 times (bytes out, bytes in, refusals). `new`: places that were not known before."""

    day: str
    records: int = 0
    total: Traffic = field(default_factory=Traffic)
    places: dict[Place, Traffic] = field(default_factory=lambda: defaultdict(Traffic))
    refusals: Counter[Refusal] = field(default_factory=Counter)
    hours: list[list[int]] = field(default_factory=lambda: [[0, 0, 0] for _ in range(24)])
    leases: list[Entry] = field(default_factory=list)
    events: list[Entry] = field(default_factory=list)
    drifts: list[Entry] = field(default_factory=list)
    jobs: set[str] = field(default_factory=set)
    new: set[tuple[str, str]] = field(default_factory=set)
    orphaned: int = 0
    open: int = 0
    unpriced: int = 0  # flows without a tariff, where others have one
    dropped: int = 0  # records that are gone by rule; some of them may be of this day
    more: int = 0  # records that were counted and are not shown one by one

    @property
    def refused(self) -> int:
        return self.refusals.total()

    def projects(self) -> list[str]:
        """All that did anything, most bytes first."""
        weight: Counter[str] = Counter()
        for place, traffic in self.places.items():
            weight[place.project] += 1 + traffic.bytes_out + traffic.bytes_in
        for refusal in self.refusals:
            weight[refusal.project] += 0
        return [name for name, _ in sorted(weight.items(), key=lambda item: (-item[1], item[0]))]


def review(
    directory: Path, day: str, start_ns: int, known: Iterable[tuple[str, str]], into: Review | None = None
) -> Review:
    """The day that begins at `start_ns` (CLOCK_REALTIME); `known` are (project, host) seen before it.

    `into` adds to the review of another ledger. Raises OSError, ReaderError; ValueError on damage.
    """
    result = into or Review(day)
    result.dropped += _dropped(directory, start_ns)
    index = first_segment(directory, start_ns)
    opened = {record.flow: record for record in open_before(directory, index) if record.kind is Kind.OPEN}
    for seq, record in _read(directory, index):
        if record.t_real_ns >= start_ns + DAY_NS:
            continue  # no end: a clock may have been set back
        if record.kind is Kind.OPEN:
            opened[record.flow] = record
        before = opened.pop(record.flow, None) if record.kind in (Kind.CLOSE, Kind.ORPHAN) else None
        if record.t_real_ns >= start_ns:
            _take(result, seq, record, before)
    result.open += len(opened)
    seen = set(known)
    result.new |= {(place.project, place.host) for place in result.places} - seen
    return result


def _dropped(directory: Path, start_ns: int) -> int:
    """How many records were dropped, if those that are left begin after the day did."""
    count, paths = dropped_before(directory), find_segments(directory)
    first = next(path for path in paths if not gone(path))
    return count if count and begun_ns(first) > start_ns else 0


def _read(directory: Path, index: int) -> Iterator[tuple[int, Record]]:
    for seq, data in Follower(directory, index=index).poll():
        if records.recall(data).kind not in _SKIPPED:
            yield seq, records.decode(data)


def _take(result: Review, seq: int, record: Record, opened: Record | None) -> None:
    result.records += 1
    if record.job:
        result.jobs.add(record.job)
    hour = result.hours[record.t_real_ns % DAY_NS // _HOUR_NS]
    kind = record.kind
    if kind in (Kind.CLOSE, Kind.ORPHAN):
        _flow(result, seq, record, opened if kind is Kind.ORPHAN and opened else record)
        hour[0] += record.bytes_out
        hour[1] += record.bytes_in
    elif kind is Kind.DENY or (kind is Kind.DNS and record.decision == "deny"):
        dest = record.dest or records.Dest()
        refusal = (record.project, dest.host, dest.port, record.reason_code, record.rule_id)
        times = max(1, record.count)  # many of the same sort are summed in one record
        _count(result, Refusal(*refusal, lookup=kind is Kind.DNS), times)
        hour[2] += times
    elif kind is Kind.LEASE:
        _show(result, result.leases, seq, record)
    elif kind in _EVENTS and record.decision not in _ORDINARY:
        _show(result, result.events, seq, record)


def _flow(result: Review, seq: int, record: Record, about: Record) -> None:
    dest = about.dest or records.Dest()
    place = Place(about.project, dest.host, dest.port)
    result.total.add(record)
    if place in result.places or len(result.places) < _MAX_PLACES:
        result.places[place].add(record)
    else:
        result.more += 1
    result.orphaned += record.kind is Kind.ORPHAN
    result.unpriced += not record.tariff
    if record.kind is Kind.CLOSE and differences(record):
        _show(result, result.drifts, seq, record)


def _count(result: Review, refusal: Refusal, times: int) -> None:
    if refusal in result.refusals or len(result.refusals) < _MAX_PLACES:
        result.refusals[refusal] += times
    else:
        result.more += times


def _show(result: Review, rows: list[Entry], seq: int, record: Record) -> None:
    if len(rows) < _MAX_EVENTS:
        rows.append(Entry(seq, record))
    else:
        result.more += 1
