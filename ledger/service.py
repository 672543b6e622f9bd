"""A Unix socket that takes framed requests from known users and answers them, on the reactor.

Moves messages and judges who sent them; what they mean is its handler's business. Replies may come
in any order and at any time later; a reply to a peer that has gone is dropped.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Protocol

from exeat.ledger.ipc import Channel, IpcError, Message, listen, peer_uid
from exeat.ledger.reactor import EPOLLIN, EPOLLOUT, Reactor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


class Reply(Protocol):
    """Answers one request with these fields, and descriptors (which stay the caller's)."""

    def __call__(self, fields: dict[str, Any], fds: Sequence[int] = ()) -> None: ...


class Service:
    """Serves `path` to `uids` (SO_PEERCRED). `handle` gets each request; its descriptors are closed after.

    A peer that breaks the framing, or sends a request without an integer `id`, is dropped.
    """

    def __init__(
        self,
        reactor: Reactor,
        path: Path,
        uids: frozenset[int],
        handle: Callable[[Message, list[int], Reply], None],
    ) -> None:
        self._reactor, self._uids, self._handle = reactor, uids, handle
        self._listener = listen(path)
        reactor.add(self._listener.fileno(), EPOLLIN, self._accept)

    def _accept(self, _: int) -> None:
        sock, _address = self._listener.accept()
        if not self._may_ask(peer_uid(sock)):
            sock.close()
            return
        sock.setblocking(False)
        channel = Channel(sock)
        self._reactor.add(sock.fileno(), EPOLLIN, lambda events: self._on_event(channel, events))

    def _may_ask(self, uid: int) -> bool:
        return uid in self._uids

    def _on_event(self, channel: Channel, events: int) -> None:
        try:
            channel.flush()
            messages = channel.receive() if events & ~EPOLLOUT else []
        except (IpcError, OSError):
            self._drop(channel)
            return
        for message, fds in messages:
            try:
                self._dispatch(channel, message, fds)
            finally:
                for fd in fds:
                    os.close(fd)
        self._watch(channel)

    def _dispatch(self, channel: Channel, message: Message, fds: list[int]) -> None:
        number = message.get("id")
        if type(number) is not int or channel.fileno() < 0:
            self._drop(channel)  # no reply could be told from another; nor is what came behind it heard
            return

        def reply(fields: dict[str, Any], fds: Sequence[int] = ()) -> None:
            self._send(channel, {"ok": True, **fields, "id": number}, fds)

        self._handle(message, fds, reply)

    def _send(self, channel: Channel, message: Message, fds: Sequence[int]) -> None:
        if channel.fileno() < 0:
            return
        try:
            channel.send(message, list(fds))
        except (IpcError, OSError):
            self._drop(channel)
        self._watch(channel)

    def _watch(self, channel: Channel) -> None:
        if channel.fileno() >= 0:
            self._reactor.modify(channel.fileno(), EPOLLIN | (EPOLLOUT if channel.wants_write else 0))

    def _drop(self, channel: Channel) -> None:
        if channel.fileno() >= 0:
            self._reactor.remove(channel.fileno())
            channel.close()

    def close(self) -> None:
        """Stop accepting. What has been accepted can still be answered."""
        self._reactor.remove(self._listener.fileno())
        self._listener.close()
