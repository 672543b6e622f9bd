"""Control's time: never behind what it has seen before, across restarts and reboots.

After a reboot CLOCK_BOOTTIME starts again and the wall clock may be wrong (an empty battery, no
network). How long the machine was off is then unknown, so leases are not honoured until the
wall clock has passed the last time that was ever seen.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from exeat.ledger.clock import Clock

if TYPE_CHECKING:
    from exeat.appliance.control.store import Store

TOLERANCE_MS = 5000  # a clock that NTP steps back a little is no reason for alarm
KEEP_EVERY_MS = 5000


class TrustedClock:
    """`now_ms()` for every deadline; `trusted` is false while leases must wait."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._mark_ms = store.latest_ms
        self._clock = Clock(not_before_ms=self._mark_ms)
        self._kept_ms = 0
        self.trusted = self._wall_has_passed()

    def now_ms(self) -> int:
        return self._clock.now_ms()

    def tick(self) -> bool:
        """Keep the time; true when `trusted` has just changed."""
        now = self.now_ms()
        if self.trusted and now - self._kept_ms >= KEEP_EVERY_MS:
            self._store.keep_latest_ms(now)
            self._kept_ms = now
        was, self.trusted = self.trusted, self.trusted or self._wall_has_passed()
        return self.trusted is not was

    def _wall_has_passed(self) -> bool:
        return time.time_ns() // 1_000_000 >= self._mark_ms - TOLERANCE_MS
