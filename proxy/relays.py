"""Which relay moves the bytes of this process's tunnels: the compiled one where it was built, or Python's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exeat.proxy.pipes import PipePool
from exeat.proxy.relay import Relay

try:
    from exeat.proxy.compiled import CompiledRelay, CorePoller
except ImportError:  # there was no compiler: the other one does the same
    BUILT = False
else:
    BUILT = True

if TYPE_CHECKING:
    from collections.abc import Callable

    from exeat.ledger.reactor import Poller, Reactor
    from exeat.proxy.ends import End
    from exeat.proxy.gate import Gate
    from exeat.proxy.relaying import Relaying

COMPILED, PYTHON, AUTO = "compiled", "python", "auto"


class NotBuiltError(Exception):
    """The compiled relay is asked for, and it is not there."""


def in_use(wanted: str) -> str:
    """The relay that a configuration of `auto`, `python` or `compiled` means here. Raises NotBuiltError."""
    if wanted == COMPILED and not BUILT:
        raise NotBuiltError(
            '[proxy] relay = "compiled": it was not built when exeat was installed; that takes a C compiler'
            ' and the headers of Python. "auto" takes the one in Python instead'
        )
    return COMPILED if BUILT and wanted != PYTHON else PYTHON


def poller(wanted: str) -> Poller | None:
    """What the process's loop is to wait with; None: with its own. Raises NotBuiltError."""
    return CorePoller() if in_use(wanted) == COMPILED else None


class Relays:
    """Makes the relays of the tunnels that run on one loop: compiled if it waits with a Core."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        poller = reactor.poller
        self._core = poller.core if BUILT and isinstance(poller, CorePoller) else None
        self.pipes = PipePool()

    @property
    def idle_pipes(self) -> int:
        """Pipes that wait for the next bulk."""
        return self.pipes.idle + (0 if self._core is None else self._core.idle_pipes)

    @property
    def attached(self) -> int:
        """Tunnels that the core moves."""
        return 0 if self._core is None else self._core.attached

    @property
    def kind(self) -> str:
        return PYTHON if self._core is None else COMPILED

    def relay(self, client: End, upstream: End, gate: Gate, on_end: Callable[[str], None]) -> Relaying:
        """To be started; `on_end` as in Relay. Nobody will look at its bytes."""
        if self._core is not None:
            return CompiledRelay(self._core, client, upstream, gate, on_end)
        return self.watchable(client, upstream, gate, on_end)

    def settled(self, relay: Relay, gate: Gate, on_end: Callable[[str], None]) -> Relaying:
        """What moves the bytes of `relay` from now on: the core, if there is one and it lets go."""
        if self._core is None or not relay.let_go():
            return relay
        ends, before = (relay.client, relay.upstream), relay.counts()
        taken_over = CompiledRelay(self._core, *ends, gate, on_end, before)
        taken_over.start()
        return taken_over

    def watchable(self, client: End, upstream: End, gate: Gate, on_end: Callable[[str], None]) -> Relay:
        """The same for one whose bytes are looked at, and so come through Python."""
        return Relay(self._reactor, self.pipes, client, upstream, gate, on_end)
