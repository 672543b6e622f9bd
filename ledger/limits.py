"""A bound on how fast one jail may cause work."""

from __future__ import annotations


class TokenBucket:
    """`rate` tokens a second, saved up to `burst`. The caller brings the time (seconds)."""

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._at = now

    def has(self, now: float) -> bool:
        """Whether there is a token to take."""
        self._tokens = min(self._burst, self._tokens + max(0.0, now - self._at) * self._rate)
        self._at = now
        return self._tokens >= 1.0

    def take(self, now: float) -> bool:
        """Take one token if there is one."""
        if not self.has(now):
            return False
        self._tokens -= 1.0
        return True
