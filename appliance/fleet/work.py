"""Work for a fleet: tasks wait in Redis, a worker holds one for a time, and only its holder may end it.

`lua/queue.lua` does each step as one. A task's body is bytes that Home has signed; this only carries
them. A worker renews what it holds; who does not in time has lost it, whatever it says later: each
lease has a number of its own (a fence, Kleppmann 2016), and an old one ends nothing.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from exeat.appliance.fleet.engine import PREFIX, answer, script

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis.asyncio import Redis

QUEUE: Final = f"{PREFIX}:q"
ALL: Final = "*"


class Held(StrEnum):
    """What a worker is told when it renews. All but `held`: stop the job."""

    HELD = "held"
    LOST = "lost"  # another may have it by now
    HALT = "halt"  # the kill switch of its project, or of all
    CANCEL = "cancel"
    PREEMPT = "preempt"  # give it back, something more important waits


class Turn(NamedTuple):
    """A task that a worker holds."""

    id: str
    fence: int
    body: bytes


class Work:
    """The queue as one node uses it. Every method raises RefusedError `fleet.unavailable`."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._script = redis.register_script(script("queue"))

    async def submit(
        self, task: str, project: str, body: bytes, *, group: str = "", priority: int = 0, tries: int = 1
    ) -> bool:
        """False if it is there already. `tries`: how often it is begun at most; then it is dead."""
        return bool(await self._step("submit", task, project, group, priority, tries, body))

    async def lease(self, worker: str, ttl_ms: int) -> Turn | None:
        """The next task, for `ttl_ms` unless it is renewed; None where nothing may begin now."""
        found = await self._step("lease", worker, ttl_ms)
        return Turn(found[0].decode(), int(found[1]), found[2]) if found else None

    async def renew(self, turn: Turn, ttl_ms: int) -> Held:
        return Held((await self._step("renew", turn.id, turn.fence, ttl_ms)).decode())

    async def finish(self, turn: Turn, state: str) -> bool:
        """False if it is not ours any more."""
        return bool(await self._step("finish", turn.id, turn.fence, state))

    async def give_back(self, turn: Turn, delay_ms: int = 0) -> str:
        """`waiting`, `dead` after its last try, `cancelled`, or `lost`."""
        said: bytes = await self._step("give_back", turn.id, turn.fence, delay_ms)
        return said.decode()

    async def cancel(self, task: str) -> str:
        """`cancelled` if it waited, `told` if its worker will hear of it, `no` if it is over."""
        said: bytes = await self._step("flag", task, Held.CANCEL)
        return said.decode()

    async def preempt(self, task: str) -> bool:
        return bool(await self._step("flag", task, Held.PREEMPT) == b"told")

    async def forget(self, task: str) -> bool:
        return bool(await self._step("forget", task))

    async def state(self, task: str) -> str:
        """waiting, leased, cancelled, dead, or what `finish` said; "" where there is no such task."""
        found: bytes | None = await answer(self._redis.hget(f"{QUEUE}:task:{task}", "state"))
        return (found or b"").decode()

    async def halt(self, project: str, *, on: bool) -> None:
        """The kill switch; `*` is everybody."""
        step = self._redis.sadd if on else self._redis.srem
        await answer(step(f"{QUEUE}:halted", project))

    async def shape(self, limits: Mapping[str, int], weights: Mapping[str, int]) -> None:
        """How many may run at once, of "p:PROJECT" and "g:GROUP", and the shares of projects."""
        async with self._redis.pipeline(transaction=True) as pipe:
            for name, values in (("limit", limits), ("weight", weights)):
                pipe.delete(f"{QUEUE}:{name}")
                if values:
                    pipe.hset(f"{QUEUE}:{name}", mapping=dict(values.items()))
            await answer(pipe.execute())

    async def _step(self, *words: str | int | bytes) -> Any:
        return await answer(self._script(keys=[QUEUE], args=list(words)))
