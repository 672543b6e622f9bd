"""Taking in clients, in batches, as long as there are descriptors for them."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from exeat.ledger.reactor import EPOLLIN
from exeat.proxy import sockets
from exeat.proxy.ends import End, reset_on_close
from exeat.proxy.flow import Flow
from exeat.proxy.jails import Jail
from exeat.proxy.transparent import TransparentFlow

if TYPE_CHECKING:
    from exeat.proxy.gateway import Gateway

# Of an accepted socket and its peer: the jail it belongs to, and its way in as records call it.
Who = Callable[[socket.SocketType, Any], tuple[Jail, str]]

ACCEPT_BATCH: Final = 64
AGAIN_S: Final = 0.2  # after accept has failed
SPARE_FDS: Final = 128  # for pipes, sockets to our siblings, and saying no


class Accepting:
    """`watch` a listener: who comes in by it becomes a flow of the gateway's."""

    def __init__(self, gateway: Gateway, max_fds: int) -> None:
        self._gateway = gateway
        self._reactor = gateway.reactor
        self._max_fds = max_fds

    def watch(self, listener: socket.socket, who: Who, *, redirected: bool) -> None:
        """`redirected`: its clients do not know that there is a proxy."""
        if listener.family != socket.AF_UNIX:
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # what it accepts inherits it
        self._watch(listener, who, TransparentFlow if redirected else Flow)

    def _watch(self, listener: socket.socket, who: Who, kind: type[Flow]) -> None:
        self._reactor.add(listener.fileno(), EPOLLIN, lambda _: self._accept(listener, who, kind))

    def _accept(self, listener: socket.socket, who: Who, kind: type[Flow]) -> None:
        for _ in range(ACCEPT_BATCH):
            try:
                found = sockets.accept(listener)
            except OSError as error:
                # Out of descriptors in spite of the headroom: a level-triggered listener would spin.
                self._reactor.remove(listener.fileno())
                self._reactor.call_later(AGAIN_S, lambda: self._rewatch(listener, who, kind))
                print(f"exeat proxy: accept: {errno.errorcode.get(error.errno or 0, error)}", file=sys.stderr)
                return
            if found is None:
                return
            self._take(kind, found[0], *who(*found))

    def _rewatch(self, listener: socket.socket, who: Who, kind: type[Flow]) -> None:
        if listener.fileno() >= 0:  # not closed meanwhile
            self._watch(listener, who, kind)

    def _take(self, kind: type[Flow], sock: socket.SocketType, jail: Jail, src: str) -> None:
        here, fd = len(jail.flows), sock.fileno()
        if here >= 2 * jail.limit or fd > self._max_fds - SPARE_FDS // 2:
            reset_on_close(sock)
            sock.close()
            return
        flow = kind(self._gateway, jail, End(self._reactor, sock), src)
        self._gateway.enter(flow)
        if here >= jail.limit:
            flow.refuse_limit("limit.connections")
        elif fd > self._max_fds - SPARE_FDS:
            flow.refuse_limit("limit.descriptors")
        else:
            flow.begin()


def always(jail: Jail, src: str) -> Who:
    """Whoever comes in by a jail's socket is that jail."""
    return lambda _sock, _peer: (jail, src)
