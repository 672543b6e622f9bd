"""Asking the configured upstream resolvers, as someone off the path expects to be lied to.

Each UDP try has its own connected socket (the kernel picks a random port and drops other
sources), an id and a letter case from the system's generator (0x20), and takes only a reply that
repeats id and question to the byte; anything else is dropped while waiting. A truncated reply,
or a try that saw forgeries, goes on over TCP. Equal questions in flight are asked once.
Never the system resolver: an upstream is an address from the configuration.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from typing import TYPE_CHECKING

from exeat.dns.build import build_query, build_question, randomise_case
from exeat.dns.wire import Answer, Rcode, WireError, parse_answer
from exeat.ledger.reactor import EPOLLIN, EPOLLOUT, Reactor, Timer

if TYPE_CHECKING:
    from collections.abc import Callable

    Done = Callable[[Answer | None], None]

MAX_IN_FLIGHT = 512  # different questions at once, one descriptor each
MAX_WAITERS = 4096  # askers of one question
TRY_S = 1.0  # seconds for one try over UDP
TCP_TRY_S = 2.0
MIN_TRIES = 3
MAX_STRAYS = 16  # replies that do not match before a try is given up for TCP
MAX_MESSAGE = 16 * 1024  # octets of an upstream's TCP message


class Upstream:
    """The one way out for DNS. `servers` are (literal address, port), asked in order."""

    def __init__(self, reactor: Reactor, servers: tuple[tuple[str, int], ...]) -> None:
        if not servers:
            raise ValueError("at least one upstream is needed")
        self.reactor = reactor
        self._servers = tuple(_sockaddr(host, port) for host, port in servers)
        self._preferred = 0
        self._in_flight: dict[bytes, Exchange] = {}

    def ask(self, name: bytes, qtype: int, done: Done) -> None:
        """Ask for `name` (wire form); `done` gets the matching answer, or None when there is none."""
        key = build_question(name, qtype)
        exchange = self._in_flight.get(key)
        if exchange is None:
            if len(self._in_flight) >= MAX_IN_FLIGHT:
                self.reactor.call_soon(lambda: done(None))
                return
            exchange = self._in_flight[key] = Exchange(self, name, qtype)
            exchange.waiters.append(done)
            exchange.start()
        elif len(exchange.waiters) >= MAX_WAITERS:
            self.reactor.call_soon(lambda: done(None))
        else:
            exchange.waiters.append(done)

    def plan(self) -> list[tuple[socket.AddressFamily, tuple[str, int]]]:
        """The servers of one exchange, best first, each possibly more than once."""
        count = max(MIN_TRIES, len(self._servers))
        return [self._servers[(self._preferred + i) % len(self._servers)] for i in range(count)]

    def failed(self, server: tuple[socket.AddressFamily, tuple[str, int]]) -> None:
        """Begin the next exchange elsewhere, if this one was where exchanges begin."""
        if self._servers[self._preferred] == server:
            self._preferred = (self._preferred + 1) % len(self._servers)

    def finish(self, exchange: Exchange, answer: Answer | None) -> None:
        # Not at once: who asks in this turn of the loop must still find the exchange, or the cache.
        self.reactor.call_soon(lambda: self._deliver(exchange, answer))

    def _deliver(self, exchange: Exchange, answer: Answer | None) -> None:
        self._in_flight.pop(exchange.key, None)
        while exchange.waiters:
            done = exchange.waiters.popleft()
            try:
                done(answer)
            except Exception:
                self.finish(exchange, answer)  # one broken waiter must not cost the others theirs
                raise

    def close(self) -> None:
        """Drop every question; nobody is answered."""
        for exchange in self._in_flight.values():
            exchange.drop()
        self._in_flight.clear()


def _sockaddr(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """The family of a literal address. Raises OSError for anything else: nothing is resolved here."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    socket.inet_pton(family, host)
    return family, (host, port)


class Exchange:
    """One question on its way through its tries; always ends in exactly one `Upstream.finish`."""

    def __init__(self, upstream: Upstream, name: bytes, qtype: int) -> None:
        self.name = name
        self.qtype = qtype
        self.key = build_question(name, qtype)
        self.waiters: deque[Done] = deque()
        self._upstream = upstream
        self._reactor = upstream.reactor
        self._plan = upstream.plan()
        self._sock: socket.socket | None = None
        self._timer: Timer | None = None
        self._tcp = False
        self._strays = 0
        self._ident = 0
        self._question = b""
        self._out = b""
        self._in = bytearray()

    def start(self) -> None:
        """Make the next try that can be made, or end without an answer."""
        self.drop()
        while self._plan:
            try:
                self._open()
            except OSError:
                self._skip_server()
            else:
                return
        self._upstream.finish(self, None)

    def _skip_server(self, *, for_good: bool = True) -> None:
        """Go on with the next server; one that was only silent gets the rest of its turns."""
        self.drop()
        server = self._plan.pop(0)
        if for_good:
            self._plan = [other for other in self._plan if other != server]
        self._upstream.failed(server)
        self._tcp = False

    def _open(self) -> None:
        family, address = self._plan[0]
        noise = os.urandom(2 + len(self.name))
        self._ident = int.from_bytes(noise[:2], "big")
        self._question = build_question(randomise_case(self.name, noise[2:]), self.qtype)
        query = build_query(self._ident, self._question)
        self._strays = 0
        self._in.clear()
        kind = socket.SOCK_STREAM if self._tcp else socket.SOCK_DGRAM
        self._sock = sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
        self._timer = self._reactor.call_later(TCP_TRY_S if self._tcp else TRY_S, self._on_timeout)
        if self._tcp:
            self._out = len(query).to_bytes(2, "big") + query
            sock.connect_ex(address)  # a refusal shows as an event
            self._reactor.add(sock.fileno(), EPOLLOUT, self._on_tcp)
        else:
            sock.connect(address)
            sock.send(query)
            self._reactor.add(sock.fileno(), EPOLLIN, self._on_udp)

    def drop(self) -> None:
        """Let go of socket and timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._sock is not None:
            self._reactor.remove(self._sock.fileno())
            self._sock.close()
            self._sock = None

    def _on_timeout(self) -> None:
        if not self._tcp and self._strays:  # someone answers, but not us: hard to do over TCP
            self._tcp = True
        else:
            self._skip_server(for_good=False)
        self.start()

    def _fail(self) -> None:
        self._skip_server()
        self.start()

    def _on_udp(self, _events: int) -> None:
        sock = self._sock
        while sock is not None and sock is self._sock:
            try:
                data = sock.recv(0xFFFF)
            except BlockingIOError:
                return
            except OSError:  # a refusal by ICMP
                self._fail()
                return
            self._take_datagram(data)

    def _take_datagram(self, data: bytes) -> None:
        answer = self._read(data)
        if answer is None:
            self._strays += 1
            if self._strays >= MAX_STRAYS:
                self._on_timeout()
        elif answer.truncated:
            self._tcp = True
            self.start()
        else:
            self._judge(answer)

    def _read(self, data: bytes) -> Answer | None:
        """The answer, if it is one to our question: id and, over UDP, every letter's case."""
        if data[:2] != self._ident.to_bytes(2, "big"):
            return None
        try:
            answer = parse_answer(data)
        except WireError:
            return None
        theirs, ours = answer.question, self._question
        if self._tcp:  # some servers answer in lower case; a TCP stream is proof enough
            theirs, ours = theirs.lower(), ours.lower()
        return answer if theirs == ours else None

    def _judge(self, answer: Answer) -> None:
        if answer.truncated or answer.rcode not in (Rcode.NOERROR, Rcode.NXDOMAIN):
            self._fail()
            return
        self.drop()
        self._upstream.finish(self, answer)

    def _on_tcp(self, events: int) -> None:
        sock = self._sock
        if sock is None:
            return
        try:
            if self._out:
                self._out = self._out[sock.send(self._out) :]
                if not self._out:
                    self._reactor.modify(sock.fileno(), EPOLLIN)
                return
            data = sock.recv(MAX_MESSAGE + 2)
        except BlockingIOError:
            return
        except OSError:
            self._fail()
            return
        self._in += data
        self._take_stream(bool(data))

    def _take_stream(self, more: bool) -> None:
        size = int.from_bytes(self._in[:2], "big") if len(self._in) >= 2 else None
        if size is not None and len(self._in) >= size + 2 and size <= MAX_MESSAGE:
            answer = self._read(bytes(self._in[2 : size + 2]))
            if answer is not None:
                self._judge(answer)
                return
            more = False
        if not more or (size is not None and size > MAX_MESSAGE):
            self._fail()
