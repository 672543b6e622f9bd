"""The client's end of a flow: what is read of it and sent to it before there is a tunnel.

A client of plain HTTP may stay after its answer: the next request is a flow of its own on the
same connection, and begins here with what the one before has left.
"""

from __future__ import annotations

import contextlib
import socket
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final

from exeat.ledger.reactor import EPOLLERR, EPOLLHUP
from exeat.proxy.evidence import Evidence
from exeat.proxy.fields import HttpError

if TYPE_CHECKING:
    from collections.abc import Callable

    from exeat.proxy.ends import End
    from exeat.proxy.exchange import Before
    from exeat.proxy.gateway import Gateway
    from exeat.proxy.jails import Jail

READ_BYTES: Final = 64 * 1024
DRAIN_S: Final = 2.0
DRAIN_BYTES: Final = 256 * 1024


class NearSide(ABC):
    """The state is which method hears the client's bytes (`_hear`); what comes of them is Flow's."""

    __slots__ = (
        "_before",
        "_deaf",
        "_drained",
        "_hear",
        "_timeout_code",
        "came_by",
        "client",
        "closed",
        "deadline",
        "evidence",
        "gateway",
        "handshake_out",
        "heard",
        "jail",
    )

    def __init__(self, gateway: Gateway, jail: Jail, client: End, src: str) -> None:
        self.gateway = gateway
        self.jail = self.came_by = jail  # `came_by`: who it is by the kernel alone
        self.client = client
        self.evidence = Evidence(gateway.flow_id(), jail.subject, src, tariff=gateway.settings.tariff)
        self.deadline = gateway.reactor.woke + gateway.settings.head_timeout_s
        self.closed = False
        self.handshake_out = 0  # bytes we sent to the client that are not payload of this flow
        self.heard = 0  # bytes of the client that are not: what it asked before, and this asking
        self._before: Before | None = None  # while a client that stays has not begun its next request
        self._timeout_code = "http.timeout"
        self._drained = 0
        self._deaf = False
        self._hear: Callable[[Any, bytes], None] = NearSide._hear_nothing
        client.heard_by(self._on_client)

    def belong_to(self, jail: Jail) -> None:
        """The client has said who it is."""
        self.jail = jail
        self.evidence.subject = jail.subject

    # -- what Flow does with it

    @abstractmethod
    def _hear_request(self, data: bytes) -> None: ...

    @abstractmethod
    def _drop(self) -> None:
        """The client went away."""

    @abstractmethod
    def _close(self) -> None: ...

    # -- the client's socket

    def _on_client(self, events: int) -> None:
        self.client.note(events)
        if not self._deaf:
            self._read()
        elif events & (EPOLLHUP | EPOLLERR):
            self._drop()

    def _read(self) -> None:
        client = self.client
        while client.readable and not self._deaf and not self.closed:
            data = client.receive(READ_BYTES)
            if data:
                self._hear(self, data)
            elif data is not None:
                self._drop()

    def _listen(self, *, wanted: bool) -> None:
        """Stop or start reading. While deaf only a reset is noticed: bytes wait in the kernel."""
        self._deaf = not wanted
        if wanted and self.client.readable:
            self.gateway.reactor.call_soon(self._read)

    def _send(self, data: bytes) -> bool:
        """Send a short answer. The socket buffer of a client that has had nothing yet is empty."""
        try:
            sent = self.client.sock.send(data)
        except OSError:
            self._drop()
            return False
        self.handshake_out += sent
        if sent < len(data):
            self._drop()
        return not self.closed

    # -- state: a client that stays

    def _follow(self, before: Before) -> None:
        """Go on with the connection of an earlier request."""
        self._before = before
        self.handshake_out, self.heard = before.sent, before.heard
        if before.ends:
            self._await_goodbye()
            return
        self.deadline = self.gateway.reactor.woke + self.gateway.settings.keep_alive_s
        self._hear = NearSide._hear_next
        self._deaf = True
        self.gateway.reactor.call_soon(self._hear_early)

    def _hear_early(self) -> None:
        """Not from within the request before: a client may have sent thousands at once."""
        before = self._before
        if self.closed or before is None:
            return
        if before.early:
            self._hear(self, before.early)
        if self._hear in (NearSide._hear_next, type(self)._hear_request):
            self._listen(wanted=True)

    def _hear_next(self, data: bytes) -> None:
        """First what is left of a body that nobody wants, then the next request."""
        before = self._before
        if before is None:
            return
        try:
            used = before.unwanted.take(data)
        except HttpError:
            self._close()
            return
        self.heard += used
        self._drained += used
        if self._drained > DRAIN_BYTES:
            self._close()
        elif before.unwanted.done and used < len(data):
            self._before = None
            self.evidence.begin()
            self._until(self.gateway.settings.head_timeout_s, "http.timeout")
            self._hear = type(self)._hear_request
            self._hear_request(data[used:])

    # -- the ends of it

    def _await_goodbye(self) -> None:
        """All has been said: wait a little for the client to read it and to close."""
        self._before = None
        self._hear = NearSide._hear_nothing_more
        self.deadline = self.gateway.reactor.woke + DRAIN_S
        self._listen(wanted=True)
        with contextlib.suppress(OSError):
            # Close only after the client has read its answer and closed: closing with unread
            # bytes sends RST, which throws the answer away at the other end.
            self.client.sock.shutdown(socket.SHUT_WR)

    def _hear_nothing_more(self, data: bytes) -> None:
        self._drained += len(data)
        if self._drained > DRAIN_BYTES:
            self._close()

    def _hear_nothing(self, _data: bytes) -> None:
        """Not listening: nothing is read in these states."""
        return

    def _until(self, seconds: float, code: str) -> None:
        self.deadline = self.gateway.reactor.woke + seconds
        self._timeout_code = code
