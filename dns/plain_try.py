"""One question to one upstream in the clear, as someone off the path expects to be lied to.

Each UDP try has its own connected socket (the kernel picks a random port and drops other
sources), an id and a letter case from the system's generator (0x20), and takes only a reply that
repeats id and question to the byte; anything else is dropped while waiting. A truncated reply,
or a try that saw forgeries, goes on over TCP.
"""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import TYPE_CHECKING

from exeat.dns.build import build_query, build_question, randomise_case
from exeat.dns.noise import NOISE
from exeat.dns.wire import Answer, WireError, parse_answer
from exeat.ledger.reactor import EPOLLIN, EPOLLOUT, Reactor, Timer

if TYPE_CHECKING:
    from collections.abc import Callable

    # How a try ends: with the answer or None, and whether there was only silence.
    Ended = Callable[[Answer | None, bool], None]

TRY_S = 1.0  # seconds over UDP
TCP_TRY_S = 2.0
MAX_STRAYS = 16  # replies that do not match before UDP is given up for TCP
MAX_MESSAGE = 16 * 1024  # octets of an upstream's message over a stream


def sockaddr(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """The family of a literal address. Raises OSError for anything else: nothing is resolved here."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    socket.inet_pton(family, host)
    return family, (host, port)


def match(data: bytes, ident: int, question: bytes, *, stream: bool) -> Answer | None:
    """`data` read as an answer, if it is one to our question: id and, over UDP, every letter's case.

    Some servers answer in lower case; that it came on our own stream is proof enough.
    """
    if data[:2] != ident.to_bytes(2, "big"):
        return None
    try:
        answer = parse_answer(data)
    except WireError:
        return None
    theirs = answer.question
    same = theirs.lower() == question.lower() if stream else theirs == question
    return answer if same else None


class PlainTry:
    """Begins at once; raises OSError when it cannot. Ends in one call of `ended`, unless dropped."""

    def __init__(
        self,
        reactor: Reactor,
        server: tuple[str, int],
        name: bytes,
        qtype: int,
        ended: Ended,
    ) -> None:
        self._reactor = reactor
        self._family, self._address = sockaddr(*server)
        self._name = name
        self._qtype = qtype
        self._ended = ended
        self._sock: socket.socket | None = None
        self._timer: Timer | None = None
        self._tcp = False
        self._strays = 0
        self._ident = 0
        self._question = b""
        self._out = b""
        self._in = bytearray()
        try:
            self._open()
        except OSError:
            self.drop()
            raise

    def _open(self) -> None:
        noise = NOISE.take(2 + len(self._name))
        self._ident = int.from_bytes(noise[:2], "big")
        self._question = build_question(randomise_case(self._name, noise[2:]), self._qtype)
        query = build_query(self._ident, self._question)
        kind = socket.SOCK_STREAM if self._tcp else socket.SOCK_DGRAM
        self._sock = sock = socket.socket(self._family, kind | socket.SOCK_NONBLOCK)
        self._timer = self._reactor.call_later(TCP_TRY_S if self._tcp else TRY_S, self._on_timeout)
        if self._tcp:
            self._out = len(query).to_bytes(2, "big") + query
            sock.connect_ex(self._address)  # a refusal shows as an event
            self._reactor.add(sock.fileno(), EPOLLOUT, self._on_tcp)
        else:
            sock.connect(self._address)
            sock.send(query)
            self._reactor.add(sock.fileno(), EPOLLIN, self._on_udp)

    def drop(self) -> None:
        """Let go of socket and timer; nobody is told."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._sock is not None:
            self._reactor.remove(self._sock.fileno())
            self._sock.close()
            self._sock = None

    def _end(self, answer: Answer | None, *, silent: bool = False) -> None:
        self.drop()
        if answer is not None and answer.authentic:  # in the clear anybody can say so
            answer = replace(answer, authentic=False)
        self._ended(answer, silent)

    def _over_tcp(self) -> None:
        self.drop()
        self._tcp = True
        try:
            self._open()
        except OSError:
            self._end(None)

    def _on_timeout(self) -> None:
        if not self._tcp and self._strays:  # someone answers, but not us: hard to do over TCP
            self._over_tcp()
        else:
            self._end(None, silent=True)

    def _on_udp(self, _events: int) -> None:
        sock = self._sock
        while sock is not None and sock is self._sock:
            try:
                data = sock.recv(0xFFFF)
            except BlockingIOError:
                return
            except OSError:  # a refusal by ICMP
                self._end(None)
                return
            self._take_datagram(data)

    def _take_datagram(self, data: bytes) -> None:
        answer = match(data, self._ident, self._question, stream=False)
        if answer is None:
            self._strays += 1
            if self._strays >= MAX_STRAYS:
                self._over_tcp()
        elif answer.truncated:
            self._over_tcp()
        else:
            self._end(answer)

    def _on_tcp(self, _events: int) -> None:
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
            self._end(None)
            return
        self._in += data
        self._take_stream(bool(data))

    def _take_stream(self, more: bool) -> None:
        size = int.from_bytes(self._in[:2], "big") if len(self._in) >= 2 else None
        if size is not None and len(self._in) >= size + 2 and size <= MAX_MESSAGE:
            answer = match(bytes(self._in[2 : size + 2]), self._ident, self._question, stream=True)
            self._end(answer)
        elif not more or (size is not None and size > MAX_MESSAGE):
            self._end(None)
