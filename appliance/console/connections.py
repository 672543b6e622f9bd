"""Connections that never come to the point are ended: a client that sends a request byte by byte, or none, or
that takes no answer.

aiohttp ends what has been idle after a request; for a first request, and for who reads nothing, it waits
without end.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Hashable, Sequence
    from typing import Protocol

    class Handler(Hashable, Protocol):
        """One connection of an aiohttp server."""

        transport: asyncio.Transport | None

        def force_close(self) -> None: ...


PATIENCE_S: Final = 15.0  # for a first request
STRANGER_S: Final = 120.0  # for an answer to somebody unknown to be taken
MOST: Final = 2048  # connections; of more, the newest without a request go first, then strangers' oldest


class Connections:
    """`served` is told of each whole request, `known` of those whose sender we know; `sweep` ends the rest
    in time."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._since: dict[Handler, float] = {}  # of strangers: of their last request, or of the first look
        self._served: set[Handler] = set()
        self._known: set[Handler] = set()

    def served(self, handler: Handler) -> None:
        self._served.add(handler)
        self._since[handler] = self._now()

    def known(self, handler: Handler) -> None:
        self._known.add(handler)

    def sweep(self, there: Sequence[Handler]) -> int:
        """`there` are those that are open now, oldest first. How many were ended."""
        now = self._now()
        self._served.intersection_update(there)
        self._known.intersection_update(there)
        strangers = [handler for handler in there if handler not in self._known]
        self._since = {handler: self._since.get(handler, now) for handler in strangers}
        waiting = [handler for handler in strangers if handler not in self._served]
        asked = [handler for handler in strangers if handler in self._served]
        over = max(0, len(there) - MOST)
        too_many = [*reversed(waiting), *asked][:over]
        late = [each for each in waiting if now - self._since[each] >= PATIENCE_S]
        late += [each for each in asked if now - self._since[each] >= STRANGER_S]
        ended = {*too_many, *late}
        for handler in ended:
            if handler.transport is not None:
                handler.transport.abort()  # closing would wait for a reader who does not read
            handler.force_close()
        return len(ended)
