"""What was done with accounts, on its way to the ledger (records of kind `admin`).

Kept in the accounts' own database, in the transaction of what it is about: neither is there without the
other. Whoever comes next, the command that did it or the console, brings it to the ledger; one that dies
between the two brings it twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from exeat.ledger.client import LedgerError, append_blocking, stamps
from exeat.ledger.records import Kind, Record, encode, printable

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS deed (
  id INTEGER PRIMARY KEY AUTOINCREMENT, real_ns INTEGER NOT NULL, boot_ns INTEGER NOT NULL,
  what TEXT NOT NULL, actor TEXT NOT NULL, count INTEGER NOT NULL, detail TEXT NOT NULL) STRICT;
"""
_AT_ONCE: Final = 20  # records of 1.5 KiB at most: well below what one request holds
_PATIENCE_S: Final = 2.0


class Deeds:
    """Those that are owed, oldest first."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def note(self, what: str, actor: str, detail: str = "", count: int = 0) -> None:
        """`what` is one of docs/formats/ledger.md; of a secret nothing may be in `detail`."""
        row = (*stamps(), what, printable(actor, 128), count, printable(detail))
        columns = "real_ns, boot_ns, what, actor, count, detail"
        self._db.execute(f"INSERT INTO deed ({columns}) VALUES (?, ?, ?, ?, ?, ?)", row)  # noqa: S608 - ours

    def owed(self, node: str) -> tuple[int, list[bytes]]:
        """Records for the ledger of `node`, and the number to `forget` once they are durable; 0: none."""
        rows = self._db.execute("SELECT * FROM deed ORDER BY id LIMIT ?", (_AT_ONCE,)).fetchall()
        records = [
            Record(Kind.ADMIN, real, boot, node=node, decision=what, actor=actor, count=count, detail=detail)
            for _, real, boot, what, actor, count, detail in rows
        ]
        return (rows[-1][0] if rows else 0), [encode(record) for record in records]

    def forget(self, upto: int) -> None:
        """They are on the ledger."""
        self._db.execute("DELETE FROM deed WHERE id <= ?", (upto,))

    def bring(self, ledger: Path, node: str) -> bool:
        """Bring all that is owed to the ledger's socket; False: it stays owed. Raises sqlite3.Error."""
        while True:
            upto, records = self.owed(node)
            if not upto:
                return True
            if not send(ledger, records):
                return False
            self.forget(upto)


def send(ledger: Path, records: list[bytes]) -> bool:
    """Whether they are durable now."""
    try:
        append_blocking(ledger, records, timeout=_PATIENCE_S)
    except (LedgerError, OSError):
        return False
    return True
