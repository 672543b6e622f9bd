"""Connections that never come to the point are ended: a client that sends a request byte by byte, or none.

aiohttp ends what has been idle after a request; for a first request it waits without end.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence
    from typing import Protocol

    class Handler(Hashable, Protocol):
        """One connection of an aiohttp server."""

        def force_close(self) -> None: ...


PATIENCE_S: Final = 15.0
MOST: Final = 2048  # connections; of more, the newest that have asked for nothing yet go first


class Connections:
    """`served` is told of each that has brought a whole request; `sweep` ends the others in time."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._since: dict[Handler, float] = {}
        self._served: set[Handler] = set()

    def served(self, handler: Handler) -> None:
        self._served.add(handler)

    def sweep(self, there: Sequence[Handler]) -> int:
        """`there` are those that are open now, oldest first. How many were ended."""
        now = self._now()
        self._served.intersection_update(there)
        waiting = [handler for handler in there if handler not in self._served]
        self._since = {handler: self._since.get(handler, now) for handler in waiting}
        too_many = set(waiting[max(0, len(waiting) - max(0, len(there) - MOST)) :])
        ended = [each for each in waiting if each in too_many or now - self._since[each] >= PATIENCE_S]
        for handler in ended:
            handler.force_close()
        return len(ended)
