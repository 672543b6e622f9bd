"""Sealed segments are packed: the same frames in a fifth of the bytes (`segment.pack`).

By the publisher's process, when it has nothing better to do: no append waits, and whoever reads meanwhile
has the file that was there. Whole new file, fsync, rename: a crash leaves the one or the other.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final

from exeat.ledger import retention, segment
from exeat.ledger.reader import ReaderError, find_segments, first_record, is_plain
from exeat.ledger.small_files import replace

if TYPE_CHECKING:
    from pathlib import Path

_AGAIN_S: Final = 60.0  # after the disk did not let it


class Packing:
    """Packs the segments of one ledger, oldest first."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._next = 0  # all segments before it are packed, or cannot be
        self._not_before = 0.0
        self._said = ""

    def step(self, signed: int) -> bool:
        """Pack one segment whose records are all among the first `signed`; False: there is none now.

        What goes wrong is said once; it is no reason to sign no more.
        """
        if time.monotonic() < self._not_before:
            return False
        try:
            path = self._find(signed)
            if path is None:
                return False
            packed = self._packed(path)
            if packed:
                # Not beside the segments: there a writer that starts removes what is left of its own.
                replace(path, packed, temporary=self._directory / "packed.tmp")
        except (OSError, ReaderError, ValueError) as error:
            self._not_before = time.monotonic() + _AGAIN_S
            self._say(f"segments cannot be packed: {error}")
            return False
        self._next += 1
        return True

    def _packed(self, path: Path) -> bytes:
        """Empty if this segment has to stay as it is."""
        try:
            return segment.pack(path.read_bytes())
        except segment.SegmentError as error:
            self._say(f"segment {path.stem} stays as it is: {error}")
            return b""

    def _find(self, signed: int) -> Path | None:
        paths = find_segments(self._directory)
        while self._next < len(paths) - 1 and first_record(paths[self._next + 1]) <= signed:
            path = paths[self._next]
            # The writer drops only what is proposed to it, by this very process: those are left alone,
            # or a segment packed just now would be put in place of one that was dropped just now.
            if self._next < retention.proposed(self._directory):
                return None
            if is_plain(path):
                return path
            self._next += 1
        return None

    def _say(self, what: str) -> None:
        if what != self._said:
            self._said = what
            print(f"exeat: ledger: {what}", file=sys.stderr, flush=True)
