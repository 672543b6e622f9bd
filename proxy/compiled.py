"""The relay of a tunnel whose bytes the compiled core moves (`_relay.c`): the same face as `relay.Relay`.

Python hears of it when its reservation gets short and when it is over; and of every read, as long as
an intake looks at that side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from exeat.proxy._relay import NEWS, Tunnel
from exeat.proxy.ends import HANGUP
from exeat.proxy.relay import TURN_BYTES
from exeat.proxy.relaying import DOWN, UP, StopRelay

if TYPE_CHECKING:
    from collections.abc import Callable

    from exeat.ledger.reactor import Reactor
    from exeat.proxy._relay import Core
    from exeat.proxy.ends import End
    from exeat.proxy.gate import Gate
    from exeat.proxy.relaying import Intake

_OVER: Final = {1: "eof", 2: "reset"}


class CompiledRelay(Tunnel):
    """A tunnel, as `relay.Relay`."""

    __slots__ = ("_core", "_gate", "_intakes", "_on_end", "_reactor", "client", "ended", "upstream")

    def __init__(
        self,
        reactor: Reactor,
        core: Core,
        client: End,
        upstream: End,
        gate: Gate,
        on_end: Callable[[str], None],
    ) -> None:
        self._reactor, self._core = reactor, core
        self._on_end: Callable[[str], None] | None = on_end
        self.client, self.upstream = client, upstream
        self._gate = gate
        self._intakes: list[Intake | None] | None = None
        self.ended = False

    def start(self, first: bytes = b"") -> None:
        client, upstream = self.client, self.upstream
        client.heard_by(self._heard)
        upstream.heard_by(_unheard)
        self.attach(self._core, client.fd, client.known, upstream.fd, upstream.known)
        self._gate.meter = self
        self.allow(self._gate.reserved, self._gate.asks_at)
        if first:
            try:
                self.send(UP, first)
            except OSError:
                self.end("reset")
                return
            self._ask()

    def intake(self, way: int) -> Intake | None:
        return self._intakes[way] if self._intakes is not None else None

    def watch(self, way: int, intake: Intake | None) -> None:
        intakes = self._intakes or [None, None]
        intakes[way] = intake
        self._intakes = intakes if any(intakes) else None
        self.watched(way, intake is not None)

    def kick(self) -> None:
        """Go on after something other than a socket changed, such as the reservation."""
        if not self.ended:
            self.allow(self._gate.reserved, self._gate.asks_at)
            self.queue()

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
        self._intakes = None
        on_end(reason)

    def _heard(self, events: int) -> None:
        """Other events are of a time before: they were noted when it was attached."""
        if not events & NEWS or self.ended:
            return
        if self._intakes is not None and not self._look_at_both():
            return
        if self.over:
            self.end(_OVER[self.over])
        else:
            self._ask()

    def _ask(self) -> None:
        self._gate.check()
        self.allow(self._gate.reserved, self._gate.asks_at)

    def _look_at_both(self) -> bool:
        """Serve the intakes; False when that has ended the tunnel."""
        try:
            read = self._look_at(UP) + self._look_at(DOWN)
        except StopRelay as stop:
            self.end(stop.reason)
        except OSError:
            self.end("reset")
        else:
            down = self.intake(DOWN)
            if down is not None and down.over and not self.undelivered(DOWN):
                self.end("eof")
            elif not self.over and self.failed():
                self.end("reset")
            elif read:
                self.queue()
        return not self.ended

    def _look_at(self, way: int) -> int:
        """Read what there is to read for the intake of this way; how often that was."""
        budget, times = TURN_BYTES, 0
        while budget > 0:
            intake = self.intake(way)
            if intake is None or intake.over:
                break
            data = self.read(way)
            if data is None:
                break
            times += 1
            if not data:
                intake.end()
                break
            budget -= len(data)
            passing = intake.take(memoryview(data))
            if intake.done and self.intake(way) is intake:  # one may have put another in its place
                self.watch(way, None)
            if passing:
                self.send(way, passing)
        return times


def _unheard(_events: int) -> None:
    """The core hears of it."""
