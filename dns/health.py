"""How well one upstream does: what decides who is asked first, and when a second one is asked.

Pure: the caller brings the time (seconds). The estimate of a round trip is that of RFC 6298; its
"mean plus four deviations" is about what nineteen of twenty answers stay below.
"""

from __future__ import annotations

PENALTY_S = 5.0  # after the first failure, doubled by each further one
MAX_PENALTY_S = 60.0
UNKNOWN_HEDGE_S = 0.25
MIN_HEDGE_S = 0.02
MAX_HEDGE_S = 0.5


class Health:
    """One upstream's round trips and failures."""

    __slots__ = ("_deviation", "_failures", "_mean", "_until")

    def __init__(self) -> None:
        self._mean: float | None = None
        self._deviation = 0.0
        self._failures = 0
        self._until = 0.0

    def ok(self, seconds: float) -> None:
        """An answer came after `seconds`."""
        self._failures = 0
        self._until = 0.0
        self._sample(seconds)

    def outrun(self, seconds: float) -> None:
        """Another one was faster; this one would have taken longer than `seconds`."""
        if self._mean is not None and seconds > self._mean:
            self._sample(seconds)

    def failed(self, now: float) -> None:
        self._until = now + min(MAX_PENALTY_S, PENALTY_S * 2**self._failures)
        self._failures = min(10, self._failures + 1)

    def healthy(self, now: float) -> bool:
        """Whether it did not fail lately."""
        return now >= self._until

    @property
    def hedge_s(self) -> float:
        """How long to wait for it before someone else is asked as well."""
        if self._mean is None:
            return UNKNOWN_HEDGE_S
        return max(MIN_HEDGE_S, min(MAX_HEDGE_S, self._mean + 4 * self._deviation))

    def _sample(self, seconds: float) -> None:
        if self._mean is None:
            self._mean, self._deviation = seconds, seconds / 2
            return
        self._deviation += (abs(seconds - self._mean) - self._deviation) / 4
        self._mean += (seconds - self._mean) / 8
