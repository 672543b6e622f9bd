"""The request server for a socket on which thousands ask at once: bounded, and sparing of system calls."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from exeat.ledger.reactor import EPOLLIN, EPOLLOUT, Reactor
from exeat.ledger.service import Reply, Service

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from exeat.ledger.ipc import Channel, Message


class BusyService(Service):
    """A peer that has `max_waiting` requests without a reply gets the error `busy` for any more.

    A peer that may not ask is named once on stderr.
    """

    def __init__(
        self,
        reactor: Reactor,
        path: Path,
        uids: frozenset[int],
        handle: Callable[[Message, list[int], Reply], None],
        *,
        max_waiting: int,
        busy: str,
    ) -> None:
        self._path, self._max_waiting, self._busy = path, max_waiting, busy
        self._complained = False
        self._waiting: WeakKeyDictionary[Channel, int] = WeakKeyDictionary()
        self._watched: WeakKeyDictionary[Channel, int] = WeakKeyDictionary()
        super().__init__(reactor, path, uids, handle)

    def _accept(self, events: int) -> None:
        try:
            super()._accept(events)
        except OSError as error:  # the caller is gone already, or there is no descriptor to spare
            print(f"{self._path}: {error}", file=sys.stderr)

    def _may_ask(self, uid: int) -> bool:
        allowed = super()._may_ask(uid)
        if not allowed and not self._complained:
            self._complained = True
            print(f"{self._path}: uid {uid} may not ask here", file=sys.stderr)
        return allowed

    def _dispatch(self, channel: Channel, message: Message, fds: list[int]) -> None:
        waiting = self._waiting.get(channel, 0)
        if waiting < self._max_waiting or type(message.get("id")) is not int:
            self._waiting[channel] = waiting + 1
            super()._dispatch(channel, message, fds)
            return
        self._waiting[channel] = waiting + 1  # what `_send` takes away again
        refusal = {"ok": False, "error": self._busy, "message": "too many requests in flight"}
        self._send(channel, {**refusal, "id": message["id"]}, ())

    def _send(self, channel: Channel, message: Message, fds: Sequence[int]) -> None:
        self._waiting[channel] = self._waiting.get(channel, 0) - 1
        super()._send(channel, message, fds)

    def _watch(self, channel: Channel) -> None:
        wanted = EPOLLIN | (EPOLLOUT if channel.wants_write else 0)
        if self._watched.get(channel, EPOLLIN) != wanted:
            super()._watch(channel)
            self._watched[channel] = wanted
