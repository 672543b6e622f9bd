"""Messages of a fleet as Redis keeps them: what Home says to everybody, and what each node tells Home.

Streams hold envelopes as they were signed; whoever reads judges them (`policy.fleet`). A reader keeps its
own place, so nobody waits for anybody, and what was read twice is refused by its number. Of what Home
says the newest are kept, of what a node tells what Home has not taken yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from exeat.appliance.fleet.acl import STREAMS, events, stream
from exeat.appliance.fleet.engine import TIMEOUT_S, answer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis.asyncio import Redis

START: Final = "0-0"
KEEP: Final = 10_000  # messages of a stream of Home's, about
MAX_TOLD: Final = 100_000  # events of one node that Home has not taken; then the node keeps them
BATCH: Final = 256
BLOCK_MS: Final = int(TIMEOUT_S * 500)  # below what ends a connection that says nothing

_FIELD: Final = "e"


class Message(NamedTuple):
    """`place` is where the reader goes on after it."""

    source: str
    place: str
    envelope: bytes


class Bus:
    """One node's way to the streams. Every method raises RefusedError `fleet.unavailable`."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def say(self, name: str, envelope: bytes) -> str:
        """Home: to everybody. Its place."""
        return _text(await answer(self._redis.xadd(stream(name), {_FIELD: envelope}, maxlen=KEEP)))

    async def listen(self, places: Mapping[str, str], *, block: bool = True) -> list[Message]:
        """What Home has said after `places` (by name of the stream; START: all that is kept)."""
        wanted = {stream(name): places.get(name, START) for name in STREAMS}
        names = {stream(name): name for name in STREAMS}
        return await self._read(wanted, names, block=block)

    async def tell(self, node: str, envelope: bytes) -> bool:
        """A node: to Home. False where Home has not taken so many that this one has to wait."""
        if int(await answer(self._redis.xlen(events(node)))) >= MAX_TOLD:
            return False
        await answer(self._redis.xadd(events(node), {_FIELD: envelope}))
        return True

    async def hear(self, places: Mapping[str, str], *, block: bool = True) -> list[Message]:
        """Home: what nodes have told after `places` (by node)."""
        names = {events(node): node for node in places}
        return await self._read({events(node): place for node, place in places.items()}, names, block=block)

    async def taken(self, node: str, place: str) -> None:
        """Home has stored what `node` told up to `place`, and needs it here no more."""
        number, _, count = place.partition("-")
        after = f"{number}-{int(count) + 1}"
        await answer(self._redis.xtrim(events(node), minid=after, approximate=False))

    async def _read(
        self, wanted: Mapping[str, str], names: Mapping[str, str], *, block: bool
    ) -> list[Message]:
        if not wanted:
            return []
        after: dict[Any, Any] = dict(wanted)
        found = await answer(self._redis.xread(after, count=BATCH, block=BLOCK_MS if block else None))
        return [
            Message(names[_text(key)], _text(place), fields.get(_FIELD.encode(), b""))
            for key, parts in (found or {}).items()
            for entries in parts
            for place, fields in entries
        ]


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
