"""Refusals on the ledger, without a record for each when somebody is refused all the time.

A subject's first refusals are a record each. Beyond RATE a second, equal ones (verdict, reason, rule, and
destination while those are few) are summed, and each second the sums are appended: how many, since when,
and where to. None is left out of a count: what could not be recorded is summed and tried again, and
rather counted twice than never.
docs/formats/ledger.md, "Refusals".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from exeat.ledger.client import stamps
from exeat.ledger.limits import TokenBucket
from exeat.ledger.records import Kind, Record, encode
from exeat.proxy.refusal import host_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from exeat.ledger.client import LedgerClient
    from exeat.proxy.evidence import Evidence
    from exeat.proxy.jails import Jail

RATE: Final = 50.0  # records a second and subject
BURST: Final = 500.0
MAX_DESTS: Final = 32  # sums of one subject by destination; then by verdict, reason and rule
MAX_SUMS: Final = 256  # of one subject; then by verdict and reason
MAX_PLACES: Final = 64  # that one sum tells apart
NAMED: Final = 8  # of them, that its record names


class Same(NamedTuple):
    """What refusals that are summed have in common, beside who was refused. `place` "": many."""

    verdict: str
    reason: str
    rule: str
    place: str


@dataclass
class Sum:
    """`evidence` is of one of them. Times are CLOCK_REALTIME and CLOCK_BOOTTIME in nanoseconds."""

    evidence: Evidence
    first_ns: int
    last: tuple[int, int]
    count: int = 0
    places: dict[str, int] = field(default_factory=dict)
    more: bool = False  # than MAX_PLACES

    def add(self, place: str, count: int = 1) -> None:
        if not place:
            return
        if place in self.places or len(self.places) < MAX_PLACES:
            self.places[place] = self.places.get(place, 0) + count
        else:
            self.more = True

    def join(self, later: Sum) -> None:
        """What was counted since this one was sent belongs to it again."""
        self.count += later.count
        self.last = later.last
        self.more = self.more or later.more
        for place, count in later.places.items():
            self.add(place, count)

    def record(self, same: Same) -> bytes:
        subject = self.evidence.subject
        return encode(
            Record(
                Kind.DENY,
                *self.last,
                job=subject.job,
                project=subject.project,
                agent=subject.agent,
                dest=self.evidence.dest() if same.place else None,
                decision=same.verdict,
                reason_code=same.reason,
                rule_id=same.rule,
                generation=self.evidence.generation,
                policy_digest=self.evidence.policy_digest,
                posture=self.evidence.posture,
                episode=subject.episode,
                node=subject.node,
                count=self.count,
                duration_ms=max(0, self.last[0] - self.first_ns) // 1_000_000,
                detail="" if same.place else self._said(),
            )
        )

    def _said(self) -> str:
        most = sorted(self.places.items(), key=lambda item: (-item[1], item[0]))
        named = ", ".join(f"{place} x{count}" for place, count in most[:NAMED])
        left = len(most) - NAMED
        rest = f" and {left}{'+' if self.more else ''} more places" if left > 0 else ""
        return named.encode()[:900].decode("utf-8", "ignore") + rest


@dataclass
class Book:
    """Of one jail: what may still be a record of its own, and what is summed."""

    bucket: TokenBucket
    sums: dict[Same, Sum] = field(default_factory=dict)
    sent: int = 0  # records of sums without an answer


class Refusals:
    """`now` is seconds of a clock that never goes back; `settled` hears of a jail that owes nothing more."""

    def __init__(
        self, ledger: LedgerClient, now: Callable[[], float], settled: Callable[[Jail], None]
    ) -> None:
        self._ledger, self._now, self._settled = ledger, now, settled

    def note(self, jail: Jail, evidence: Evidence, reason: str) -> None:
        """`evidence` is of a flow that was refused for `reason`."""
        book = jail.refusals
        if book is None:
            book = jail.refusals = Book(TokenBucket(RATE, BURST, self._now()))
        if book.bucket.take(self._now()):
            jail.closing += 1
            self._ledger.append([evidence.deny(reason)], partial(self._noted, jail, book, evidence, reason))
        else:
            self._add(jail, book, evidence, reason)

    def _noted(self, jail: Jail, book: Book, evidence: Evidence, reason: str, durable: bool) -> None:
        if not durable:
            self._add(jail, book, evidence, reason)
        jail.closing -= 1
        if not jail.closing:
            self._settled(jail)

    def _add(self, jail: Jail, book: Book, evidence: Evidence, reason: str) -> None:
        decision = evidence.decision
        asked = decision is not None and decision.verdict == "ask"
        verdict, rule = "ask" if asked else "deny", decision.rule if decision is not None else ""
        place = f"{host_text(evidence.host)}:{evidence.port}" if evidence.host else ""
        same = _same(book, Same(verdict, reason, rule, place))
        real, boot = stamps()
        self._owe(jail, book)
        known = book.sums.get(same)
        if known is None:
            known = book.sums[same] = Sum(evidence, real, (real, boot))
        known.count += 1
        known.last = (real, boot)
        known.add(place)

    def flush(self, jail: Jail) -> None:
        """Append what is summed, unless the ledger still thinks about the last ones."""
        book = jail.refusals
        if book is None or not book.sums or book.sent:
            return
        sums, book.sums = book.sums, {}
        book.sent = len(sums)
        for same, each in sums.items():
            self._ledger.append([each.record(same)], partial(self._flushed, jail, book, same, each))

    def _flushed(self, jail: Jail, book: Book, same: Same, each: Sum, durable: bool) -> None:
        book.sent -= 1
        if not durable:
            later = book.sums.get(same)
            if later is not None:
                each.join(later)
            book.sums[same] = each
        if not book.sent and not book.sums:
            jail.closing -= 1
            self._settled(jail)

    @staticmethod
    def _owe(jail: Jail, book: Book) -> None:
        """The jail has not ended before its sums are durable."""
        if not book.sent and not book.sums:
            jail.closing += 1


def _same(book: Book, exact: Same) -> Same:
    """Under what it is summed: the more sums there are, the less they tell apart."""
    for same, most in ((exact, MAX_DESTS), (exact._replace(place=""), MAX_SUMS)):
        if same in book.sums or len(book.sums) < most:
            return same
    return exact._replace(rule="", place="")
