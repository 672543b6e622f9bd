"""The addresses of direct flows: what the guard vetted, for as long as it said and a little longer.

A name is looked up when its flow begins, and again before its addresses end; and when a member looks it up,
the guard tells what it is about to answer, and answers once the pinhole has it. Addresses that a name no
longer has stay until their own time is over.
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING, Any, Final

from exeat.appliance.errors import RefusedError
from exeat.policy.model import Address

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from exeat.appliance.control.aio import Requester
    from exeat.appliance.control.direct_flow import DirectFlow
    from exeat.ledger.ipc import Message

LEAST_S: Final = 60.0  # clients use an answer for longer than its time to live says
SOON_S: Final = 20.0  # before its end a name is looked up again
LOOKUP_S: Final = 10.0
MAX_ADDRESSES: Final = 64  # of one name, as the warden takes; those that end first give way
MAX_NAMES: Final = 1024

Key = tuple[str, str, str]  # project, agent, name


class DirectPins:
    """`answer` tells the guard something; `opened` has the warden open what is new."""

    def __init__(
        self,
        guard: Requester,
        answer: Callable[[Message], bool],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._guard, self._answer, self._spawn = guard, answer, spawn
        self._books: dict[Key, dict[Address, float]] = {}
        self._looking: set[Key] = set()

    async def first(self, flow: DirectFlow) -> dict[Address, float]:
        """Where the flow may go. Raises RefusedError with the guard's reason code."""
        host = flow.place.host
        if isinstance(host, Address):
            return {host: math.inf}
        await self._look(flow, _key(flow, host))
        return self._live(_key(flow, host))

    def following(self, flow: DirectFlow) -> dict[Address, float]:
        """The same now; looks the name up beside if that is due."""
        host = flow.place.host
        if isinstance(host, Address):
            return {host: math.inf}
        key = _key(flow, host)
        live = self._live(key)
        if min(live.values(), default=0.0) < time.monotonic() + SOON_S and key not in self._looking:
            self._looking.add(key)
            self._spawn(self._again(flow, key))
        return live

    async def _again(self, flow: DirectFlow, key: Key) -> None:
        try:
            await self._look(flow, key)
        except RefusedError:
            await asyncio.sleep(1)  # what it has ends by itself
        finally:
            self._looking.discard(key)

    async def _look(self, flow: DirectFlow, key: Key) -> None:
        of = flow.terms
        try:
            async with asyncio.timeout(LOOKUP_S):
                reply, _ = await self._guard.call(
                    "resolve",
                    subject=flow.subject,
                    host=of.host,
                    port=of.port,
                    proto=of.proto,
                    lease=of.lease,
                )
        except TimeoutError:
            raise RefusedError("dns.unavailable", "the DNS guard does not answer") from None
        self._note(key, reply["addresses"])

    def _note(self, key: Key, addresses: list[dict[str, Any]]) -> None:
        if key not in self._books and len(self._books) >= MAX_NAMES:
            del self._books[next(iter(self._books))]
        book, now = self._books.setdefault(key, {}), time.monotonic()
        for item in addresses:
            address = Address(int(item["family"]), int(item["value"]))
            book[address] = max(book.get(address, 0.0), now + max(float(item["ttl"]), LEAST_S))
        for address in sorted(book, key=book.__getitem__)[: max(0, len(book) - MAX_ADDRESSES)]:
            del book[address]

    def _live(self, key: Key) -> dict[Address, float]:
        now = time.monotonic()
        book = self._books.get(key, {})
        for address in [address for address, end in book.items() if end <= now]:
            del book[address]
        return dict(book)

    def key_of(self, flow: DirectFlow) -> Key | None:
        """Whose book the flow reads; None for an address, which is in none."""
        host = flow.place.host
        return None if isinstance(host, Address) else _key(flow, host)

    def told(self, message: Message) -> Key:
        """The guard's `pins`: it is about to answer these addresses."""
        subject = message["subject"]
        key = (str(subject["project"]), str(subject["agent"]), str(message["host"]))
        self._note(key, message["addresses"])
        return key

    def done(self, message: Message) -> None:
        """They are open: the guard may answer."""
        self._answer({"t": "pins.set", "key": message["key"]})


def _key(flow: DirectFlow, host: str) -> Key:
    subject = flow.subject
    return subject["project"], subject["agent"], host
