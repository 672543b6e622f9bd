"""Data that leaves in the names of lookups: how much per domain, and what it looks like.

Pure; the caller brings the time (seconds). What counts are the octets of names that are new in
the last hour, below one registrable domain, for one subject: a bound on what can leave, because a
name cannot carry more than its octets. Shape (length, entropy, types) only makes it end sooner.
Memory is bounded; when it is full, those who spent least are forgotten first, so that nobody
can wash a spent budget away with other names.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Hashable

WINDOW_S = 3600.0
SLOTS = 6  # the window moves in steps of a sixth
ALERT_OCTETS = 4096
DENY_OCTETS = 8192
LONG_LABEL = 50  # octets; load balancers' names reach 60, so one such name says nothing
LONG_LABELS = 5
MANY_NAMES = 20  # with a mean of LONG_NAME octets below the domain
LONG_NAME = 40
CODED_NAME = 100  # octets below the domain that, with CODED_ENTROPY, no one types or generates
CODED_ENTROPY = 3.8  # bits per character
HUGE_NAME = 150  # octets below the domain: so long is nothing but data, however it is spelled
CODED_NAMES = 5  # of either kind
ODD_TYPES = 20  # questions of a type that carries data and that the guard does not serve
MAX_ENTRIES = 4096
MAX_NAMES = 200_000


class Alert(NamedTuple):
    """Something was noticed, once per window and degree. `octets` and `names` are those so far, `score`
    how much of what is refused for, from 0 to 1."""

    denied: bool
    domain: str
    score: float
    signals: tuple[str, ...]
    octets: int
    names: int


class _Slot:
    __slots__ = ("coded", "long_labels", "names", "number", "octets", "odd")

    def __init__(self, number: int) -> None:
        self.number = number
        self.names: set[int] = set()
        self.octets = 0
        self.coded = 0
        self.long_labels = 0
        self.odd = 0


class _Entry:
    """One subject's names below one domain."""

    __slots__ = ("alerted_until", "cut_until", "slots")

    def __init__(self) -> None:
        self.slots: list[_Slot] = []
        self.alerted_until = 0.0
        self.cut_until = 0.0

    def total(self, field: str) -> int:
        return sum(getattr(slot, field) for slot in self.slots)

    @property
    def count(self) -> int:
        return sum(len(slot.names) for slot in self.slots)

    def signals(self) -> tuple[str, ...]:
        octets, count = self.total("octets"), self.count
        found = {
            "octets": octets >= ALERT_OCTETS,
            "labels": self.total("long_labels") >= LONG_LABELS,
            "length": count >= MANY_NAMES and octets >= LONG_NAME * count,
            "coded": self.total("coded") >= CODED_NAMES,
            "types": self.total("odd") >= ODD_TYPES,
        }
        return tuple(name for name, seen in found.items() if seen)

    def score(self) -> float:
        share = max(self.total("octets") / DENY_OCTETS, self.total("coded") / CODED_NAMES)
        return round(min(1.0, share), 3)

    def spent(self) -> bool:
        return self.total("octets") >= DENY_OCTETS or self.total("coded") >= CODED_NAMES


class Tunnels:
    """Watches what subjects look up. A subject is anything hashable."""

    def __init__(self) -> None:
        self._entries: dict[tuple[Hashable, str], _Entry] = {}
        self._names = 0

    def __len__(self) -> int:
        return self._names

    def look(self, subject: Hashable, domain: str, host: str, now: float) -> tuple[bool, Alert | None]:
        """(may `host` be looked up, what to tell people). `host` is `domain` or below it."""
        entry = self._entries.get((subject, domain))
        if entry is None:
            if len(host) == len(domain):
                return True, None  # carries nothing
            entry = self._make(subject, domain)
        if now < entry.cut_until:
            return False, None
        slot = self._slot(entry, now)
        part = host[: len(host) - len(domain)]
        mark = hash(part)
        if not part or any(mark in old.names for old in entry.slots):
            return True, None
        self._count(slot, part, mark)
        alert = self._alert(entry, domain, now)
        allowed = now >= entry.cut_until
        if self._names > MAX_NAMES:
            self._make_room()
        return allowed, alert

    def odd_type(self, subject: Hashable, domain: str, now: float) -> Alert | None:
        """A question of a type that tunnels use; the guard does not serve it, but tells."""
        entry = self._entries.get((subject, domain)) or self._make(subject, domain)
        if now < entry.cut_until:
            return None
        self._slot(entry, now).odd += 1
        return self._alert(entry, domain, now)

    def _count(self, slot: _Slot, part: str, mark: int) -> None:
        slot.names.add(mark)
        self._names += 1
        slot.octets += len(part)  # with a dot for each length octet
        slot.long_labels += any(len(label) >= LONG_LABEL for label in part.split("."))
        coded = len(part) >= CODED_NAME and entropy(part) > CODED_ENTROPY
        slot.coded += coded or len(part) >= HUGE_NAME

    def _alert(self, entry: _Entry, domain: str, now: float) -> Alert | None:
        spent = entry.spent()
        if spent:
            entry.cut_until = now + WINDOW_S
        signals = entry.signals()
        if not spent and (not signals or now < entry.alerted_until):
            return None
        entry.alerted_until = now + WINDOW_S
        return Alert(spent, domain, entry.score(), signals, entry.total("octets"), entry.count)

    def _slot(self, entry: _Entry, now: float) -> _Slot:
        """The slot of `now`, with those that left the window gone."""
        number = int(now * SLOTS / WINDOW_S)
        if not entry.slots or entry.slots[-1].number != number:
            for old in entry.slots:
                if old.number <= number - SLOTS:
                    self._names -= len(old.names)
            entry.slots = [old for old in entry.slots if old.number > number - SLOTS]
            entry.slots.append(_Slot(number))
        return entry.slots[-1]

    def _make(self, subject: Hashable, domain: str) -> _Entry:
        if len(self._entries) >= MAX_ENTRIES:
            self._make_room()
        entry = self._entries[subject, domain] = _Entry()
        return entry

    def _make_room(self) -> None:
        """Forget an eighth of the entries: those that spent least, never one that is cut."""
        order = sorted(self._entries, key=lambda key: self._weight(self._entries[key]))
        for key in order[: len(order) // 8 + 1]:
            self._names -= self._entries.pop(key).count

    @staticmethod
    def _weight(entry: _Entry) -> tuple[float, int]:
        return entry.cut_until, entry.total("octets")


def entropy(text: str) -> float:
    """Shannon's, in bits per character, of the characters' own frequencies."""
    size = len(text)
    return -sum(n / size * math.log2(n / size) for n in Counter(text).values()) if size else 0.0
