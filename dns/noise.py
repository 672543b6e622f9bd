"""Octets that nobody can guess, for ids and letter cases: the system's, taken many at a time."""

from __future__ import annotations

import os

BLOCK = 4096  # octets of one system call


class Noise:
    """Hands out the system's random octets, each of them once. For one process: nothing may fork it."""

    def __init__(self) -> None:
        self._block = b""
        self._at = 0

    def take(self, size: int) -> bytes:
        """`size` octets, at most BLOCK."""
        end = self._at + size
        if end > len(self._block):
            self._block = os.urandom(BLOCK)
            end = size
        self._at = end
        return self._block[end - size : end]


NOISE = Noise()
