"""The gateway's end of the hub: what control says, kept across restarts of either side.

Proxy and guard each hold one `HubClient`. It connects, says hello, and hands every message to
its handler; when control dies it goes on trying while the gateway lives off its last snapshot.
"""

from __future__ import annotations

import os
import socket
import sys
import traceback
from typing import TYPE_CHECKING, Protocol

from exeat.ledger.ipc import Channel, IpcError, Message, peer_uid
from exeat.ledger.reactor import EPOLLIN, EPOLLOUT, Reactor, Timer
from exeat.policy.model import Subject

if TYPE_CHECKING:
    from pathlib import Path

RECONNECT_S = 0.1
MAX_UNSENT = 16 * 1024  # messages that control does not read; then the link is given up


class HubHandler(Protocol):
    """What a gateway process does with control's messages (docs/architecture.md, hub.sock)."""

    def on_snapshot(self, message: Message) -> None: ...

    def on_jail(
        self, jail: str, subject: Subject, sockets: dict[str, socket.socket], message: Message
    ) -> None: ...

    def on_jail_removed(self, jail: str) -> None: ...

    def on_cut(self, message: Message) -> None: ...

    def on_other(self, message: Message) -> None: ...


class HubClient:
    """Connects to `path` as `role` (proxy or guard) and keeps doing so.

    Only a socket that `server_uid` (or root) listens on is believed.
    """

    def __init__(self, reactor: Reactor, path: Path, role: str, handler: HubHandler, server_uid: int) -> None:
        self._reactor = reactor
        self._path = path
        self._role = role
        self._handler = handler
        self._server_uids = {0, server_uid}
        self._channel: Channel | None = None
        self._jails: set[str] = set()
        self._told = False  # by a first snapshot, before which `spent` must come
        self._closed = False
        self._complained = False
        self._retry: Timer | None = reactor.call_later(0, self._connect)

    @property
    def connected(self) -> bool:
        return self._channel is not None

    def send(self, message: Message) -> bool:
        """Tell control; False when it cannot be told now (the caller fails closed)."""
        if self._channel is None:
            return False
        try:
            self._channel.send(message)
        except (OSError, IpcError):
            self._lost()
            return False
        if self._channel.unsent > MAX_UNSENT:
            self._lost()  # it does not read; on a new connection it gets the whole truth anyway
            return False
        self._watch()
        return True

    def close(self) -> None:
        """End the connection for good; nothing is handled any more."""
        self._closed = True
        self._lost()
        if self._retry is not None:
            self._retry.cancel()

    def _connect(self) -> None:
        self._retry = None
        try:
            channel = Channel.connect(self._path)
        except OSError:
            self._retry = self._reactor.call_later(RECONNECT_S, self._connect)
            return
        if (uid := peer_uid(channel.sock)) not in self._server_uids:
            channel.close()
            if not self._complained:
                print(f"{self._path}: uid {uid} serves it, which is not control", file=sys.stderr)
                self._complained = True
            self._retry = self._reactor.call_later(RECONNECT_S, self._connect)
            return
        channel.sock.setblocking(False)
        self._channel = channel
        self._reactor.add(channel.fileno(), EPOLLIN, self._on_event)
        self.send(
            {
                "t": "hello",
                "role": self._role,
                "pid": os.getpid(),
                "jails": sorted(self._jails),
                "fresh": not self._told,
            }
        )

    def _watch(self) -> None:
        if self._channel is not None:
            self._reactor.modify(
                self._channel.fileno(), EPOLLIN | (EPOLLOUT if self._channel.wants_write else 0)
            )

    def _lost(self) -> None:
        if self._channel is None:
            return
        self._reactor.remove(self._channel.fileno())
        self._channel.close()
        self._channel = None
        if not self._closed:
            self._retry = self._reactor.call_later(RECONNECT_S, self._connect)

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
                self._dispatch(message, fds)
            except Exception:
                # A bug in one handler must not swallow the messages that came in the same read.
                traceback.print_exc(file=sys.stderr)
            finally:
                for fd in fds:
                    os.close(fd)

    def _dispatch(self, message: Message, fds: list[int]) -> None:
        """Descriptors that are still in `fds` afterwards are closed."""
        kind = message.get("t")
        if self._closed:
            return
        if kind == "jail.add":
            self._add_jail(message, fds)
        elif kind == "snapshot":
            self._handler.on_snapshot(message)
            self._told = True
        elif kind == "jail.remove":
            self._jails.discard(message["jail"])
            self._handler.on_jail_removed(message["jail"])
        elif kind == "cut":
            self._handler.on_cut(message)
        else:
            self._handler.on_other(message)

    def _add_jail(self, message: Message, fds: list[int]) -> None:
        names = message.get("sockets", [])
        jail = message["jail"]
        subject = Subject(**message["subject"])
        if len(names) != len(fds):
            print(f"jail.add {jail}: {len(fds)} descriptors for {len(names)} names", file=sys.stderr)
            return
        if jail in self._jails:
            return
        sockets = {name: socket.socket(fileno=fd) for name, fd in zip(names, fds, strict=True)}
        fds.clear()
        self._jails.add(jail)
        try:
            for sock in sockets.values():
                sock.setblocking(False)
            self._handler.on_jail(jail, subject, sockets, message)
        except BaseException:
            self._jails.discard(jail)  # control will send it again on the next connection
            for sock in sockets.values():
                sock.close()
            raise
