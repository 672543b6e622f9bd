"""Budgets of a fleet: a node reserves a part, spends it by itself, and comes back for more.

No flow waits for this: what is charged is charged to what the node holds. A reservation carries an id,
so that asking again after a lost answer charges once. A reservation that was made and never heard of
is lost to everybody until the window ends: a budget may be used less than it could be, never more.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final, NamedTuple

from exeat.appliance.fleet.engine import PREFIX, answer, script

if TYPE_CHECKING:
    from redis.asyncio import Redis

KEEP_S: Final = 3600  # a window's count outlives it by so long


class Pot(NamedTuple):
    """One counter of one budget of one project in one window; `limit` in its own units."""

    project: str
    budget: str
    counter: str
    window_start_ms: int
    window_ms: int
    limit: int

    @property
    def key(self) -> str:
        names = f"{self.project}:{self.budget}:{self.counter}"
        return f"{PREFIX}:bud:{names}:{self.window_start_ms}"


class Reservation(NamedTuple):
    """To be repeated as it is until there is an answer."""

    id: str
    pot: Pot
    wanted: int


def reservation(node: str, pot: Pot, wanted: int) -> Reservation:
    return Reservation(f"{node}:{secrets.token_hex(8)}", pot, wanted)


class Budgets:
    """Raises RefusedError `fleet.unavailable`."""

    def __init__(self, redis: Redis) -> None:
        self._script = redis.register_script(script("reserve"))

    async def reserve(self, asked: Reservation) -> tuple[int, int]:
        """How much of it was granted, and how much of the window is reserved by all."""
        keep = asked.pot.window_ms // 1000 + KEEP_S
        args: list[str | int] = [asked.id, asked.wanted, asked.pot.limit, keep]
        granted, used = await answer(self._script(keys=[asked.pot.key], args=args))
        return int(granted), int(used)
