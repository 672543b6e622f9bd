"""The reservation gate of one flow: no byte passes that the ledger has not been told of (D3).

The ceiling counts both directions together. The next reservation is asked for while half of the
current one is unused, so that a healthy ledger is never waited for; when it does not answer, the
flow stops at the last durable ceiling. Steps double from 64 KiB to 4 MiB: O(log) records for a
small flow, one per 4 MiB for a large one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST_STEP = 64 * 1024  # bytes
LAST_STEP = 4 * 1024 * 1024
NEVER: Final = 2**64 - 1  # bytes


class Meter(Protocol):
    """A relay that counts by itself what it takes."""

    @property
    def taken(self) -> int: ...


class Gate:
    """`take` what was read from either side, never more than `room`; `grant` what became durable.

    With a `meter` nobody calls `take`: `check` once `asks_at` is reached.
    `request(ceiling)` is called when a higher ceiling is wanted; at most one is outstanding.
    """

    __slots__ = ("_asked", "_last", "_request", "_step", "_taken", "meter", "reserved")

    def __init__(self, request: Callable[[int], None]) -> None:
        self.reserved = 0
        self.meter: Meter | None = None
        self._taken = 0
        self._step = FIRST_STEP // 2
        self._asked = False
        self._last = False
        self._request = request

    def first_ceiling(self, waiting: int) -> int:
        """The ceiling of the first reservation, given the bytes already waiting to go out."""
        self._asked = True
        self._step = FIRST_STEP
        return max(FIRST_STEP, waiting + FIRST_STEP // 2)

    @property
    def taken(self) -> int:
        return self._taken if self.meter is None else self.meter.taken

    @property
    def room(self) -> int:
        return self.reserved - self.taken

    @property
    def last(self) -> bool:
        """Nothing more can be had than what is granted."""
        return self._last

    def take(self, count: int) -> None:
        self._taken += count
        self.check()

    def check(self) -> None:
        """Ask for more if so much has been taken that it is time."""
        if self._asked:
            return
        if self._last:
            if self.reserved <= self.taken:
                self._ask()
        elif (self.reserved - self.taken) * 2 < self._step:
            self._ask()

    @property
    def asks_at(self) -> int:
        """How many bytes are taken when `check` is to be called."""
        if self._asked:
            return NEVER
        return self.reserved if self._last else self.reserved - self._step // 2 + 1

    def _ask(self) -> None:
        self._asked = True
        self._last = False
        self._step = min(self._step * 2, LAST_STEP)
        self._request(self.reserved + self._step)

    def retry(self) -> None:
        """Ask again for what was refused (the ledger was away)."""
        self._asked = True
        self._request(self.reserved + self._step)

    def stop(self) -> None:
        """The flow has ended: nothing is asked for any more, and who was asked is let go of."""
        self._asked = True
        self._request = _nobody
        self._taken, self.meter = self.taken, None

    def exhaust(self) -> None:
        """Nothing more can be had now: ask once more only when all that is granted is used."""
        self._asked = False
        self._last = True

    def grant(self, ceiling: int) -> None:
        self.reserved = max(self.reserved, ceiling)
        self._asked = False
        if (self.reserved - self.taken) * 2 < self._step:
            self._ask()


def _nobody(_ceiling: int) -> None:
    """Whom a gate asks whose flow has ended."""
