"""Now, for decisions: never behind the boot clock, so that a set-back wall clock extends nothing.

A lease ends at min(wall, CLOCK_BOOTTIME). Taking the later of the wall clock and "wall clock at
start plus boot time since" as now gives that for every comparison at once. (CLOCK_MONOTONIC
would stand still during suspend.)
"""

from __future__ import annotations

import time


class Clock:
    """`now_ms()` in milliseconds of Unix time, never before `not_before_ms`."""

    def __init__(self, not_before_ms: int = 0) -> None:
        start_ns = max(time.time_ns(), not_before_ms * 1_000_000)
        self._offset_ns = start_ns - time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def now_ms(self) -> int:
        by_boot = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + self._offset_ns
        return max(time.time_ns(), by_boot) // 1_000_000
