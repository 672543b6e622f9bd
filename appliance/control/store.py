"""What control must remember across a crash: leases, running jobs, their own policies.

SQLite in WAL mode with `synchronous=FULL`: a row that was written is there after power loss.
Counters and evidence are not kept here; they are the ledger's.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Each step is applied once, in order, in a transaction of its own; never edit one that shipped.
MIGRATIONS = (
    """
    CREATE TABLE lease (id TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT;
    CREATE TABLE job (name TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT;
    CREATE TABLE document (digest TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT;
    """,
)


class Store:
    """The database at `path`; raises sqlite3.DatabaseError when it is damaged."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._migrate()

    def _migrate(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        for number, step in enumerate(MIGRATIONS[version:], version + 1):
            self._db.executescript(f"BEGIN; {step} PRAGMA user_version={number}; COMMIT;")

    def save_lease(self, lease: str, body: str) -> None:
        self._put("lease", "id", lease, body)

    def load_leases(self) -> Iterator[tuple[str, str]]:
        yield from self._db.execute("SELECT id, body FROM lease ORDER BY rowid")

    def save_job(self, name: str, body: str) -> None:
        self._put("job", "name", name, body)

    def load_jobs(self) -> Iterator[tuple[str, str]]:
        yield from self._db.execute("SELECT name, body FROM job ORDER BY rowid")

    def delete_job(self, name: str) -> None:
        self._db.execute("DELETE FROM job WHERE name = ?", (name,))

    def save_document(self, digest: str, body: str) -> None:
        self._put("document", "digest", digest, body)

    def load_document(self, digest: str) -> str | None:
        row = self._db.execute("SELECT body FROM document WHERE digest = ?", (digest,)).fetchone()
        return None if row is None else str(row[0])

    def _put(self, table: str, key: str, value: str, body: str) -> None:
        # Table and column names are ours, never from outside.
        self._db.execute(
            f"INSERT INTO {table} ({key}, body) VALUES (?, ?) "  # noqa: S608
            f"ON CONFLICT ({key}) DO UPDATE SET body = excluded.body",
            (value, body),
        )

    def close(self) -> None:
        self._db.close()
