"""What one subject's lookups are like as a whole: how many, how many lead nowhere, of which types.

Pure; the caller brings the time (seconds). `tunnels` bounds what leaves below one domain; this notices
what is spread over many: names made by rule until one exists, data types asked for everywhere, and
more questions than a client has. No feature proves anything by itself, so they make a score. Counted
are questions that went upstream; what the guard remembers or refuses is no habit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Hashable

WINDOW_S: Final = 600.0
SLOTS: Final = 10
ALERT: Final = 0.6  # scores, from 0 to 1
DENY: Final = 0.85
SIGNAL: Final = 0.2  # what a feature must bring to be named
# A feature counts in full at this number, and weighs so much: volume alone is no reason to do anything.
VOLUME, VOLUME_WEIGHT = 6000, 0.4  # questions in the window: ten a second, all the time
NOWHERE, NOWHERE_WEIGHT = 100, 0.9  # registrable domains that do not exist
NOWHERE_SHARE: Final = 0.5  # of the domains asked for; a search list makes wrong names, not wrong domains
TYPES, TYPES_WEIGHT = 100, 0.9  # questions of types that carry data and that the guard does not serve
TYPES_SHARE: Final = 0.25  # of all questions
MAX_DOMAINS: Final = 1024  # of one slot; far beyond what makes the score full
MAX_SUBJECTS: Final = 1024


class Notice(NamedTuple):
    """Something changed for the worse, once per window and degree."""

    score: float
    signals: tuple[str, ...]
    questions: int

    @property
    def denied(self) -> bool:
        """Whether a strict preset refuses for it."""
        return self.score >= DENY


class _Slot:
    __slots__ = ("domains", "nowhere", "number", "odd", "questions")

    def __init__(self, number: int) -> None:
        self.number = number
        self.questions = 0
        self.odd = 0
        self.domains: set[int] = set()
        self.nowhere: set[int] = set()


class _Entry:
    __slots__ = ("alerted_until", "cut_until", "slots")

    def __init__(self) -> None:
        self.slots: list[_Slot] = []
        self.alerted_until = 0.0
        self.cut_until = 0.0

    @property
    def questions(self) -> int:
        return sum(slot.questions for slot in self.slots)

    def features(self) -> dict[str, float]:
        """How strong each is, from 0 to 1, and already weighed."""
        questions, odd = self.questions, sum(slot.odd for slot in self.slots)
        domains = len(set().union(*(slot.domains for slot in self.slots)))
        nowhere = len(set().union(*(slot.nowhere for slot in self.slots)))
        return {
            "volume": VOLUME_WEIGHT * min(1.0, questions / VOLUME),
            "nowhere": NOWHERE_WEIGHT * min(1.0, nowhere / NOWHERE) * (nowhere >= NOWHERE_SHARE * domains),
            "types": TYPES_WEIGHT * min(1.0, odd / TYPES) * (odd >= TYPES_SHARE * (questions + odd)),
        }


class Habits:
    """Watches what subjects ask for. A subject is anything hashable."""

    def __init__(self) -> None:
        self._entries: dict[Hashable, _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def cut(self, subject: Hashable, now: float) -> bool:
        """Whether the subject's score was one to refuse for, within the last window."""
        entry = self._entries.get(subject)
        return entry is not None and now < entry.cut_until

    def heard(self, subject: Hashable, domain: str, now: float, *, exists: bool) -> Notice | None:
        """One question about a name below `domain` was answered; `exists` is False for NXDOMAIN."""
        entry, slot = self._slot(subject, now)
        slot.questions += 1
        mark = hash(domain)
        new = mark not in slot.domains and len(slot.domains) < MAX_DOMAINS
        if new:
            slot.domains.add(mark)
        worse = not exists and mark in slot.domains and mark not in slot.nowhere
        if worse:
            slot.nowhere.add(mark)
        elif exists:
            slot.nowhere.discard(mark)  # the domain is there after all
        # The score is worth its computation only where it may have risen.
        return self._notice(entry, now) if worse or slot.questions % 64 == 0 else None

    def odd_type(self, subject: Hashable, now: float) -> Notice | None:
        """One question of a type that only tunnels and zone transfers want."""
        entry, slot = self._slot(subject, now)
        slot.odd += 1
        return self._notice(entry, now)

    def _notice(self, entry: _Entry, now: float) -> Notice | None:
        features = entry.features()
        rest = 1.0
        for strength in features.values():
            rest *= 1.0 - strength
        signals = tuple(name for name, strength in features.items() if strength >= SIGNAL)
        notice = Notice(round(1.0 - rest, 3), signals, entry.questions)
        if notice.score < ALERT or now < (entry.cut_until if notice.denied else entry.alerted_until):
            return None
        entry.alerted_until = now + WINDOW_S
        if notice.denied:
            entry.cut_until = now + WINDOW_S
        return notice

    def _slot(self, subject: Hashable, now: float) -> tuple[_Entry, _Slot]:
        entry = self._entries.get(subject)
        if entry is None:
            if len(self._entries) >= MAX_SUBJECTS:
                self._make_room()
            entry = self._entries[subject] = _Entry()
        number = int(now * SLOTS / WINDOW_S)
        if not entry.slots or entry.slots[-1].number != number:
            entry.slots = [old for old in entry.slots if old.number > number - SLOTS]
            entry.slots.append(_Slot(number))
        return entry, entry.slots[-1]

    def _make_room(self) -> None:
        """Forget an eighth: those that asked least, never one that is cut before one that is not."""
        order = sorted(
            self._entries,
            key=lambda subject: (self._entries[subject].cut_until, self._entries[subject].questions),
        )
        for subject in order[: len(order) // 8 + 1]:
            del self._entries[subject]
