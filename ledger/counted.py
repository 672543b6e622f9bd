"""What the ledger process says of itself for metrics: a small file beside its socket, anew each second.

A file, because the ledger serves nothing but appends. It lies in the run folder, which is memory; what
reads it may find an old one, and goes by its time.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from exeat.ledger.small_files import read_small
from exeat.ledger.tally import Tally

if TYPE_CHECKING:
    from pathlib import Path

NAME: Final = "counts.json"
MOST: Final = 65_536  # bytes
SILENT_S: Final = 3.0  # a file this old was not written by a ledger that is well


class Counted:
    """Of the one thread that writes. `folder` is that of the ledger's socket."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._tally = Tally()
        self._appends = self._tally.time("ledger_append_duration_seconds")
        self._longest = 0.0
        self._failed = False

    def appended(self, seconds: float) -> None:
        """A group of records was written and made durable, or could not be."""
        self._appends.add(seconds)
        self._longest = max(self._longest, seconds)

    def tell(self, records: int, latched: str) -> None:
        """Put the file in place: whole or not at all, and no matter if not."""
        longest, self._longest = self._longest, 0.0
        self._tally.counts["ledger_entries_total",] = records
        self._tally.gauges["ledger_fsync_lag_seconds",] = longest
        self._tally.gauges["ledger_writable",] = 0 if latched else 1
        said = {**self._tally.message(0), "boot_s": time.clock_gettime(time.CLOCK_BOOTTIME)}
        self._tally.forget()
        fresh = self._path.with_suffix(".tmp")
        try:
            fresh.write_text(json.dumps(said), encoding="utf-8")
            os.replace(fresh, self._path)
            self._failed = False
        except OSError as error:
            if not self._failed:
                print(f"exeat: ledger: metrics are not told: {error}", file=sys.stderr, flush=True)
            self._failed = True


def read_counted(run_dir: Path) -> tuple[dict[str, Any], float]:
    """What the ledger said last, {} if nothing, and how many seconds ago. What it says is not checked."""
    try:
        said = json.loads(read_small(run_dir / "ledger" / NAME, MOST))
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - float(said["boot_s"])
    except (OSError, ValueError, TypeError, KeyError):
        return {}, 0.0
    return said, max(0.0, age)
