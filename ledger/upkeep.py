"""What the ledger does for itself once a second, beside recording: its keys change, its seals are seen to.

Each errand is a record to be made durable, and what may be done only after that.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final

from exeat.ledger import keys, succession
from exeat.ledger.note import NoteError
from exeat.ledger.reader import ReaderError
from exeat.ledger.records import Kind
from exeat.ledger.retention import RetentionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from exeat.ledger.records import Record
    from exeat.ledger.retention import Dropping

_RETIRED: Final = "retired"


class Upkeep:
    """The errands of the ledger in `directory`; `own` makes a record in the ledger's own name."""

    def __init__(self, directory: Path, own: Callable[..., Record], dropping: Dropping) -> None:
        self._directory, self._own, self._dropping = directory, own, dropping
        self._said = ""
        self._announced = ""  # what is on record already, while the step behind it still fails

    def due(self) -> Iterator[Record]:
        """Records to write now. It is gone on from one only when that is durable.

        What goes wrong is said once, and tried again the next time.
        """
        try:
            yield from self._key()
        except (keys.KeyMissingError, NoteError, OSError) as error:
            self._say(f"the key cannot be changed: {error}")
        try:
            yield from self._dropping.due(self._own)
        except (keys.KeyMissingError, NoteError, ReaderError, RetentionError, ValueError, OSError) as error:
            self._say(f"no record is dropped: {error}")

    def _key(self) -> Iterator[Record]:
        keys.settle(self._directory)
        if keys.overlap_ended(self._directory, time.time()):
            if self._announced != _RETIRED:
                yield self._own(Kind.KEY, decision="retired", detail="the former key signs no more")
                self._announced = _RETIRED
            keys.retire(self._directory)
        statement = keys.pending(self._directory)
        if statement is None:
            return
        if self._announced != statement:
            found = succession.parse(statement)
            detail = f"{found.former} makes way for {found.new}"
            decision = "rotated" if found.vouched else "lost"
            yield self._own(Kind.KEY, decision=decision, detail=detail, data=statement.encode())
            self._announced = statement
        keys.install(self._directory)

    def _say(self, what: str) -> None:
        if what != self._said:
            self._said = what
            print(f"exeat: ledger: {what}", file=sys.stderr, flush=True)
