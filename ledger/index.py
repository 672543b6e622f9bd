"""An SQLite index for questions: derived from the segments, thrown away and made anew at any time.

One row for every refusal, lookup and settled flow (an `open` only until its flow is settled), one
for each other event. Who, where and why are the same for many rows, so they stand in a table of
their own. Never the truth: what the index says can be looked up in the ledger by `seq`.
"""

from __future__ import annotations

import contextlib
import sqlite3
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from exeat.ledger import records
from exeat.ledger.quick import Outline
from exeat.ledger.reader import Follower, segment_of
from exeat.ledger.records import Kind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from exeat.ledger.reader import Entry

_VERSION: Final = 2
_BATCH: Final = 50_000
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
# Their encoding tells one row of `who` from another, in the order of the records' layout.
_WHO_FIELDS: Final = (
    *("job", "project", "agent", "dest", "decision", "reason_code", "rule_id", "lease_id"),
    *("generation", "policy_digest", "posture", "name_source", "episode", "node"),
)
_PASSING: Final = frozenset({Kind.RESERVE, Kind.PROGRESS, Kind.RESUME})
_OF_FLOWS: Final = frozenset({Kind.OPEN, Kind.CLOSE, Kind.ORPHAN})
_SCHEMA: Final = f"""
create table who (id integer primary key, bytes blob unique, {", ".join(WHO)});
create table entry (seq integer primary key, t integer, kind integer, who integer,
                    bytes_out integer, bytes_in integer, count integer);
create table flow (id blob primary key, seq integer, who integer) without rowid;
create index entry_t on entry (t);
create table state (next integer);
insert into state values (0);
pragma user_version = {_VERSION};
"""  # noqa: S608 - names are ours


_INSERT_WHO: Final = f"insert into who (bytes, {', '.join(WHO)}) values (?{', ?' * len(WHO)})"  # noqa: S608


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
        self._who = dict(self.db.execute("select bytes, id from who"))
        self._flows = {flow: (seq, who) for flow, seq, who in self.db.execute("select * from flow")}

    def catch_up(self) -> int:
        """Take in what has been committed since; how many records there were."""
        (next_seq,) = self.db.execute("select next from state").fetchone()
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

    def close(self) -> None:
        self.db.close()

    def _take(self, batch: list[Entry]) -> None:
        if not batch:
            return
        rows: dict[int, tuple[int, ...]] = {}
        ended: list[tuple[int]] = []
        touched: set[bytes] = set()
        self.db.execute("begin")
        for seq, data in batch:
            found = records.outline(data) or _decoded(data)
            kind, flow = found.kind, found.flow
            if kind in _PASSING:
                continue
            who = self._who.get(found.who) or self._new_who(found.who, data)
            if kind in _OF_FLOWS:
                before = self._flows.pop(flow, None)
                touched.add(flow)
                if before is not None:
                    if rows.pop(before[0], None) is None:
                        ended.append((before[0],))
                    who = before[1] if kind == Kind.ORPHAN else who
                if kind != Kind.CLOSE:  # an orphaned flow may still be closed
                    self._flows[flow] = (seq, who)
            rows[seq] = (
                seq,
                found.t_real_ns // 1_000_000,
                kind,
                who,
                found.bytes_out,
                found.bytes_in,
                found.times,
            )
        self.db.executemany("insert into entry values (?, ?, ?, ?, ?, ?, ?)", rows.values())
        self.db.executemany("delete from entry where seq = ?", ended)
        self.db.executemany("delete from flow where id = ?", [(flow,) for flow in touched])
        left = [(flow, *self._flows[flow]) for flow in touched if flow in self._flows]
        self.db.executemany("insert into flow values (?, ?, ?)", left)
        self.db.execute("update state set next = ?", (batch[-1][0] + 1,))
        self.db.execute("commit")

    def _new_who(self, encoded: bytes, data: bytes) -> int:
        record = records.decode(data)
        dest = record.dest or records.Dest()
        values = (
            *(record.project, record.job, record.agent, record.episode, record.lease_id),
            *(dest.host, dest.port, record.decision, record.reason_code, record.rule_id, record.node),
        )
        cursor = self.db.execute(_INSERT_WHO, (encoded, *values))
        number = int(cursor.lastrowid or 0)
        self._who[encoded] = number
        return number


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
    )


def open_index(directory: Path) -> Index:
    """The index kept beside the ledger, caught up; made anew if it cannot be used, in memory if there is
    no room or right to keep it. Raises OSError, ReaderError."""
    path = directory / "derived" / "index.sqlite"
    try:
        path.parent.mkdir(mode=0o750, exist_ok=True)
        return _caught_up(directory, path)
    except (sqlite3.Error, OSError):
        for name in (path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
            with contextlib.suppress(OSError):
                name.unlink()
    try:
        return _caught_up(directory, path)
    except (sqlite3.Error, OSError):
        return _caught_up(directory, None)


def _caught_up(directory: Path, path: Path | None) -> Index:
    index = Index(directory, path)
    try:
        index.catch_up()
    except BaseException:
        index.close()
        raise
    return index


# --- questions

_COLUMNS: Final = {
    **{name: f"who.{name}" for name in WHO},
    "seq": "entry.seq",
    "kind": "entry.kind",
    "hour": "strftime('%Y-%m-%dT%H:00Z', entry.t / 1000, 'unixepoch')",
    "day": "strftime('%Y-%m-%d', entry.t / 1000, 'unixepoch')",
}
SUM_KEYS: Final = (*WHO, "kind", "hour", "day")
ROW: Final = ("seq", "time", "kind", *WHO[:-1], "bytes_out", "bytes_in", "count")


class Question(NamedTuple):
    """What to look for. Times are milliseconds, `since` included, `until` not; "" is any.

    `where` maps names of `WHO` to the value wanted; a host `*.example.org` is any name under it.
    """

    where: Mapping[str, str] = MappingProxyType({})
    since: int | None = None
    until: int | None = None

    def condition(self) -> tuple[str, list[Any]]:
        """The SQL condition and its values."""
        parts, values = list[str](), list[Any]()
        for name, wanted in self.where.items():
            if name == "host" and wanted.startswith("*."):
                parts.append("substr(who.host, ?) = ?")
                values += [1 - len(wanted), wanted[1:]]
            else:
                parts.append(f"{_COLUMNS[name]} = ?")
                values.append(int(wanted) if name == "port" else wanted)
        for sign, moment in ((">=", self.since), ("<", self.until)):
            if moment is not None:
                parts.append(f"entry.t {sign} ?")
                values.append(moment)
        return (" and ".join(parts) or "1"), values


def entries(index: Index, question: Question, limit: int) -> list[tuple[Any, ...]]:
    """The newest `limit` rows that answer, oldest first, in the columns of `ROW`; time in milliseconds."""
    condition, values = question.condition()
    columns = ", ".join(f"who.{name}" for name in WHO[:-1])
    found = index.db.execute(
        f"select entry.seq, t, kind, {columns}, bytes_out, bytes_in, count"  # noqa: S608 - names are ours
        f" from entry join who on who.id = entry.who where {condition} order by entry.seq desc limit ?",
        [*values, limit],
    ).fetchall()
    return [(row[0], row[1], Kind(row[2]).label, *row[3:]) for row in reversed(found)]


def sums(index: Index, question: Question, keys: Sequence[str]) -> list[tuple[Any, ...]]:
    """Per combination of `keys` (of `SUM_KEYS`): the keys, then bytes_out, bytes_in, flows, other entries.

    Most bytes first. Flows are those that are settled; their bytes are what `close` or `orphan` says.
    """
    condition, values = question.condition()
    chosen = ", ".join(_COLUMNS[key] for key in keys)
    # First by the number of who: few numbers are compared, not many texts.
    timed = any(key in ("hour", "day") for key in keys)
    hour = "entry.t / 3600000" if timed else "0"
    found = index.db.execute(
        f"select {chosen}, sum(o), sum(i), sum(flows), sum(others) from ("  # noqa: S608
        f" select entry.who as who, entry.kind as kind, {hour} * 3600000 as t,"
        " sum(bytes_out) as o, sum(bytes_in) as i,"
        f" sum(kind in ({int(Kind.CLOSE)}, {int(Kind.ORPHAN)})) as flows,"
        f" sum(case when kind in ({int(Kind.OPEN)}, {int(Kind.CLOSE)}, {int(Kind.ORPHAN)}) then 0"
        " else max(count, 1) end) as others"
        f" from entry join who on who.id = entry.who where {condition} group by 1, 2, 3) as entry"
        f" join who on who.id = entry.who group by {', '.join(str(n + 1) for n in range(len(keys)))}"
        " order by sum(o) + sum(i) desc, 1",
        values,
    ).fetchall()
    if "kind" in keys:
        at = list(keys).index("kind")
        found = [(*row[:at], Kind(row[at]).label, *row[at + 1 :]) for row in found]
    return found
