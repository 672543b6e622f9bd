"""What control must remember across a crash: leases, running jobs, the queue, the time.

SQLite in WAL mode with `synchronous=FULL`: a row that was written is there after power loss.
Counters and evidence are not kept here; they are the ledger's.
"""

from __future__ import annotations

import hashlib
import sqlite3
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

# Each step is applied once, in order, in a transaction of its own. Its checksum is kept: a step
# that was edited after it had been applied somewhere is refused instead of half-believed.
MIGRATIONS = (
    """
    CREATE TABLE lease (id TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT;
    CREATE TABLE job (name TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT;
    CREATE TABLE document (digest TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT;
    CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
    """,
    """
    CREATE TABLE kill (scope TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT;
    """,
    """
    CREATE TABLE direct (number TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT;
    CREATE TABLE owed (number INTEGER PRIMARY KEY AUTOINCREMENT, record BLOB NOT NULL) STRICT;
    """,
    """
    CREATE TABLE task (id TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT;
    """,
    """
    DROP TABLE document;
    """,
    """
    CREATE TABLE passkey (id TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT;
    """,
)


class StoreError(Exception):
    """The database cannot be used; the message is one line."""


class DamagedError(StoreError):
    """It was a database, and does not hold together any more."""


_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_BODIES = ("lease", "job", "kill", "direct", "task", "passkey")


class Store:
    """The database at `path`. Raises DamagedError, or StoreError when it is of another version."""

    def __init__(self, path: Path, migrations: Sequence[str] = MIGRATIONS) -> None:
        self._path = path
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            try:
                self._open(migrations)
            except BaseException:
                self._db.close()  # at once: the last thing it does is to remove a log by its name
                raise
        except sqlite3.Error as error:
            damaged = getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED  # the rest says how
            raise (DamagedError if damaged else StoreError)(f"{path}: {error}") from None

    def _open(self, migrations: Sequence[str]) -> None:
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._migrate(migrations)
        self._check()

    def _check(self) -> None:
        """SQLite looks at what it stands on only when it comes there; that would be too late."""
        (said,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
        if said != "ok":
            raise DamagedError(f"{self._path}: {said}")
        for table in _BODIES:
            if self._db.execute(f"SELECT 1 FROM {table} WHERE NOT json_valid(body)").fetchone():  # noqa: S608
                raise DamagedError(f"{self._path}: table {table} holds what is not JSON")

    def _migrate(self, migrations: Sequence[str]) -> None:
        table = "migration (number INTEGER PRIMARY KEY, checksum TEXT) STRICT"
        self._db.execute(f"CREATE TABLE IF NOT EXISTS {table}")
        applied = dict(self._db.execute("SELECT number, checksum FROM migration"))
        if len(applied) > len(migrations):
            raise StoreError(f"{self._path}: written by a newer version of exeat")
        for number, step in enumerate(migrations, 1):
            checksum = hashlib.sha256(step.encode()).hexdigest()
            if number not in applied:
                self._apply(number, step, checksum)
            elif applied[number] != checksum:
                raise StoreError(f"{self._path}: migration {number} is not the one that was applied")

    def _apply(self, number: int, step: str, checksum: str) -> None:
        try:
            self._db.executescript(
                f"BEGIN; {step}; INSERT INTO migration VALUES ({number}, '{checksum}'); COMMIT;"  # noqa: S608
            )
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise StoreError(f"{self._path}: migration {number}: {error}; nothing was changed") from None

    def save_lease(self, lease: str, body: str) -> None:
        self._put("lease", "id", lease, body)

    def delete_lease(self, name: str) -> None:
        self._db.execute("DELETE FROM lease WHERE id = ?", (name,))

    def load_leases(self) -> Iterator[tuple[str, str]]:
        yield from self._db.execute("SELECT id, body FROM lease ORDER BY rowid")

    def save_job(self, name: str, body: str) -> None:
        self._put("job", "name", name, body)

    def load_jobs(self) -> Iterator[tuple[str, str]]:
        yield from self._db.execute("SELECT name, body FROM job ORDER BY rowid")

    def save_task(self, name: str, body: str) -> None:
        self._put("task", "id", name, body)

    def load_tasks(self) -> list[tuple[str, str]]:
        """In the order of submission."""
        return list(self._db.execute("SELECT id, body FROM task ORDER BY rowid"))

    def delete_task(self, name: str) -> None:
        self._db.execute("DELETE FROM task WHERE id = ?", (name,))

    def save_kill(self, scope: str, body: str) -> None:
        self._put("kill", "scope", scope, body)

    def delete_kill(self, scope: str) -> None:
        self._db.execute("DELETE FROM kill WHERE scope = ?", (scope,))

    def load_kills(self) -> Iterator[tuple[str, str]]:
        yield from self._db.execute("SELECT scope, body FROM kill")

    def save_passkey(self, name: str, body: str) -> None:
        self._put("passkey", "id", name, body)

    def delete_passkey(self, name: str) -> None:
        self._db.execute("DELETE FROM passkey WHERE id = ?", (name,))

    def load_passkeys(self) -> Iterator[tuple[str, str]]:
        yield from self._db.execute("SELECT id, body FROM passkey ORDER BY rowid")

    def save_direct(self, number: int, body: str) -> None:
        """A pinhole that is about to be asked for, before it is."""
        self._put("direct", "number", str(number), body)
        self._db.execute("INSERT OR REPLACE INTO meta VALUES ('last_direct', ?)", (number,))

    def delete_direct(self, number: int) -> None:
        self._db.execute("DELETE FROM direct WHERE number = ?", (str(number),))

    def load_direct(self) -> list[str]:
        return [str(body) for (body,) in self._db.execute("SELECT body FROM direct")]

    @property
    def last_direct(self) -> int:
        """The pinhole's number that was used last (0: none)."""
        row = self._db.execute("SELECT value FROM meta WHERE name = 'last_direct'").fetchone()
        return 0 if row is None else int(row[0])

    def save_owed(self, record: bytes, *, instead_of_job: str = "", task: str = "", end: str = "") -> int:
        """A record that the ledger has not taken yet, and that may end a job; its number here.

        `task`: the one the job was of, which is told of its `end` (JSON) in the same moment.
        """
        with self._db:
            self._db.execute("BEGIN")
            self._db.execute("DELETE FROM job WHERE name = ?", (instead_of_job,))
            if task:
                told = "UPDATE task SET body = json_set(body, '$.end', json(?)) WHERE id = ?"
                self._db.execute(told, (end, task))
            return int(self._db.execute("INSERT INTO owed (record) VALUES (?)", (record,)).lastrowid or 0)

    def delete_owed(self, number: int) -> None:
        self._db.execute("DELETE FROM owed WHERE number = ?", (number,))

    def load_owed(self) -> list[tuple[int, bytes]]:
        """Oldest first."""
        return list(self._db.execute("SELECT number, record FROM owed ORDER BY number"))

    def _put(self, table: str, key: str, value: str, body: str) -> None:
        # Table and column names are ours, never from outside.
        self._db.execute(
            f"INSERT INTO {table} ({key}, body) VALUES (?, ?) "  # noqa: S608
            f"ON CONFLICT ({key}) DO UPDATE SET body = excluded.body",
            (value, body),
        )

    @property
    def latest_ms(self) -> int:
        """The latest wall-clock time that was ever kept here (0: none)."""
        row = self._db.execute("SELECT value FROM meta WHERE name = 'latest_ms'").fetchone()
        return 0 if row is None else int(row[0])

    def keep_latest_ms(self, value: int) -> None:
        """Raise the high-water mark; it never goes down."""
        self._db.execute(
            "INSERT INTO meta VALUES ('latest_ms', ?) "
            "ON CONFLICT (name) DO UPDATE SET value = max(value, excluded.value)",
            (value,),
        )

    def close(self) -> None:
        self._db.close()
