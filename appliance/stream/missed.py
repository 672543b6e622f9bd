"""What a stream cannot send any more: records that were dropped by age or size before it came to them.

In their place it sends the ledger's own tombstone, the `gap` record that names them, with a proof that
whoever has the ledger's public key can check (C2SP tlog-proof): the log itself says what is missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from exeat.appliance.stream.events import Event, Missed
from exeat.ledger import bundle
from exeat.ledger.bundle import BundleError
from exeat.ledger.client import stamps
from exeat.ledger.keys import KeyMissingError
from exeat.ledger.note import NoteError
from exeat.ledger.reader import Follower, dropped_before, segment_of
from exeat.ledger.records import Kind, Record, decode
from exeat.ledger.retention import REASON
from exeat.ledger.tiles import TileError

if TYPE_CHECKING:
    from pathlib import Path

UNEXPLAINED: Final = "stream.unexplained"


def mark(directory: Path, first: int, end: int) -> Event:
    """The event in the place of the records from `first` up to `end`. Raises OSError, ReaderError."""
    for seq, data in Follower(directory, index=segment_of(directory, dropped_before(directory))).poll():
        if REASON.encode() in data and _covers(record := decode(data), end):
            return Event(directory.name, seq, record, Missed(first, end - 1, _proof(directory, seq)))
    detail = f"records {first} to {end - 1} are gone and no record says so: `exeat ledger verify`"
    record = Record(Kind.GAP, *stamps(), reason_code=UNEXPLAINED, count=end - first, detail=detail)
    return Event(directory.name, first, record, Missed(first, end - 1, ""))


def _covers(record: Record, end: int) -> bool:
    tombstone = record.kind is Kind.GAP and record.reason_code == REASON
    return tombstone and int.from_bytes(record.data[:8], "big") >= end


def _proof(directory: Path, seq: int) -> str:
    try:
        return bundle.prove(directory, seq)
    except (BundleError, KeyMissingError, NoteError, TileError):
        return ""  # it says what was dropped all the same; `exeat ledger fsck` says what is wrong
