"""An SQLite index for questions: derived from the segments, thrown away and made anew at any time.

One row for every refusal, lookup and settled flow (an `open` only until its flow is settled), one
for each other event. Who, where and why are the same for many rows, so they stand in a table of
their own; what of them does not change from one run of a job to the next is a *place*. For each
place there are sums per hour (`hour`), written in the same transaction as the rows they are of:
`ledger.questions` asks them where it can. Never the truth: what the index says can be looked up in
the ledger by `seq`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from typing import TYPE_CHECKING, Final, NamedTuple

from exeat.ledger import records
from exeat.ledger.quick import Outline
from exeat.ledger.reader import Follower, dropped_before, segment_of
from exeat.ledger.records import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from exeat.ledger.reader import Entry

HOUR_MS: Final = 3_600_000
PLACE: Final = ("project", "agent", "host", "port", "verdict", "reason", "rule", "node")
WHO: Final = (
    "project",
    "job",
    "agent",
    "episode",
    "lease",
    "host",
    "port",
    "verdict",
    "reason",
    "rule",
    "node",
)
_VERSION: Final = 4
_BATCH: Final = 50_000
_REMEMBERED: Final = 65_536  # of `who`
_AT_ONCE: Final = 500  # values in one statement
# Of bytes, a count or nano-USD in one record (70 TB, 70,000 USD). More than that is no measurement, and sums
# of 64 bits with a sign must hold it 100,000 times; the record itself keeps what it says.
_MOST: Final = 1 << 46
# Their encoding tells one row of `who` from another, in the order of the records' layout.
_WHO_FIELDS: Final = (
    *("job", "project", "agent", "dest", "decision", "reason_code", "rule_id", "lease_id"),
    *("generation", "policy_digest", "posture", "name_source", "episode", "node"),
)
_PASSING: Final = frozenset({Kind.RESERVE, Kind.PROGRESS, Kind.RESUME})
OF_FLOWS: Final = frozenset({Kind.OPEN, Kind.CLOSE, Kind.ORPHAN})
SETTLED: Final = frozenset({Kind.CLOSE, Kind.ORPHAN})
# In `hour`, `entries` is how many rows of `entry` the sums are of, `others` as `others_in` counts them.
_SCHEMA: Final = f"""
create table place (id integer primary key, {", ".join(PLACE)}, unique ({", ".join(PLACE)}));
create table who (id integer primary key, bytes blob unique, place integer, {", ".join(WHO)});
create table entry (seq integer primary key, t integer, kind integer, who integer,
                    bytes_out integer, bytes_in integer, count integer, cost integer);
create table hour (hour integer, place integer, kind integer, entries integer,
                   bytes_out integer, bytes_in integer, others integer, cost integer,
                   primary key (hour, place, kind)) without rowid;
create table flow (id blob primary key, seq integer, who integer) without rowid;
create index entry_t on entry (t);
create table state (next integer, t integer);
insert into state values (0, 0);
pragma user_version = {_VERSION};
"""  # noqa: S608 - names are ours
_INSERT_WHO: Final = f"insert into who (bytes, place, {', '.join(WHO)}) values (?, ?{', ?' * len(WHO)})"  # noqa: S608
_INSERT_PLACE: Final = f"insert into place ({', '.join(PLACE)}) values (?{', ?' * (len(PLACE) - 1)})"  # noqa: S608
_FIND_PLACE: Final = f"select id from place where {' and '.join(f'{name} = ?' for name in PLACE)}"  # noqa: S608
_ADD_HOUR: Final = """
insert into hour values (?, ?, ?, ?, ?, ?, ?, ?) on conflict do update set
  entries = entries + excluded.entries,
  bytes_out = bytes_out + excluded.bytes_out, bytes_in = bytes_in + excluded.bytes_in,
  others = others + excluded.others, cost = cost + excluded.cost
"""


class _Row(NamedTuple):
    """A row of `entry`. Time in milliseconds, cost in nano-USD."""

    seq: int
    t: int
    kind: int
    who: int
    bytes_out: int
    bytes_in: int
    times: int
    cost: int


class Fresh(NamedTuple):
    """How far the index has come: records taken in, and the time (ms) of the last of them."""

    records: int
    t: int


def others_in(kind: int, count: int) -> int:
    """How many events a row stands for that are no flows."""
    return 0 if kind in OF_FLOWS else max(count, 1)


class _Sums:
    """What a batch changes in the sums per hour."""

    def __init__(self) -> None:
        self._changes: dict[tuple[int, int, int], list[int]] = {}

    def add(self, row: _Row, place: int, sign: int) -> None:
        _, t, kind, _, out, into, count, cost = row
        sums = self._changes.setdefault((t // HOUR_MS, place, kind), [0, 0, 0, 0, 0])
        sums[0] += sign
        sums[1] += sign * out
        sums[2] += sign * into
        sums[3] += sign * others_in(kind, count)
        sums[4] += sign * cost

    def write(self, db: sqlite3.Connection) -> None:
        changed = {key: sums for key, sums in self._changes.items() if any(sums)}
        db.executemany(_ADD_HOUR, [(*key, *sums) for key, sums in changed.items()])
        fewer = [key for key, sums in changed.items() if sums[0] < 0]
        db.executemany("delete from hour where hour = ? and place = ? and kind = ? and entries = 0", fewer)


class Index:
    """The index of the ledger in `directory`, kept in the file `path` (or in memory: None).

    Raises sqlite3.Error, OSError, ReaderError. A file of another version or of damaged content is
    made anew by `open_index`.
    """

    def __init__(self, directory: Path, path: Path | None) -> None:
        self._directory = directory
        self.db = sqlite3.connect(str(path) if path else ":memory:", isolation_level=None)
        self.db.execute("pragma journal_mode = off" if path is None else "pragma journal_mode = wal")
        self.db.execute("pragma synchronous = normal")
        if self.db.execute("pragma user_version").fetchone()[0] == 0:
            self.db.executescript(f"begin; {_SCHEMA} commit;")
        elif self.db.execute("pragma user_version").fetchone()[0] != _VERSION:
            raise sqlite3.DatabaseError("an index of another version")
        self._who: dict[bytes, tuple[int, int]] = {}  # number of the row, and of its place
        self._place_of: dict[int, int] = {}
        self._flows: dict[bytes, tuple[int, int]] = {}  # the row that stands for it, and its `who`

    def catch_up(self) -> int:
        """Take in what has been committed since; how many records there were. One process at a time."""
        next_seq = self.fresh().records
        self._forget(dropped_before(self._directory))
        self._flows = {flow: (seq, who) for flow, seq, who in self.db.execute("select * from flow")}
        follower = Follower(self._directory, index=segment_of(self._directory, next_seq))
        taken = 0
        batch: list[Entry] = []
        for entry in follower.poll():
            if entry[0] < next_seq:
                continue
            batch.append(entry)
            taken += 1
            if len(batch) == _BATCH:
                self._take(batch)
                batch = []
        self._take(batch)
        return taken

    def _forget(self, first: int) -> None:
        """Leave out the rows of records that were dropped: those before `first`."""
        while old := self.db.execute(
            "select seq from entry where seq < ? limit ?", (first, _BATCH)
        ).fetchall():
            self.db.execute("begin")
            numbers, sums = [seq for (seq,) in old], _Sums()
            for row in self._stored(numbers):
                sums.add(row, self._place(row.who), -1)
            sums.write(self.db)
            self.db.executemany("delete from entry where seq = ?", old)
            self.db.executemany("delete from flow where seq = ?", old)
            self.db.execute("commit")

    def fresh(self) -> Fresh:
        return Fresh(*self.db.execute("select next, t from state").fetchone())

    def close(self) -> None:
        self.db.close()

    def _take(self, batch: list[Entry]) -> None:
        if not batch:
            return
        self.db.execute("begin")
        rows, ended, touched, t = self._rows(batch)
        sums = _Sums()
        for row in rows.values():
            sums.add(row, self._place(row.who), 1)
        for row in self._stored(ended):
            sums.add(row, self._place(row.who), -1)
        sums.write(self.db)
        self.db.executemany("insert into entry values (?, ?, ?, ?, ?, ?, ?, ?)", rows.values())
        self.db.executemany("delete from entry where seq = ?", [(seq,) for seq in ended])
        self.db.executemany("delete from flow where id = ?", [(flow,) for flow in touched])
        left = [(flow, *self._flows[flow]) for flow in touched if flow in self._flows]
        self.db.executemany("insert into flow values (?, ?, ?)", left)
        self.db.execute("update state set next = ?, t = ?", (batch[-1][0] + 1, t))
        self.db.execute("commit")

    def _rows(self, batch: list[Entry]) -> tuple[dict[int, _Row], list[int], set[bytes], int]:
        """New rows by number; numbers of stored rows they replace; flows concerned; the last one's time."""
        rows: dict[int, _Row] = {}
        ended: list[int] = []
        touched: set[bytes] = set()
        t = 0
        for seq, data in batch:
            kind, real, flow, out, into, _, about, times, cost = records.outline(data) or _decoded(data)
            t = real // 1_000_000
            if kind in _PASSING:
                continue
            who, _ = self._who.get(about) or self._find_who(about, data)
            if kind in OF_FLOWS:
                before = self._flows.pop(flow, None)
                touched.add(flow)
                if before is not None:
                    if rows.pop(before[0], None) is None:
                        ended.append(before[0])
                    who = before[1] if kind == Kind.ORPHAN else who
                if kind != Kind.CLOSE:  # an orphaned flow may still be closed
                    self._flows[flow] = (seq, who)
            if out | into | times | cost > _MOST:
                out, into, times, cost = (min(each, _MOST) for each in (out, into, times, cost))
            rows[seq] = _Row(seq, t, kind, who, out, into, times, cost)
        return rows, ended, touched, t

    def _stored(self, numbers: Sequence[int]) -> Iterator[_Row]:
        for first in range(0, len(numbers), _AT_ONCE):
            some = numbers[first : first + _AT_ONCE]
            marks = ", ".join("?" * len(some))
            found = self.db.execute(f"select * from entry where seq in ({marks})", some)  # noqa: S608
            yield from map(_Row._make, found)

    def _place(self, who: int) -> int:
        place = self._place_of.get(who)
        if place is None:
            (place,) = self.db.execute("select place from who where id = ?", (who,)).fetchone()
            self._place_of[who] = place
        return place

    def _find_who(self, encoded: bytes, data: bytes) -> tuple[int, int]:
        found = self.db.execute("select id, place from who where bytes = ?", (encoded,)).fetchone()
        number, place = found or self._new_who(encoded, records.decode(data))
        if len(self._who) >= _REMEMBERED:
            self._who.clear()
        self._who[encoded] = number, place
        self._place_of[number] = place
        return number, place

    def _new_who(self, encoded: bytes, record: records.Record) -> tuple[int, int]:
        dest = record.dest or records.Dest()
        values = (
            *(record.project, record.job, record.agent, record.episode, record.lease_id),
            *(dest.host, dest.port, record.decision, record.reason_code, record.rule_id, record.node),
        )
        place = [values[WHO.index(name)] for name in PLACE]
        found = self.db.execute(_FIND_PLACE, place).fetchone()
        at = found[0] if found else self.db.execute(_INSERT_PLACE, place).lastrowid or 0
        number = self.db.execute(_INSERT_WHO, (encoded, at, *values)).lastrowid or 0
        return number, at


def _decoded(data: bytes) -> Outline:
    """The few records that have no outline: their fields up to `node` are encoded for the purpose."""
    record = records.decode(data)
    who = records.encode(
        records.Record(
            Kind.BOOT,
            **{name: getattr(record, name) for name in _WHO_FIELDS},
        )
    )
    return Outline(
        record.kind,
        record.t_real_ns,
        record.flow,
        record.bytes_out,
        record.bytes_in,
        record.reserved,
        who,
        record.count,
        record.cost_nano_usd,
    )


def open_index(directory: Path, *, anew: bool = False, path: Path | None = None) -> Index:
    """The index kept beside the ledger (or in the file `path`), caught up; made anew if it cannot be used (or
    if wished), in memory if there is no room or right to keep it. Raises OSError, ReaderError."""
    path = path or directory / "derived" / "index.sqlite"
    try:
        path.parent.mkdir(mode=0o750, exist_ok=True)
        with _alone(path.with_suffix(".lock")):
            if anew:
                _discard(path)
            try:
                return _caught_up(directory, path)
            except (sqlite3.Error, OSError):
                _discard(path)
            return _caught_up(directory, path)
    except (sqlite3.Error, OSError):
        return _caught_up(directory, None)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait for others who are bringing the index up to date: two would take the same records in."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _discard(path: Path) -> None:
    for name in (path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
        name.unlink(missing_ok=True)


def _caught_up(directory: Path, path: Path | None) -> Index:
    index = Index(directory, path)
    try:
        index.catch_up()
    except BaseException:
        index.close()
        raise
    return index
