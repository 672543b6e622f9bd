"""The gateway's end of the hub: what control says, kept across restarts of either side.

Proxy and guard each hold one `HubClient`. It connects, says hello, and hands every message to
its handler; when control dies it goes on trying while the gateway lives off its last snapshot.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import TYPE_CHECKING, Protocol

from exeat.ledger.line import Line
from exeat.policy.model import Subject

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from exeat.ledger.ipc import Message
    from exeat.ledger.reactor import Reactor


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

    Only a socket that `server_uid` (or root) listens on is believed. `about` is told of this process
    besides what all tell.
    """

    def __init__(
        self,
        reactor: Reactor,
        path: Path,
        role: str,
        handler: HubHandler,
        server_uid: int,
        about: Mapping[str, str] | None = None,
    ) -> None:
        self._role = role
        self._about = about or {}
        self._handler = handler
        self._jails: set[str] = set()
        self._told = False  # by a first snapshot, before which `spent` must come
        self._connections = 0
        self._line = Line(reactor, path, frozenset({0, server_uid}), self)

    @property
    def connected(self) -> bool:
        return self._line.connected

    @property
    def connection(self) -> int:
        """Which of its connections this is, from 1; 0 while there is none."""
        return self._connections if self._line.connected else 0

    def send(self, message: Message) -> bool:
        """Tell control; False when it cannot be told now (the caller fails closed)."""
        return self._line.send(message)

    def close(self) -> None:
        """End the connection for good; nothing is handled any more."""
        self._line.close()

    def on_connected(self) -> None:
        """Say who this is; control then sends the whole truth."""
        self._connections += 1
        self._line.send(
            {
                "t": "hello",
                "role": self._role,
                "pid": os.getpid(),
                "jails": sorted(self._jails),
                "fresh": not self._told,
                **self._about,
            }
        )

    def on_lost(self) -> None:
        """Nothing hangs on the connection: what was not said is said anew on the next one."""

    def on_message(self, message: Message, fds: list[int]) -> None:
        """Hand one message of control's to the handler."""
        kind = message.get("t")
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
