"""Now, for decisions. `Clock`: never behind the boot clock, so that a set-back wall clock extends nothing.

A lease ends at min(wall, CLOCK_BOOTTIME). Taking the later of the wall clock and "wall clock at
start plus boot time since" as now gives that for every comparison at once. (CLOCK_MONOTONIC
would stand still during suspend.)
"""

from __future__ import annotations

import sys
import time
from typing import Final

_JUMP_NS: Final = 60 * 1_000_000_000
_DOUBT_NS: Final = 86_400 * 1_000_000_000


def boot_s() -> float:
    """Seconds since the machine started, suspend included: for spans of time that nobody can set back."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Clock:
    """`now_ms()` in milliseconds of Unix time, never before `not_before_ms`."""

    def __init__(self, not_before_ms: int = 0) -> None:
        start_ns = max(time.time_ns(), not_before_ms * 1_000_000)
        self._offset_ns = start_ns - time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def now_ms(self) -> int:
        by_boot = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + self._offset_ns
        return max(time.time_ns(), by_boot) // 1_000_000


class Wary:
    """Now, for what cannot be undone: a wall clock that jumps ahead is believed after a day, not before.

    Until then its old time goes on. One that was wrong from the start is not noticed.
    """

    def __init__(self) -> None:
        self._believed_ns = self._offset_ns()
        self._doubted_at_ns: int | None = None  # boot time

    def now_ns(self) -> int:
        """Nanoseconds of Unix time."""
        boot, offset = time.clock_gettime_ns(time.CLOCK_BOOTTIME), self._offset_ns()
        jump = offset - self._believed_ns
        if jump <= _JUMP_NS:
            self._doubted_at_ns = None
        elif self._doubted_at_ns is None:
            self._doubted_at_ns = boot
            what = f"the clock went ahead by {jump // 10**9} s: not believed for a day"
            print(f"exeat: ledger: {what}, in which no record is dropped for it", file=sys.stderr, flush=True)
        if self._doubted_at_ns is None or boot - self._doubted_at_ns >= _DOUBT_NS:
            self._believed_ns, self._doubted_at_ns = offset, None
        return boot + self._believed_ns

    @staticmethod
    def _offset_ns() -> int:
        return time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
