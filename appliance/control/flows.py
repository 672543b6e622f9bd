"""The flows of this node for people: which there are, what happens, and cutting some.

For live views only; evidence is the ledger. What the proxy says is data of a process that speaks to
the outside: only known fields of it are passed on, as printable text and numbers.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from exeat.appliance.control.verbs import may
from exeat.appliance.errors import RefusedError
from exeat.ledger.records import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from exeat.appliance.control.direct import Direct
    from exeat.appliance.control.evidence import Evidence
    from exeat.appliance.control.hub import Hub
    from exeat.appliance.control.verbs import Verbs
    from exeat.ledger.ipc import Message

MAX_RECENT: Final = 4096  # events kept for those who watch
MAX_ROWS: Final = 2000
LIST_S: Final = 5.0
WATCH_S: Final = 10.0  # how long a watcher's question waits for something to happen
_WORDS: Final = frozenset(
    "ev flow project agent job dest proto state verdict reason rule lease".split()  # noqa: SIM905
)
_NUMBERS: Final = frozenset({"bytes_out", "bytes_in", "started_ns", "count"})
_WHAT: Final = ("flow", "project", "job", "lease")


class Flows:
    """`lease_id` gives the whole id of a lease, or raises RefusedError. `told` hears what happens, too."""

    def __init__(
        self,
        hub: Hub,
        evidence: Evidence,
        direct: Direct,
        lease_id: Callable[[str], str],
        told: Callable[[list[dict[str, Any]]], None] = lambda _: None,
    ) -> None:
        self._told = told
        self._direct = direct
        self._hub = hub
        self._evidence = evidence
        self._lease_id = lease_id
        self._recent: deque[dict[str, Any]] = deque(maxlen=MAX_RECENT)
        self._next = 0  # the number of the event to come
        self._news = asyncio.Event()
        self._numbers = itertools.count(1)
        self._lists: dict[int, _List] = {}

    def verbs(self) -> Verbs:
        return {"flow.ls": self._ls, "flow.tail": self._tail, "flow.cut": self._cut}

    def heard(self, message: Message) -> None:
        """The proxy's `flows` and `flows.part`."""
        if message.get("t") == "flows.part":
            listing = self._lists.get(message.get("request", 0))
            if listing is not None:
                listing.take(message)
            return
        events = _dicts(message.get("events"))
        if message.get("lost"):
            events.append({"ev": "lost", "count": message["lost"]})
        self.happened(events)

    def happened(self, rows: list[dict[str, Any]]) -> None:
        """Tell those who watch."""
        events = [_clean(row) for row in rows]
        self._recent.extend(events)
        self._told(events)
        self._next += len(events)
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def _ls(self, message: Message, _fds: list[int]) -> dict[str, Any]:
        project = message.get("project")
        found = await self._list({"project": project} if project else {"all": True}, MAX_ROWS)
        return {"flows": found.rows, "total": found.total}

    async def _list(self, what: Mapping[str, Any], limit: int) -> _List:
        """Raises RefusedError if the proxy does not answer."""
        number, found = next(self._numbers), _List(limit)
        self._lists[number] = found
        try:
            question = {"t": "flows.list", "request": number, "limit": limit, **what}
            if not self._hub.tell("proxy", question):
                raise RefusedError("gateway.unavailable", "not running: proxy; no flow lives")
            async with asyncio.timeout(LIST_S):
                await found.done.wait()
        except TimeoutError:
            raise RefusedError("gateway.unavailable", "the proxy does not say which flows live") from None
        finally:
            del self._lists[number]
        found.add([row for row in self._direct.rows() if _hits(what, row)])
        return found

    async def moved(self, lease: str) -> dict[str, Any]:
        """How much lives by a lease, and what it has moved so far; nothing if the proxy does not say."""
        try:
            rows = (await self._list({"lease": lease}, MAX_ROWS)).rows
        except RefusedError:
            return {}
        sums = {name: sum(row[name] for row in rows) for name in ("bytes_out", "bytes_in")}
        return {"live_flows": len(rows), **sums}

    async def _tail(self, message: Message, _fds: list[int]) -> dict[str, Any]:
        """What happened from event `after` on; waits a while for it. Without: where the end is now."""
        after = message.get("after")
        if type(after) is not int:
            return {"events": [], "next": self._next, "lost": 0}
        if after >= self._next:
            try:
                async with asyncio.timeout(WATCH_S):
                    await self._news.wait()
            except TimeoutError:
                return {"events": [], "next": self._next, "lost": 0}
        oldest = self._next - len(self._recent)
        skipped = max(after - oldest, 0)
        events = list(itertools.islice(self._recent, skipped, None))
        return {"events": events, "next": self._next, "lost": max(oldest - after, 0)}

    async def _cut(self, message: Message, _fds: list[int]) -> dict[str, Any]:
        """Cut first, then record: what ends waits for nothing but to know what it is."""
        who = may(message, "flow.cut")
        what = self._what(message)
        found = await self._list({"prefix": what["flow"]} if "flow" in what else what, MAX_ROWS)
        if "flow" in what:
            what["flow"] = found.only(what["flow"])
        self._hub.cut("cut", **what)
        self._direct.cut("cut", partial(_hits, what))
        projects = {row["project"] for row in found.rows}
        [(kind, name)] = what.items()
        reason = str(message.get("reason") or "")
        detail = f"{kind} {name} flows {found.total} {reason}".strip()
        project = projects.pop() if len(projects) == 1 else ""
        await self._evidence.owe(
            self._evidence.policy(project=project, digest="", actor=who, verdict="cut", detail=detail)
        )
        return {"flows": found.rows, "total": found.total}

    def _what(self, message: Message) -> dict[str, str]:
        """The one thing that is to be cut."""
        what = {key: message[key] for key in _WHAT if isinstance(message.get(key), str) and message[key]}
        if len(what) != 1:
            raise RefusedError("flow.what", "say what: one flow, project, job or lease")
        if "lease" in what:
            what["lease"] = self._lease_id(what["lease"])
        return what


class _List:
    """The parts of one answer of the proxy's."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.rows: list[dict[str, Any]] = []
        self.total = 0
        self.done = asyncio.Event()

    def take(self, part: Message) -> None:
        self._show(_dicts(part.get("rows")))
        total = part.get("total")
        self.total = total if type(total) is int else len(self.rows)
        if part.get("done"):
            self.done.set()

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Flows that the proxy does not know."""
        self.total += len(rows)
        self._show(rows)

    def _show(self, rows: list[dict[str, Any]]) -> None:
        ahead_ns = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        for row in rows[: max(0, self._limit - len(self.rows))]:
            clean = _clean(row)
            clean["since_ms"] = (clean.pop("started_ns", 0) + ahead_ns) // 1_000_000
            self.rows.append(clean)

    def only(self, prefix: str) -> str:
        """The id of the one flow there is. Raises RefusedError."""
        if self.total == 1 and len(self.rows) == 1:
            return str(self.rows[0]["flow"])
        if not self.total:
            raise RefusedError("flow.unknown", f"no live flow begins with `{prefix}`: see `exeat flow ls`")
        raise RefusedError("flow.ambiguous", f"{self.total} live flows begin with `{prefix}`: say more of it")


def _hits(what: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Whether a question to the proxy is about this row, too."""
    if "prefix" in what:
        return str(row["flow"]).startswith(str(what["prefix"]))
    return bool(what.get("all")) or any(row[key] == what[key] for key in _WHAT if key in what)


def _dicts(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _clean(row: Mapping[str, Any]) -> dict[str, Any]:
    words = {key: printable(row[key], 300) for key in row.keys() & _WORDS if isinstance(row[key], str)}
    return words | {key: row[key] for key in row.keys() & _NUMBERS if type(row[key]) is int}
