"""Connecting to one of the vetted addresses; never to a name, never through a resolver.

Addresses are tried in the guard's order; the next one starts when the last failed or after
250 ms without an answer (RFC 8305 section 5), and the first connection made wins.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Final

from exeat.ledger.reactor import EPOLLOUT, Reactor, Timer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from exeat.policy.model import Address

STAGGER_S: Final = 0.25
MAX_ADDRESSES: Final = 8
_FAMILY: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
_CODES: Final = {
    errno.ECONNREFUSED: "dial.refused",
    errno.ECONNRESET: "dial.refused",
    errno.ETIMEDOUT: "dial.timeout",
    errno.EMFILE: "limit.descriptors",
    errno.ENFILE: "limit.descriptors",
}


class Dialer:
    """One dial: `on_done(socket, address)` or `on_failed(reason code)`, once; `cancel` for neither.

    Neither is called from within the constructor.
    """

    def __init__(
        self,
        reactor: Reactor,
        addresses: Sequence[Address],
        port: int,
        on_done: Callable[[socket.socket, Address], None],
        on_failed: Callable[[str], None],
    ) -> None:
        self._reactor = reactor
        self._left = list(addresses[:MAX_ADDRESSES])
        self._port = port
        self._on_done = on_done
        self._on_failed = on_failed
        self._trying: dict[int, tuple[socket.socket, Address]] = {}
        self._timer: Timer | None = None
        self._last = "dial.unreachable"
        self._over = False
        self._next()

    def cancel(self) -> None:
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        for fd, (sock, _) in self._trying.items():
            self._reactor.remove(fd)
            sock.close()
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
        family = _FAMILY[address.family]
        try:
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        except OSError as error:
            self._last = _CODES.get(error.errno or 0, "dial.unreachable")
            return False
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A numeric literal of our own making: inet_pton takes it, getaddrinfo is not reached.
        code = sock.connect_ex((socket.inet_ntop(family, address.packed()), self._port))
        if code not in (0, errno.EINPROGRESS):
            self._last = _CODES.get(code, "dial.unreachable")
            sock.close()
            return False
        self._trying[sock.fileno()] = (sock, address)
        self._reactor.add(sock.fileno(), EPOLLOUT, lambda _: self._event(sock, address))
        return True

    def _event(self, sock: socket.socket, address: Address) -> None:
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not code and not _connected(sock):
            return  # the event was about a socket that had this number before
        self._reactor.remove(sock.fileno())
        del self._trying[sock.fileno()]
        if not code:
            self.cancel()
            self._on_done(sock, address)
            return
        self._last = _CODES.get(code, "dial.unreachable")
        sock.close()
        if self._timer is not None:
            self._timer.cancel()
        self._next()


def _connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True
