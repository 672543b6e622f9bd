"""Talking to the ledger daemon: `LedgerClient` for event loops, `append_blocking` for tools.

What is appended during one turn of the loop goes out at its end, many appends in one request: one
system call and one answer for all of them. When such a request is refused, each append is sent
again by itself, so that the answer is about the one that asked.

The client reconnects by itself every 100 ms. On each new connection it first calls
`on_reconnect` (the proxy appends `resume` records for its live flows there, each `alone`),
then sends again whatever has not been acknowledged, then what is new. A repeated `open` or
`close` is stored once; any other record may be stored twice after a ledger crash, never lost.
"""

from __future__ import annotations

import itertools
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from exeat.ledger import reactor as loop
from exeat.ledger.wire import REPLY, Status, pack_request, packed_size

if TYPE_CHECKING:
    from pathlib import Path

OnDone = Callable[[bool], None]

_RETRY_S: Final = 0.1
_GATHER_BYTES: Final = 32 * 1024  # of one request that carries several appends
_REST_S: Final = 0.5  # how long `available` stays false after the ledger said it cannot write


class LedgerError(Exception):
    """The records are not durable; the message says why."""


def stamps() -> tuple[int, int]:
    """`(t_real_ns, t_boot_ns)` of now, for a record."""
    return time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class _Append(NamedTuple):
    records: Sequence[bytes]
    on_done: OnDone


@dataclass(slots=True)
class _Request:
    datagram: bytes
    appends: list[_Append]
    deadline: float


class LedgerClient:
    """Append without blocking. `on_done(True)` means durable, `on_done(False)` not known to be.

    `max_queued` bounds the appends that wait for an answer; over it, an append fails at once.
    `give_up_s` is how long one waits for an answer, connected or not. A record whose append failed
    may still turn up in the ledger later; after a failed `open`, append a `close` of zero bytes.
    """

    def __init__(
        self, reactor: loop.Reactor, path: Path, *, max_queued: int = 4096, give_up_s: float = 2.0
    ) -> None:
        self.on_reconnect: Callable[[], None] | None = None
        self._reactor = reactor
        self._path = path
        self._max_queued = max_queued
        self._give_up_s = give_up_s
        self._numbers = itertools.count(1)
        self._gathered: list[_Append] = []  # of this turn
        self._gathered_bytes = 0
        self._waiting = 0  # appends without an answer
        self._pending: dict[int, _Request] = {}  # insertion order is deadline order
        self._unsent: deque[int] = deque()
        self._sock: socket.socket | None = None
        self._writable_watched = False
        self._rest_until = 0.0
        self._expiry: loop.Timer | None = None
        self._retry: loop.Timer | None = reactor.call_later(0, self._connect)

    @property
    def available(self) -> bool:
        """Whether an append has a chance now: connected, and not just told that the disk is full."""
        return self._sock is not None and (not self._rest_until or self._reactor.now() >= self._rest_until)

    def append(self, records: Sequence[bytes], on_done: OnDone, *, alone: bool = False) -> None:
        """Have encoded records taken whole or not at all; `on_done` is called later, never from in here.

        `alone`: in a request of its own, for what the ledger may well refuse. Raises
        `wire.WireError` if they do not fit into one datagram of 64 KiB.
        """
        size = packed_size(records)
        if self._waiting >= self._max_queued:
            self._reactor.call_soon(partial(on_done, False))
            return
        self._waiting += 1
        if alone or self._gathered_bytes + size > _GATHER_BYTES:
            self._seal()
        if not self._gathered:
            self._reactor.call_soon(self._send_gathered)
        self._gathered.append(_Append(records, on_done))
        self._gathered_bytes += size
        if alone:
            self._seal()

    def _send_gathered(self) -> None:
        self._seal()
        self._flush()

    def _seal(self) -> None:
        """What has been gathered becomes one request."""
        if self._gathered:
            appends, self._gathered, self._gathered_bytes = self._gathered, [], 0
            self._request(appends)

    def _request(self, appends: list[_Append]) -> None:
        number = next(self._numbers) & 0xFFFFFFFF
        datagram = pack_request(number, [record for append in appends for record in append.records])
        self._pending[number] = _Request(datagram, appends, self._reactor.now() + self._give_up_s)
        self._unsent.append(number)
        self._arm_expiry()

    def close(self) -> None:
        """Drop the connection; what is unanswered fails."""
        for timer in (self._retry, self._expiry):
            if timer is not None:
                timer.cancel()
        self._drop_socket()
        self._seal()
        failed, self._pending = self._pending, {}
        self._unsent.clear()
        for request in failed.values():
            self._answer(request, durable=False)

    def _connect(self) -> None:
        self._retry = None
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            sock.connect(str(self._path))
        except OSError:
            sock.close()
            self._retry = self._reactor.call_later(_RETRY_S, self._connect)
            return
        self._reactor.add(sock.fileno(), loop.EPOLLIN, self._on_event)
        self._rest_until = 0.0
        self._writable_watched = False
        self._seal()
        again = list(self._pending)
        self._unsent.clear()
        self._sock = sock
        if self.on_reconnect is not None:
            self.on_reconnect()
            self._seal()
        self._unsent.extend(again)
        self._flush()

    def _on_event(self, events: int) -> None:
        if events & (loop.EPOLLIN | loop.EPOLLHUP | loop.EPOLLERR):
            self._receive()
        if events & loop.EPOLLOUT:
            self._flush()

    def _flush(self) -> None:
        while self._unsent and self._sock is not None:
            request = self._pending.get(self._unsent[0])
            if request is not None:  # else it was given up
                try:
                    self._sock.send(request.datagram)
                except BlockingIOError:
                    self._watch_writable(True)
                    return
                except OSError:
                    self._lost()
                    return
            self._unsent.popleft()
        self._watch_writable(False)

    def _watch_writable(self, wanted: bool) -> None:
        if self._sock is not None and wanted is not self._writable_watched:
            self._writable_watched = wanted
            self._reactor.modify(self._sock.fileno(), loop.EPOLLIN | (loop.EPOLLOUT if wanted else 0))

    def _receive(self) -> None:
        while self._sock is not None:
            try:
                reply = self._sock.recv(64)
            except BlockingIOError:
                return
            except OSError:
                reply = b""
            if len(reply) != REPLY.size:
                self._lost()
                return
            number, status, _seq = REPLY.unpack(reply)
            self._settle(number, status)
            if not self._pending:  # then there is no other answer to come
                return

    def _settle(self, number: int, status: int) -> None:
        request = self._pending.pop(number, None)
        if status == Status.UNAVAILABLE:
            self._rest_until = self._reactor.now() + _REST_S
        elif status == Status.REFUSED and request is not None and len(request.appends) > 1:
            for append in request.appends:
                self._request([append])
            self._flush()
            return
        elif status == Status.REFUSED:
            print("exeat: ledger refused a record (malformed, or not ours to write)", file=sys.stderr)
        if request is not None:
            self._answer(request, durable=status == Status.DURABLE)

    def _answer(self, request: _Request, *, durable: bool) -> None:
        self._waiting -= len(request.appends)
        for append in request.appends:
            self._reactor.guarded(append.on_done, durable)

    def _lost(self) -> None:
        self._drop_socket()
        if self._retry is None:
            self._retry = self._reactor.call_later(_RETRY_S, self._connect)

    def _drop_socket(self) -> None:
        if self._sock is not None:
            self._reactor.remove(self._sock.fileno())
            self._sock.close()
            self._sock = None

    def _expire(self) -> None:
        self._expiry = None
        now = self._reactor.now()
        late = list(itertools.takewhile(lambda item: item[1].deadline <= now, self._pending.items()))
        for number, _ in late:
            del self._pending[number]
        for _, request in late:
            self._answer(request, durable=False)
        self._arm_expiry()

    def _arm_expiry(self) -> None:
        if self._expiry is None and self._pending:
            oldest = next(iter(self._pending.values())).deadline
            self._expiry = self._reactor.call_later(max(0.0, oldest - self._reactor.now()), self._expire)


def append_blocking(path: Path, records: Sequence[bytes], *, timeout: float = 5.0) -> int:
    """Append encoded records on a connection of its own; the sequence number of the first.

    Raises LedgerError when they are not durable. Flows left open are settled as orphans at once.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(timeout)
        try:
            sock.connect(str(path))
            sock.send(pack_request(1, records))
            reply = sock.recv(64)
        except OSError as error:
            raise LedgerError(f"ledger not reachable: {error}") from error
    if len(reply) != REPLY.size:
        raise LedgerError("ledger closed the connection")
    _, status, seq = REPLY.unpack(reply)
    if status != Status.DURABLE:
        raise LedgerError(f"ledger answered: {Status(status).name.lower()}")
    return int(seq)
