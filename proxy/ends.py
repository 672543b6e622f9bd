"""One socket of a flow, registered once and for its whole life.

Edge-triggered: the kernel says a thing once, so what it said is remembered here, whoever hears of
the socket at the moment (`heard_by` changes that without a system call).
"""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

from exeat.ledger.reactor import EDGES, EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP

if TYPE_CHECKING:
    from exeat.ledger.reactor import Callback, Reactor

_READS = EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR
_WRITES = EPOLLOUT | EPOLLHUP | EPOLLERR
_HANGUPS = EPOLLRDHUP | EPOLLHUP | EPOLLERR
READABLE, WRITABLE, HANGUP = 1, 2, 4  # of `known`
_LINGER_0 = b"\x01\0\0\0\0\0\0\0"


class End:
    """A non-blocking stream socket and what is known of it. Whoever reads or writes keeps that true.

    `readable`: a read may find something; after EAGAIN or a short read it does not, unless `hangup`
    was seen, because no further edge would announce the end of the stream behind the data.
    """

    __slots__ = ("_reactor", "fd", "hangup", "lead_in", "lead_out", "readable", "sock", "writable")

    def __init__(self, reactor: Reactor, sock: socket.SocketType) -> None:
        self._reactor = reactor
        self.sock = sock
        self.fd = sock.fileno()
        self.readable = self.hangup = False
        self.lead_out = self.lead_in = 0  # bytes that a proxy on the way was told, and said
        self.writable = True
        reactor.add(self.fd, EDGES, self.note)

    def note(self, events: int) -> None:
        """Remember an event. Who hears of the events in our place passes them on."""
        if events & _READS:
            self.readable = True
            if events & _HANGUPS:
                self.hangup = True
        if events & _WRITES:
            self.writable = True

    @property
    def known(self) -> int:
        """The same as bits."""
        return self.readable * READABLE | self.writable * WRITABLE | self.hangup * HANGUP

    def heard_by(self, callback: Callback) -> None:
        self._reactor.hand_over(self.fd, callback)

    def receive(self, limit: int) -> bytes | None:
        """At most `limit` bytes; b"" at the end of the stream or after a reset, None: nothing now."""
        try:
            data = self.sock.recv(limit)
        except BlockingIOError:
            self.readable = False
            return None
        except OSError:
            return b""
        if len(data) < limit and not self.hangup:
            self.readable = False
        return data

    def silence(self) -> None:
        """Nobody hears of it any more; it is about to be closed."""
        self._reactor.forget(self.fd)

    def close(self) -> None:
        if self.fd >= 0:
            self._reactor.forget(self.fd)
            self.fd = -1  # the number may be another's from here on
            self.sock.close()

    def abort(self) -> None:
        """Close at once with RST: the peer must not mistake a cut for an end."""
        if self.fd >= 0:
            reset_on_close(self.sock)
            self.close()


def reset_on_close(sock: socket.SocketType) -> None:
    """SO_LINGER 0: closing it sends RST."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0)
