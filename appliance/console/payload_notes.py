"""What the console remembers of the payload that came with a request: size, hash, what kinds of secrets.

Never the payload. A help for who decides, kept a week; evidence is the ledger.
"""

from __future__ import annotations

import json
import sqlite3
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pathlib import Path

KEPT_MS: Final = 7 * 86_400_000


class PayloadNotes:
    """The database at `path`. All methods may raise sqlite3.Error."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        columns = "request TEXT PRIMARY KEY, body TEXT NOT NULL, at_ms INTEGER NOT NULL"
        self._db.execute(f"CREATE TABLE IF NOT EXISTS note ({columns}) STRICT")

    def keep(self, request: str, found: dict[str, Any], now_ms: int) -> None:
        """In place of what was known; what is old goes."""
        self._db.execute("DELETE FROM note WHERE at_ms < ?", (now_ms - KEPT_MS,))
        self._db.execute("INSERT OR REPLACE INTO note VALUES (?, ?, ?)", (request, json.dumps(found), now_ms))

    def of(self, request: str) -> dict[str, Any] | None:
        row = self._db.execute("SELECT body FROM note WHERE request = ?", (request,)).fetchone()
        found: dict[str, Any] | None = None if row is None else json.loads(row[0])
        return found

    def close(self) -> None:
        self._db.close()
