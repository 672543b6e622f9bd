"""The calling end of a framed Unix socket, on the reactor: one connection, dialled again while it is lost.

Moves messages and judges who serves the socket; what is said is its user's business. The other end
is `ledger.service`, or control's hub.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import TYPE_CHECKING, Final, Protocol

from exeat.ledger.ipc import Channel, IpcError, Message, peer_uid
from exeat.ledger.reactor import EPOLLIN, EPOLLOUT, Reactor, Timer

if TYPE_CHECKING:
    from pathlib import Path

RECONNECT_S: Final = 0.1
MAX_UNSENT: Final = 16 * 1024  # messages that the other end does not read; then the connection is given up


class LineUser(Protocol):
    """What is done with a line. None of these is called after `Line.close`."""

    def on_connected(self) -> None:
        """A new connection stands; nothing has been sent on it."""

    def on_message(self, message: Message, fds: list[int]) -> None:
        """Descriptors that are still in `fds` afterwards are closed."""

    def on_lost(self) -> None:
        """The connection is gone, with whatever was not answered; may be called from inside `send`."""


class Line:
    """Connects to `path` and keeps doing so. Only a socket that one of `uids` listens on is believed."""

    def __init__(self, reactor: Reactor, path: Path, uids: frozenset[int], user: LineUser) -> None:
        self._reactor, self._path, self._uids, self._user = reactor, path, uids, user
        self._channel: Channel | None = None
        self._watched = EPOLLIN
        self._closed = False
        self._complained = False
        self._retry: Timer | None = reactor.call_later(0, self._connect)

    @property
    def connected(self) -> bool:
        return self._channel is not None

    def send(self, message: Message) -> bool:
        """Say it; False when it cannot be said now (the caller fails closed)."""
        if self._channel is None:
            return False
        try:
            self._channel.send(message)
        except (OSError, IpcError):
            self._lost()
            return False
        if self._channel.unsent > MAX_UNSENT:
            self._lost()
            return False
        self._watch()
        return True

    def close(self) -> None:
        """End the connection for good; the user hears nothing any more."""
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
        self._hang_up()

    def _connect(self) -> None:
        self._retry = None
        try:
            channel = Channel.connect(self._path)
        except OSError:
            self._dial_later()
            return
        if (uid := peer_uid(channel.sock)) not in self._uids:
            channel.close()
            if not self._complained:
                self._complained = True
                print(f"{self._path}: uid {uid} serves it, who may not: not believed", file=sys.stderr)
            self._dial_later()
            return
        channel.sock.setblocking(False)
        self._channel = channel
        self._watched = EPOLLIN
        self._reactor.add(channel.fileno(), EPOLLIN, self._on_event)
        self._user.on_connected()

    def _dial_later(self) -> None:
        self._retry = self._reactor.call_later(RECONNECT_S, self._connect)

    def _watch(self) -> None:
        channel = self._channel
        if channel is None:
            return
        wanted = EPOLLIN | (EPOLLOUT if channel.wants_write else 0)
        if wanted != self._watched:
            self._watched = wanted
            self._reactor.modify(channel.fileno(), wanted)

    def _lost(self) -> None:
        if self._hang_up():
            self._dial_later()
            self._user.on_lost()

    def _hang_up(self) -> bool:
        """Whether there was a connection to let go of."""
        channel, self._channel = self._channel, None
        if channel is None:
            return False
        self._reactor.remove(channel.fileno())
        channel.close()
        return True

    def _on_event(self, events: int) -> None:
        channel = self._channel
        if channel is None:
            return
        try:
            if events & EPOLLOUT:
                channel.flush()
                self._watch()
            messages = channel.receive() if events & ~EPOLLOUT else []
        except (OSError, IpcError):
            self._lost()
            return
        for message, fds in messages:
            try:
                if not self._closed:
                    self._user.on_message(message, fds)
            except Exception:
                # A bug in one handler must not swallow the messages that came in the same read.
                traceback.print_exc(file=sys.stderr)
            finally:
                for fd in fds:
                    os.close(fd)
