"""DNS over TLS (RFC 7858) to one upstream: one connection, many questions on it at once.

The server is who the configuration says or nobody is asked: its certificate must be valid for
the configured name (the strict profile of RFC 8310), and nothing falls back to clear text. The
connection is made when there is something to ask and kept while the server keeps it.
"""

from __future__ import annotations

import socket
import ssl
import sys
from typing import TYPE_CHECKING

from exeat.dns.build import build_query, build_question, randomise_case
from exeat.dns.noise import NOISE
from exeat.dns.plain_try import MAX_MESSAGE, match, sockaddr
from exeat.ledger.reactor import EPOLLIN, EPOLLOUT, Reactor, Timer

if TYPE_CHECKING:
    from pathlib import Path

    from exeat.dns.plain_try import Ended

TRY_S = 2.0  # seconds for one question, with the connection if there is none
BACKOFF_S = 0.1  # after a connection that failed, questions fail at once for so long
PADDING = 128  # octets, RFC 8467 section 4.1
CHUNK = 64 * 1024
MAX_ASKED = 2


def client_context(ca: Path | None = None) -> ssl.SSLContext:
    """Verification on, TLS 1.2 or newer. `ca` is a PEM file in place of the system's roots.

    Raises OSError (ssl.SSLError is one) when it cannot be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # CERT_REQUIRED and check_hostname
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["dot"])
    if ca is not None:
        context.load_verify_locations(ca)
    else:
        context.load_default_certs()
    return context


class TlsTry:
    """One question on a link. Ends in one call of `ended`, unless dropped."""

    def __init__(self, link: TlsLink, name: bytes, qtype: int, ended: Ended) -> None:
        noise = NOISE.take(len(name))
        self.question = build_question(randomise_case(name, noise), qtype)
        self.ended = ended
        self.asked = 0  # how many connections it went out on
        self.on: ssl.SSLObject | None = None  # the last of those
        self._link = link
        self._timer: Timer | None = link.reactor.call_later(TRY_S, self._on_timeout)
        self.ident = link.enter(self)

    def drop(self) -> None:
        """Nobody waits any more; a late answer is not looked at."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._link.leave(self)

    def _on_timeout(self) -> None:
        self.drop()
        self._link.suspect()
        self.ended(None, True)


class TlsLink:
    """The connection to one server and the questions on it."""

    def __init__(self, reactor: Reactor, server: tuple[str, int], name: str, context: ssl.SSLContext) -> None:
        self.reactor = reactor
        self._family, self._address = sockaddr(*server)
        self._name = name
        self._context = context
        self._tries: dict[int, TlsTry] = {}
        self._fresh: list[TlsTry] = []  # to be asked at the end of this turn of the loop, in one go
        self._sock: socket.socket | None = None
        self._session: ssl.SSLSession | None = None
        self._retry_at = 0.0
        self._complained = False  # said once until it works again
        self._reset()

    def _reset(self) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = None
        self._ready = False  # the handshake is over
        self._kept = False  # this connection's session, for the next one
        self._heard = 0.0  # when the last octets came
        self._out = bytearray()
        self._in = bytearray()
        self._events = 0  # what the socket is watched for

    def enter(self, question: TlsTry) -> int:
        """Take a question in; its id."""
        ident = int.from_bytes(NOISE.take(2), "big")
        while ident in self._tries:
            ident = (ident + 1) & 0xFFFF
        self._tries[ident] = question
        self._soon(question)
        return ident

    def _soon(self, question: TlsTry) -> None:
        if not self._fresh:
            self.reactor.call_soon(self._submit)
        self._fresh.append(question)

    def leave(self, question: TlsTry) -> None:
        if self._tries.get(question.ident) is question:
            del self._tries[question.ident]

    def suspect(self) -> None:
        """A question was not answered in time: a connection that says nothing at all is given up."""
        if self._sock is not None and self.reactor.now() - self._heard >= TRY_S:
            self._lost("silent")

    def close(self) -> None:
        for question in list(self._tries.values()):
            question.drop()
        self._drop_socket()

    def _submit(self) -> None:
        fresh, self._fresh = self._fresh, []
        waiting = [question for question in fresh if self._tries.get(question.ident) is question]
        if self._ready:
            self._write(waiting)
        elif self._sock is None and self.reactor.now() < self._retry_at:
            for question in waiting:
                self._fail(question)
        elif self._sock is None and waiting:
            try:
                self._connect()
            except OSError as error:
                self._lost(str(error))

    def _connect(self) -> None:
        self._reset()
        self._sock = sock = socket.socket(self._family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._tls = self._context.wrap_bio(
            self._incoming, self._outgoing, server_hostname=self._name, session=self._session
        )
        self._heard = self.reactor.now()
        sock.connect_ex(self._address)  # a refusal shows as an event
        self._events = EPOLLOUT
        self.reactor.add(sock.fileno(), EPOLLOUT, self._on_event)

    def _on_event(self, events: int) -> None:
        sock = self._sock
        if sock is None:
            return
        try:
            if events & ~EPOLLOUT:
                self._receive(sock)
            if self._sock is sock:
                self._advance()
        except BlockingIOError:
            pass
        except OSError as error:  # ssl.SSLError is one
            self._lost(str(error))
        if self._sock is sock:
            self._flush()

    def _receive(self, sock: socket.socket) -> None:
        data = sock.recv(CHUNK)
        if data:
            self._heard = self.reactor.now()
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def _advance(self) -> None:
        """Take the handshake or the answers as far as the octets that are here go."""
        tls = self._tls
        if tls is None:
            return
        try:
            if not self._ready:
                tls.do_handshake()
                self._ready = True
                self._complained = False
                self._write(list(self._tries.values()))
            while self._tls is tls:
                data = tls.read(CHUNK)
                if not data:
                    self._lost("closed")
                    return
                self._in += data
                if not self._kept:  # copying it is a hundred times the work of reading an answer
                    self._session, self._kept = tls.session, True  # its tickets came before the first answer
                self._take()
        except ssl.SSLWantReadError:
            return

    def _take(self) -> None:
        while self._tls is not None and len(self._in) >= 2:
            size = int.from_bytes(self._in[:2], "big")
            if size > MAX_MESSAGE:
                self._lost("an oversized message")
                return
            if len(self._in) < size + 2:
                return
            data = bytes(self._in[2 : size + 2])
            del self._in[: size + 2]
            question = self._tries.get(int.from_bytes(data[:2], "big"))
            if question is not None:
                answer = match(data, question.ident, question.question, stream=True)
                question.drop()
                question.ended(answer, False)

    def _write(self, questions: list[TlsTry]) -> None:
        tls = self._tls
        if tls is None:
            return
        for question in questions:
            if question.on is tls:
                continue  # asked when the handshake ended
            question.on = tls
            question.asked += 1
            query = build_query(question.ident, question.question, block=PADDING)
            tls.write(len(query).to_bytes(2, "big") + query)
        self._flush()

    def _flush(self) -> None:
        sock = self._sock
        if sock is None:
            return
        self._out += self._outgoing.read()
        try:
            while self._out:
                del self._out[: sock.send(self._out)]
        except BlockingIOError:
            pass
        except OSError as error:
            self._lost(str(error))
            return
        events = EPOLLIN | (EPOLLOUT if self._out else 0)
        if events != self._events:
            self._events = events
            self.reactor.modify(sock.fileno(), events)

    def _lost(self, why: str) -> None:
        """The connection is over. Questions that went out on it once are asked again on a new one:
        servers close when they like, and may not have seen the last ones.
        """
        was_ready = self._ready
        self._drop_socket()
        if not was_ready:
            self._retry_at = self.reactor.now() + BACKOFF_S
            self._complain(why)
        for question in list(self._tries.values()):
            if was_ready and question.asked < MAX_ASKED:
                self._soon(question)
            else:
                self._fail(question)

    def _complain(self, why: str) -> None:
        if not self._complained:
            self._complained = True
            print(f"guard: upstream {self._name} ({self._address[0]}): {why}", file=sys.stderr)

    def _fail(self, question: TlsTry) -> None:
        question.drop()
        question.ended(None, False)

    def _drop_socket(self) -> None:
        if self._sock is not None:
            self.reactor.remove(self._sock.fileno())
            self._sock.close()
            self._sock = None
        self._reset()
