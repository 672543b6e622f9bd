"""A Unix socket that takes framed requests from known users and answers them, on the reactor.

Moves messages and judges who sent them; what they mean is its handler's business. Replies may come
in any order and at any time later; a reply to a peer that has gone is dropped.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Protocol

from exeat.ledger.ipc import Channel, IpcError, Message, listen, peer_uid
from exeat.ledger.reactor import EPOLLIN, EPOLLOUT, Reactor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


class Reply(Protocol):
    """Answers one request with these fields, and descriptors (which stay the caller's)."""

    def __call__(self, fields: dict[str, Any], fds: Sequence[int] = ()) -> None: ...


class _Peer:
    """One connection, the events it is watched for, and how many of its requests have no reply yet."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.watched = EPOLLIN
        self.waiting = 0


class Service:
    """Serves `path` to `uids` (SO_PEERCRED). `handle` gets each request; its descriptors are closed after.

    A peer that breaks the framing, or sends a request without an integer `id`, is dropped. One that
    has `max_waiting` requests without a reply gets the error `busy` for any more (0: no bound).
    """

    def __init__(
        self,
        reactor: Reactor,
        path: Path,
        uids: frozenset[int],
        handle: Callable[[Message, list[int], Reply], None],
        *,
        max_waiting: int = 0,
        busy: str = "busy",
    ) -> None:
        self._reactor, self._path, self._uids, self._handle = reactor, path, uids, handle
        self._max_waiting, self._busy = max_waiting, busy
        self._complained = False
        self._listener = listen(path)
        reactor.add(self._listener.fileno(), EPOLLIN, self._accept)

    def _accept(self, _: int) -> None:
        try:
            sock, _address = self._listener.accept()
        except OSError:  # the caller is gone already, or there is no descriptor to spare
            return
        if (uid := peer_uid(sock)) not in self._uids:
            if not self._complained:
                self._complained = True
                print(f"{self._path}: uid {uid} may not ask here", file=sys.stderr)
            sock.close()
            return
        sock.setblocking(False)
        peer = _Peer(Channel(sock))
        self._reactor.add(sock.fileno(), EPOLLIN, lambda events: self._on_event(peer, events))

    def _on_event(self, peer: _Peer, events: int) -> None:
        channel = peer.channel
        try:
            channel.flush()
            messages = channel.receive() if events & ~EPOLLOUT else []
        except (IpcError, OSError):
            self._drop(channel)
            return
        for message, fds in messages:
            try:
                if channel.fileno() >= 0:  # else the message before was its last
                    self._dispatch(peer, message, fds)
            finally:
                for fd in fds:
                    os.close(fd)
        self._watch(peer)

    def _dispatch(self, peer: _Peer, message: Message, fds: list[int]) -> None:
        number = message.get("id")
        if type(number) is not int:
            self._drop(peer.channel)  # no reply could be told from another
            return

        def reply(fields: dict[str, Any], fds: Sequence[int] = ()) -> None:
            peer.waiting -= 1
            self._send(peer, {"ok": True, **fields, "id": number}, fds)

        peer.waiting += 1
        if self._max_waiting and peer.waiting > self._max_waiting:
            reply({"ok": False, "error": self._busy, "message": "too many requests in flight"})
        else:
            self._handle(message, fds, reply)

    def _send(self, peer: _Peer, message: Message, fds: Sequence[int]) -> None:
        channel = peer.channel
        if channel.fileno() < 0:
            return
        try:
            channel.send(message, list(fds))
        except (IpcError, OSError):
            self._drop(channel)
        self._watch(peer)

    def _watch(self, peer: _Peer) -> None:
        channel = peer.channel
        wanted = EPOLLIN | (EPOLLOUT if channel.wants_write else 0)
        if channel.fileno() >= 0 and wanted != peer.watched:
            peer.watched = wanted
            self._reactor.modify(channel.fileno(), wanted)

    def _drop(self, channel: Channel) -> None:
        if channel.fileno() >= 0:
            self._reactor.remove(channel.fileno())
            channel.close()

    def close(self) -> None:
        """Stop accepting. What has been accepted can still be answered."""
        self._reactor.remove(self._listener.fileno())
        self._listener.close()
