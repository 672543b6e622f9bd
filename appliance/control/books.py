"""Continuous double entry: each flow that closed is held against the kernel's counts in its record.

Behind the writer, from where the ledger stood when control started; `exeat ledger reconcile` looks at
all of it. A difference is a `reconcile` record, a line on stderr, and stands in `exeat status`.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from exeat.ledger import records
from exeat.ledger.reader import Follower, ReaderError, find_ledgers, tail
from exeat.ledger.reconcile import differences
from exeat.ledger.records import Kind, Record, RecordError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from exeat.appliance.control.evidence import Evidence

LOOK_S: Final = 5.0
MOST: Final = 20  # drifts that get a record of their own per look; the rest is one record with a count


class BookKeeper:
    """`state` is what `exeat status` shows: flows compared, flows that differ, the last difference."""

    def __init__(self, state_dir: Path, evidence: Evidence) -> None:
        self.state: dict[str, Any] = {"compared": 0, "drifts": 0, "last": ""}
        self.costs = Counter[str]()  # nano-USD by project, of the flows that closed since control started
        self._state_dir, self._evidence = state_dir, evidence
        self._followers: dict[Path, Follower] = {}

    async def watch(self) -> None:
        """Compare, for as long as control runs."""
        while True:
            try:
                await self.look()
            except (OSError, ReaderError, RecordError) as error:
                print(f"exeat: control: the books cannot be compared: {error}", file=sys.stderr, flush=True)
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Compare what came since the last look. Raises OSError, ReaderError, RecordError."""
        found = await asyncio.to_thread(lambda: list(self._drifts()))
        for seq, record, wrong in found[:MOST]:
            said = ", ".join(f"{name} {difference:+d}" for name, difference in wrong.items())
            self.state["last"] = f"record {seq}: {said} bytes"
            print(f"exeat: control: the books differ: {self.state['last']}", file=sys.stderr, flush=True)
            await self._evidence.owe(self._evidence.drift(record, f"record {seq}: {said} bytes", 1))
        if len(found) > MOST:
            rest = len(found) - MOST
            await self._evidence.owe(self._evidence.drift(None, f"{rest} more flows differ", rest))
        self.state["drifts"] += len(found)

    def _drifts(self) -> Iterator[tuple[int, Record, dict[str, int]]]:
        for directory in find_ledgers(self._state_dir):
            if directory not in self._followers:
                self._followers[directory] = tail(directory, 0)[1]
                continue
            for seq, data in self._followers[directory].poll():
                if records.recall(data).kind is not Kind.CLOSE:
                    continue
                record = records.decode(data)
                self.costs[record.project] += record.cost_nano_usd
                wrong = differences(record)
                self.state["compared"] += wrong is not None
                if wrong:
                    yield seq, record, wrong
