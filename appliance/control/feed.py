"""What happens, as it happens, for who watches: the event journal, and through it the console.

Decisions of people, jobs and policies are told once their record is durable, from that record. Flows
and lookups are told by the gateway. Nothing here is kept for long: control numbers the last few thousand,
and the console's journal keeps them.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from exeat.appliance.told import ADMIN, told
from exeat.ledger.in_force import PLACE
from exeat.ledger.records import Kind, RecordError, decode, printable
from exeat.ledger.tally import PEOPLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from exeat.appliance.control.verbs import Verbs
    from exeat.ledger.ipc import Message
    from exeat.ledger.records import Record
    from exeat.ledger.tally import Tally

RECENT: Final = 8192
PAGE: Final = 1000  # events in one answer
WATCH_S: Final = 10.0
_ALERT_WORDS: Final = ("domain", "verdict")
_ALERT_NUMBERS: Final = ("score", "octets", "names")
_LOOKUP_WORDS: Final = ("project", "agent", "job", "host", "verdict", "reason")


class Feed:
    """`tally` counts what the records say; `waiting` are the requests that nobody has answered yet."""

    def __init__(self, tally: Tally, waiting: Mapping[str, int], now_ms: Callable[[], int]) -> None:
        """`waiting`: since when (ms since 1970), by id."""
        self._tally = tally
        self._waiting = dict(waiting)
        self._now_ms = now_ms
        self._id = os.urandom(8).hex()  # numbers begin anew with each process
        self._recent: deque[dict[str, Any]] = deque(maxlen=RECENT)
        self._next = 0
        self._news = asyncio.Event()

    def verbs(self) -> Verbs:
        return {"events.tail": self._tail}

    def say(self, topic: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Tell who watches; one event for each row."""
        at_ms = time.time_ns() // 1_000_000
        events = [{"topic": topic, "at_ms": at_ms, "data": row} for row in rows]
        if events:
            self._recent.extend(events)
            self._next += len(events)
            news, self._news = self._news, asyncio.Event()
            news.set()

    def wrote(self, records: Sequence[bytes]) -> None:
        """Records of control's that are durable now."""
        for data in records:
            try:
                record = decode(data)
            except RecordError:
                continue  # our own, so it does not happen; the ledger has judged it anyway
            waited_s = self._count(record)
            for topic, row in told(record, answered=waited_s is not None):
                self.say(topic, [row])

    def _count(self, record: Record) -> float | None:
        """Count it for the metrics. Seconds that a request had waited which this record answers."""
        project, what = record.project, record.decision
        if record.kind is Kind.JOB and what == "exit":
            self._tally.count("job_exits_total", project, record.reason_code)
        elif record.kind is Kind.RECONCILE:
            self._tally.add("ledger_drifts_total", by=max(1, record.count))
        elif record.kind is Kind.POLICY and what not in ADMIN and what != PLACE:
            self._tally.count("policy_reloads_total", project, what)
        elif record.kind is Kind.LEASE:
            return self._count_lease(record)
        return None

    def _count_lease(self, record: Record) -> float | None:
        project, name, now_ms = record.project, record.lease_id, self._now_ms()
        if record.decision == "requested":
            if name not in self._waiting:
                self._waiting[name] = now_ms
                self._tally.count("lease_requests_total", project, "asked")
            return None
        since = self._waiting.pop(name, None)
        if since is None:
            return None
        outcome = "approved" if record.decision == "active" else record.decision
        self._tally.count("lease_requests_total", project, outcome)
        waited_s = max(0, now_ms - since) / 1000
        if outcome == "approved":
            self._tally.time("lease_approval_duration_seconds", project, bounds=PEOPLE).add(waited_s)
        return waited_s

    def alert(self, message: Message) -> None:
        """The guard's `alert`: its text comes from outside."""
        subject = message.get("subject")
        who = subject if isinstance(subject, dict) else {}
        row: dict[str, Any] = {"kind": printable(str(message.get("reason", "")), 64)}
        row |= {key: printable(str(who.get(key, "")), 128) for key in ("project", "agent", "job")}
        row |= {key: printable(str(message.get(key, "")), 300) for key in _ALERT_WORDS}
        numbers = {key: message.get(key) for key in _ALERT_NUMBERS}
        self.say("alerts", [row | {key: value for key, value in numbers.items() if type(value) is int}])

    def lookups(self, rows: object) -> None:
        """First lookups of names, as the guard tells them."""
        found = [row for row in rows if isinstance(row, list)] if isinstance(rows, list) else []
        self.say(
            "dns",
            [
                dict(zip(_LOOKUP_WORDS, (printable(str(word), 300) for word in row), strict=True))
                for row in found
                if len(row) == len(_LOOKUP_WORDS)
            ],
        )

    async def _tail(self, message: Message, _fds: list[int]) -> dict[str, Any]:
        """What happened from number `after` of feed `feed` on; waits a while for it.

        Without `after`: where the end is now. Another feed than ours (we were restarted): all there is.
        """
        after = message.get("after")
        if type(after) is not int:
            return self._page([], self._next, 0)
        if message.get("feed") != self._id:
            after = 0
        if after >= self._next:
            try:
                async with asyncio.timeout(WATCH_S):
                    await self._news.wait()
            except TimeoutError:
                return self._page([], self._next, 0)
        oldest = self._next - len(self._recent)
        start = max(after, oldest)
        events = list(itertools.islice(self._recent, start - oldest, start - oldest + PAGE))
        return self._page(events, start + len(events), max(oldest - after, 0))

    def _page(self, events: list[dict[str, Any]], after: int, lost: int) -> dict[str, Any]:
        return {"feed": self._id, "events": events, "next": after, "lost": lost}
