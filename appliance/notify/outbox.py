"""What is still to be sent, in SQLite: a restart or a power cut loses none of it."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import asdict
from typing import TYPE_CHECKING, Final, NamedTuple

from exeat.appliance.notify.notices import Notice

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

MOST: Final = 10_000  # notices of one [[notify]]; then the oldest go
BACK_OFF_S: Final = (1, 5, 30, 120, 600, 3600)
GIVE_UP_MS: Final = 3 * 86_400_000

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS notice (
  number INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, id TEXT NOT NULL, body TEXT NOT NULL,
  tries INTEGER NOT NULL DEFAULT 0, due_ms INTEGER NOT NULL, since_ms INTEGER NOT NULL, UNIQUE (name, id)
) STRICT;
CREATE TABLE IF NOT EXISTS told (
  name TEXT PRIMARY KEY, failed TEXT NOT NULL, dropped INTEGER NOT NULL
) STRICT;
"""


class Waiting(NamedTuple):
    """A notice that is due. `since_ms` is when it was put in."""

    number: int
    notice: Notice
    tries: int
    since_ms: int


class Outbox:
    """The database at `path`. Each thread opens its own."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None, timeout=30)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.executescript(_SCHEMA)

    def put(self, name: str, found: Iterable[Notice], now_ms: int) -> None:
        """Durable when it returns; one that is there already is not put in again."""
        rows = [(name, each.id, json.dumps(asdict(each)), now_ms, now_ms) for each in found]
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(
                "INSERT OR IGNORE INTO notice (name, id, body, due_ms, since_ms) VALUES (?,?,?,?,?)", rows
            )
            surplus = self.count(name) - MOST
            if surplus > 0:
                self._db.execute(
                    "DELETE FROM notice WHERE number IN "
                    "(SELECT number FROM notice WHERE name=? ORDER BY number LIMIT ?)",
                    (name, surplus),
                )
                self._dropped(name, surplus)

    def count(self, name: str) -> int:
        [(count,)] = self._db.execute("SELECT count(*) FROM notice WHERE name=?", (name,))
        return int(count)

    def first(self, name: str, now_ms: int) -> Waiting | None:
        """The oldest notice, if it is due: they go in order."""
        row = self._db.execute(
            "SELECT number, body, tries, due_ms, since_ms FROM notice WHERE name=? ORDER BY number LIMIT 1",
            (name,),
        ).fetchone()
        if row is None or row[3] > now_ms:
            return None
        return Waiting(row[0], Notice(**json.loads(row[1])), row[2], row[4])

    def sent(self, name: str, waiting: Waiting) -> None:
        with self._db:
            self._db.execute("DELETE FROM notice WHERE number=?", (waiting.number,))
            self._db.execute("UPDATE told SET failed='' WHERE name=? AND failed!=''", (name,))

    def failed(self, name: str, waiting: Waiting, said: str, now_ms: int) -> bool:
        """Try again later; False if it has been tried for so long that it is dropped."""
        give_up = now_ms - waiting.since_ms > GIVE_UP_MS
        pause_s = BACK_OFF_S[min(waiting.tries, len(BACK_OFF_S) - 1)]
        with self._db:
            if give_up:
                self._db.execute("DELETE FROM notice WHERE number=?", (waiting.number,))
                self._dropped(name, 1)
            else:
                self._db.execute(
                    "UPDATE notice SET tries=tries+1, due_ms=? WHERE number=?",
                    (now_ms + pause_s * 1000, waiting.number),
                )
            self._db.execute(
                "INSERT INTO told VALUES (?,?,0) ON CONFLICT (name) DO UPDATE SET failed=excluded.failed",
                (name, said),
            )
        return not give_up

    def _dropped(self, name: str, count: int) -> None:
        self._db.execute(
            "INSERT INTO told VALUES (?,'',?) ON CONFLICT (name) DO UPDATE SET dropped=dropped+?",
            (name, count, count),
        )

    def state(self, name: str) -> tuple[int, str, int]:
        """How many wait, what failed last ("" once one has got through), and how many were dropped ever."""
        row = self._db.execute("SELECT failed, dropped FROM told WHERE name=?", (name,)).fetchone()
        failed, dropped = row or ("", 0)
        return self.count(name), failed, dropped

    def close(self) -> None:
        self._db.close()
