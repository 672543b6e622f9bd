"""Sliding windows: how often something may happen."""

from __future__ import annotations

from collections import OrderedDict, deque
from ipaddress import IPv6Address, ip_address
from typing import Final

MAX_KEYS: Final = 10_000  # the least recently seen is forgotten first


def place_of(remote: str | None) -> str:
    """What counts as one address: of IPv6 the /64. Who has one address of it has them all (RFC 6177)."""
    try:
        address = ip_address((remote or "").partition("%")[0])
    except ValueError:
        return str(remote)
    if not isinstance(address, IPv6Address):
        return str(address)
    return str(address.ipv4_mapped or f"{IPv6Address(int(address) >> 64 << 64)}/64")


class Window:
    """At most `most` events of one key in any `seconds`."""

    def __init__(self, most: int, seconds: float) -> None:
        self._most = most
        self._seconds = seconds
        self._seen: OrderedDict[str, deque[float]] = OrderedDict()

    def wait(self, key: str, now: float) -> float:
        """Seconds until one more may happen; 0: now."""
        times = self._seen.get(key)
        if times is None:
            return 0.0
        while times and times[0] <= now - self._seconds:
            times.popleft()
        return times[0] + self._seconds - now if len(times) >= self._most else 0.0

    def count(self, key: str, now: float) -> None:
        """It has happened once more."""
        times = self._seen.setdefault(key, deque(maxlen=self._most))
        times.append(now)
        self._seen.move_to_end(key)
        if len(self._seen) > MAX_KEYS:
            self._seen.popitem(last=False)

    def forget(self, key: str) -> None:
        self._seen.pop(key, None)

    def take(self, key: str, now: float) -> float:
        """Count it where it may happen (0), else say how many seconds to wait."""
        wait = self.wait(key, now)
        if not wait:
            self.count(key, now)
        return wait
