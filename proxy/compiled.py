"""The relay of a tunnel whose bytes the compiled core moves (`_relay.c`): the same face as `relay.Relay`.

Python hears of it when its reservation gets short and when it is over.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Final

from exeat.proxy._relay import NEWS, Core, Tunnel
from exeat.proxy.ends import HANGUP

if TYPE_CHECKING:
    from collections.abc import Callable

    from exeat.proxy.ends import End
    from exeat.proxy.gate import Gate

_NOTHING: Final = (0, 0)
_OVER: Final = {1: "eof", 2: "reset"}


class CorePoller:
    """What a loop waits with: an epoll set, and the core that serves the tunnels among its sockets."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self.core = Core(self._epoll.fileno())
        self.register, self.modify = self._epoll.register, self._epoll.modify
        self.unregister, self.poll = self._epoll.unregister, self.core.poll

    def close(self) -> None:
        self.core.close()
        self._epoll.close()


class CompiledRelay(Tunnel):
    """A tunnel, as `relay.Relay`."""

    __slots__ = ("_before", "_core", "_gate", "_on_end", "client", "ended", "upstream")

    def __init__(
        self,
        core: Core,
        client: End,
        upstream: End,
        gate: Gate,
        on_end: Callable[[str], None],
        before: tuple[int, int] = _NOTHING,
    ) -> None:
        """`before`: bytes (out, in) that another relay has moved."""
        self._core, self._before = core, before
        self._on_end: Callable[[str], None] | None = on_end
        self.client, self.upstream = client, upstream
        self._gate = gate
        self.ended = False

    def start(self, first: bytes = b"") -> None:
        client, upstream, gate = self.client, self.upstream, self._gate
        client.heard_by(self._heard)
        upstream.heard_by(_unheard)
        ends = client.fd, client.known, upstream.fd, upstream.known
        self.attach(self._core, *ends, *self._may_take(), first)
        gate.meter = self

    def _may_take(self) -> tuple[int, int]:
        """How many bytes the core may take, and after how many it asks."""
        before = sum(self._before)
        return self._gate.reserved - before, max(0, self._gate.asks_at - before)

    @property
    def taken(self) -> int:
        return super().taken + sum(self._before)

    def counts(self) -> tuple[int, int]:
        out, back, _, _ = self.books()
        return self._before[0] + out, self._before[1] + back

    def undelivered(self, way: int) -> int:
        return self.books()[2 + way]

    def kick(self) -> None:
        """Go on after something other than a socket changed, such as the reservation."""
        if not self.ended:
            self.allow(*self._may_take())

    def end(self, reason: str) -> None:
        """Stop moving bytes. What to do with the sockets is up to the owner's `on_end`."""
        on_end, self._on_end = self._on_end, None
        if on_end is None:
            return
        self.ended = True
        known = self.detach()
        client = self.client  # another flow may go on with it
        client.readable = True
        client.hangup = client.hangup or bool(known & HANGUP)
        client.silence()
        self.upstream.silence()
        on_end(reason)

    def _heard(self, events: int) -> None:
        """Other events are of a time before: they were noted when it was attached."""
        if not events & NEWS or self.ended:
            return
        if self.over:
            self.end(_OVER[self.over])
        else:
            self._gate.check()
            self.allow(*self._may_take())


def _unheard(_events: int) -> None:
    """The core hears of it."""
