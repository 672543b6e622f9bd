"""Connecting to one of the vetted addresses; never to a name, never through a resolver.

Addresses are tried in the guard's order; the next one starts when the last failed or after
250 ms without an answer (RFC 8305 section 5), and the first connection made wins.
"""

from __future__ import annotations

import errno
import socket
from functools import partial
from typing import TYPE_CHECKING, Final

from exeat.ledger.reactor import EPOLLERR, EPOLLHUP, EPOLLOUT
from exeat.proxy import sockets
from exeat.proxy.ends import End

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from exeat.ledger.reactor import Reactor, Timer
    from exeat.policy.model import Address

STAGGER_S: Final = 0.25
MAX_ADDRESSES: Final = 8
_CODES: Final = {
    errno.ECONNREFUSED: "dial.refused",
    errno.ECONNRESET: "dial.refused",
    errno.ETIMEDOUT: "dial.timeout",
    errno.EMFILE: "limit.descriptors",
    errno.ENFILE: "limit.descriptors",
}


class Dialer:
    """One dial: `on_done(end, address)` or `on_failed(reason code)`, once; `cancel` for neither.

    Neither is called from within the constructor. The end only notes its events until its new owner
    has it heard by somebody.
    """

    __slots__ = (
        "_last",
        "_left",
        "_on_done",
        "_on_failed",
        "_over",
        "_port",
        "_reactor",
        "_timer",
        "_trying",
    )

    def __init__(
        self,
        reactor: Reactor,
        addresses: Sequence[Address],
        port: int,
        on_done: Callable[[End, Address], None],
        on_failed: Callable[[str], None],
    ) -> None:
        self._reactor = reactor
        self._left = list(addresses[:MAX_ADDRESSES])
        self._port = port
        self._on_done = on_done
        self._on_failed = on_failed
        self._trying: list[End] = []
        self._timer: Timer | None = None
        self._last = "dial.unreachable"
        self._over = False
        self._next()

    def cancel(self) -> None:
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        for end in self._trying:
            end.close()
        self._trying.clear()

    def _next(self) -> None:
        """Start the next address; on an immediate failure the one after it."""
        while self._left and not self._over:
            address = self._left.pop(0)
            if self._start(address):
                if self._left:
                    self._timer = self._reactor.call_later(STAGGER_S, self._next)
                return
        if not self._trying and not self._over:
            self._over = True
            self._reactor.call_soon(lambda: self._on_failed(self._last))

    def _start(self, address: Address) -> bool:
        sock = sockets.dial(address, self._port)
        if isinstance(sock, int):
            self._last = _CODES.get(sock, "dial.unreachable")
            return False
        end = End(self._reactor, sock)
        end.heard_by(partial(self._event, end, address))
        self._trying.append(end)
        return True

    def _event(self, end: End, address: Address, events: int) -> None:
        end.note(events)
        code = (
            end.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if events & (EPOLLERR | EPOLLHUP) else 0
        )
        if not code and not events & EPOLLOUT:
            return
        self._trying.remove(end)
        if code:
            self._failed(end, code)
            return
        end.heard_by(end.note)
        self.cancel()
        self._on_done(end, address)

    def _failed(self, end: End, code: int) -> None:
        self._last = _CODES.get(code, "dial.unreachable")
        end.close()
        if self._timer is not None:
            self._timer.cancel()
        self._next()
