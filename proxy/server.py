"""`exeat serve proxy`: the process around the Gateway."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Final

from exeat.ledger.reactor import Reactor
from exeat.ledger.supervised import beat
from exeat.proxy import relays
from exeat.proxy.gateway import Gateway, ProxySettings

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ProxySettings", "serve"]

COLLECT_AFTER: Final = 10_000  # more objects than when it last looked
GOODBYE_S: Final = 1.0  # for the last close records


def serve(settings: ProxySettings, ready: Callable[[], None]) -> int:
    """Run until SIGTERM or SIGINT; 0. `ready` is called once the loop is about to turn.

    Raises `relays.NotBuiltError`.
    """
    reactor = Reactor(poller=relays.poller(settings.relay))
    reactor.stop_on_signals()
    gateway = Gateway(settings, reactor)
    # What exists now lives as long as the process: keep the collector from walking it each time. Flows
    # leave no cycles behind, so it has little to find.
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, 20, 50)
    beat(reactor)
    reactor.call_soon(ready)
    reactor.run()
    gateway.shut_down()
    until = reactor.now() + GOODBYE_S
    while not gateway.drained and reactor.now() < until:
        reactor.turn(0.05)
    reactor.close()
    return 0
