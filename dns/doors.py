"""Sockets that take questions: UDP and TCP (RFC 7766), each bounded in what it holds.

Both hand whole messages to the responder and send back what it gives them, whenever that is.
A jail's socket says by itself who asks; at a door for clients outside jails the peer's address does.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from exeat.dns.batch import serve_for
from exeat.ledger.reactor import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, Reactor, Timer

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from exeat.dns.batch import Miss, Peers, Table
    from exeat.dns.responder import Jail, Responder

    # The jail that a datagram or connection from this peer belongs to.
    Who = Callable[[Any], Jail]  # of a datagram's peer
    Accepted = Callable[[socket.socket, Any], Jail]  # of a connection and its peer

DRAIN = 64  # connections taken in one wake
MAX_LINE = 64  # queries of one socket that are not remembered and not looked at yet
SHARE_S = 300e-6  # of one turn of the loop for those of one socket
FLOOD_SHARE_S = 30e-6  # the same for a jail that has used up what it may ask for
MAX_QUERY = 4096  # octets; a query of one question is at most 255 + options
MAX_CONNECTIONS = 32  # per jail
MAX_PIPELINED = 64  # unanswered queries on one connection, and queries taken in one go
IDLE_S = 5.0
NOTHING: Final[Table] = {}  # what is remembered, while nothing may be answered
MAX_BACKLOG = 64 * 1024  # octets of replies a client has not taken; then it is not read


class UdpDoor:
    """One UDP socket. `owner` is who asks here, whatever the peer's address; without, `who` says it.

    What is remembered is answered at once. All other queries wait in line: a turn of the loop goes
    on with them for SHARE_S, then everybody else has theirs, so that one jail's flood does not become
    another one's delay.
    """

    def __init__(
        self,
        reactor: Reactor,
        responder: Responder,
        who: Who,
        sock: socket.socket,
        owner: Jail | None = None,
        peers: Peers | None = None,
    ) -> None:
        self._reactor = reactor
        self._responder = responder
        self._who = who
        self._sock = sock
        self._owner = owner
        self._peers: Peers = peers if peers is not None else {}
        self._serve = serve_for(sock.family)
        self._line: deque[Miss] = deque()
        self._closed = False
        reactor.add(sock.fileno(), EPOLLIN, self._on_readable)

    def _on_readable(self, _events: int) -> None:
        line, responder = self._line, self._responder
        if len(line) >= MAX_LINE:
            return  # the socket's buffer holds the rest, or not
        table = self._owner.hot if self._owner is not None else None
        if not responder.ready:
            table = NOTHING
        misses, hits = self._serve(self._sock.fileno(), table, self._peers, self._reactor.woke)
        if hits:
            responder.repeated(hits)
        if misses:
            if not line:
                self._reactor.call_soon(self._go_on)
            line += misses

    def _go_on(self) -> None:
        line, owner, responder = self._line, self._owner, self._responder
        now = self._reactor.now
        end = now() + SHARE_S
        try:
            while line:
                data, peer = line.popleft()
                jail = owner if owner is not None else self._who(peer)
                responder.answer(jail, data, partial(self._send, peer), udp=True)
                if now() >= (end if jail.bucket.has(now()) else end - SHARE_S + FLOOD_SHARE_S):
                    return
        finally:
            if line:
                self._reactor.call_soon(self._go_on)

    def _send(self, peer: Any, reply: bytes) -> None:
        if self._closed:
            return
        try:
            self._sock.sendto(reply, peer)
        except OSError:
            return  # the client's buffer is full or the client is gone: it will ask again

    def close(self) -> None:
        self._closed = True
        self._line.clear()
        self._reactor.remove(self._sock.fileno())
        self._sock.close()


class TcpDoor:
    """One listening TCP socket and the connections it brought."""

    def __init__(self, reactor: Reactor, responder: Responder, who: Accepted, sock: socket.socket) -> None:
        self._reactor = reactor
        self._responder = responder
        self._who = who
        self._sock = sock
        self._connections: set[Connection] = set()
        reactor.add(sock.fileno(), EPOLLIN, self._on_readable)

    def _on_readable(self, _events: int) -> None:
        for _ in range(DRAIN):
            try:
                sock, peer = self._sock.accept()
            except OSError:
                return
            jail = self._who(sock, peer)
            if jail.connections >= MAX_CONNECTIONS:
                sock.close()
                continue
            sock.setblocking(False)
            jail.connections += 1
            self._connections.add(Connection(self._reactor, self._responder, jail, sock, self._gone))

    def _gone(self, connection: Connection) -> None:
        self._connections.discard(connection)
        connection.jail.connections -= 1

    def close(self) -> None:
        self._reactor.remove(self._sock.fileno())
        self._sock.close()
        for connection in list(self._connections):
            connection.close()


class Connection:
    """One TCP client: length-prefixed queries in, replies out in the order they are ready."""

    def __init__(
        self,
        reactor: Reactor,
        responder: Responder,
        jail: Jail,
        sock: socket.socket,
        gone: Callable[[Connection], None],
    ) -> None:
        self._reactor = reactor
        self._responder = responder
        self.jail = jail
        self._sock = sock
        self._gone = gone
        self._in = bytearray()
        self._out = bytearray()
        self._waiting = 0
        self._due = False  # `_flush` will be called in this turn of the loop
        self._ended = False  # the client will send no more
        self._closed = False
        self._events = EPOLLIN
        self._active = reactor.now()
        self._idle: Timer = reactor.call_later(IDLE_S, self._on_idle)
        reactor.add(sock.fileno(), EPOLLIN, self._on_event)

    def _on_event(self, events: int) -> None:
        if events & (EPOLLHUP | EPOLLERR):
            self.close()
            return
        if events & EPOLLOUT:
            self._flush()
        if not self._closed and events & EPOLLIN and self._events & EPOLLIN:
            self._read()

    def _read(self) -> None:
        try:
            data = self._sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if data:
            self._in += data
        else:
            self._ended = True
        self._take()

    def _take(self) -> None:
        """Answer whole messages that are here: one share, the others want their turn as well."""
        for _ in range(MAX_PIPELINED):
            if self._closed or not self._has_room() or not self._take_one():
                break
        self._settle()

    def _has_room(self) -> bool:
        return self._waiting < MAX_PIPELINED and len(self._out) < MAX_BACKLOG

    def _take_one(self) -> bool:
        size = int.from_bytes(self._in[:2], "big") if len(self._in) >= 2 else MAX_QUERY
        if size > MAX_QUERY:
            self.close()
            return False
        if len(self._in) < size + 2:
            return False
        data = bytes(self._in[2 : size + 2])
        del self._in[: size + 2]
        self._waiting += 1
        self._active = self._reactor.now()
        if not self._responder.answer(self.jail, data, self._reply, udp=False):
            self.close()  # no query at all: nobody who sends this waits for anything
        return True

    def _reply(self, message: bytes) -> None:
        self._waiting -= 1
        if self._closed:
            return
        self._out += len(message).to_bytes(2, "big") + message
        if not self._due:  # not from in here: a reply may come while `_take` is in its loop
            self._due = True
            self._reactor.call_soon(self._flush)

    def _on_idle(self) -> None:
        """One timer per connection, moved on when it turns out too early."""
        left = self._active + IDLE_S - self._reactor.now()
        if left > 0:
            self._idle = self._reactor.call_later(left, self._on_idle)
        else:
            self.close()

    def _flush(self) -> None:
        self._due = False
        if self._closed:
            return
        try:
            while self._out:
                del self._out[: self._sock.send(self._out)]
                self._active = self._reactor.now()
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        self._take()

    def _settle(self) -> None:
        """Watch what there is to watch; end when the client has ended and has all its answers."""
        if self._closed:
            return
        if self._ended and not (self._waiting or self._out or self._due):
            self.close()
            return
        reading = EPOLLIN if self._has_room() and not self._ended else 0
        wanted = reading | (EPOLLOUT if self._out else 0)
        if wanted != self._events:
            self._events = wanted
            self._reactor.modify(self._sock.fileno(), wanted)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._idle.cancel()
        self._reactor.remove(self._sock.fileno())
        self._sock.close()
        self._gone(self)
