"""`ledger/ipc.py` channels on an asyncio loop: servers, peers and request/reply clients."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from typing import TYPE_CHECKING

from exeat.appliance.errors import RefusedError
from exeat.ledger.ipc import Channel, IpcError, Message, listen, peer_uid

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Sequence
    from pathlib import Path


class Link:
    """One connection. Calls `on_message(message, fds)` for each message, `on_closed()` once."""

    def __init__(
        self,
        channel: Channel,
        on_message: Callable[[Message, list[int]], None],
        on_closed: Callable[[], None] = lambda: None,
    ) -> None:
        channel.sock.setblocking(False)
        self._channel = channel
        self._on_message = on_message
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self.open = True
        self._loop.add_reader(channel.fileno(), self._readable)

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Queue and send; a peer that is gone is found out by `on_closed`, not here."""
        if not self.open:
            return
        try:
            self._channel.send(message, tuple(fds))
        except (OSError, IpcError):
            self.close()
            return
        if self._channel.wants_write:
            self._loop.add_writer(self._channel.fileno(), self._writable)

    def _writable(self) -> None:
        try:
            self._channel.flush()
        except (OSError, IpcError):
            self.close()
            return
        if not self._channel.wants_write:
            self._loop.remove_writer(self._channel.fileno())

    def _readable(self) -> None:
        try:
            messages = self._channel.receive()
        except (OSError, IpcError):
            self.close()
            return
        for message, fds in messages:
            self._on_message(message, fds)

    def close(self) -> None:
        if not self.open:
            return
        self.open = False
        self._loop.remove_reader(self._channel.fileno())
        self._loop.remove_writer(self._channel.fileno())
        self._channel.close()
        self._on_closed()


class Server:
    """Accepts on a Unix socket and hands over the channels of peers with an allowed uid."""

    def __init__(self, path: Path, allowed: Container[int], on_channel: Callable[[Channel], None]) -> None:
        self._allowed = allowed
        self._on_channel = on_channel
        self._listener = listen(path)
        asyncio.get_running_loop().add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        if peer_uid(sock) not in self._allowed:
            sock.close()
            return
        self._on_channel(Channel(sock))

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._listener.fileno())
        self._listener.close()


class Requester:
    """Requests with ids over one connection that is made again when it broke.

    Raises RefusedError (the peer said no) or RefusedError("unavailable") (nobody there).
    """

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._name = name
        self._link: Link | None = None
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[tuple[Message, list[int]]]] = {}

    async def call(
        self, verb: str, fds: Sequence[int] = (), **arguments: object
    ) -> tuple[Message, list[int]]:
        link = self._connected()
        number = next(self._ids)
        future: asyncio.Future[tuple[Message, list[int]]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        link.send({"id": number, "verb": verb, **arguments}, fds)
        try:
            reply, received = await future
        finally:
            self._waiting.pop(number, None)
        if not reply.get("ok"):
            raise RefusedError(
                str(reply.get("error", "internal.error")), str(reply.get("message", "refused"))
            )
        return reply, received

    def _connected(self) -> Link:
        if self._link is None or not self._link.open:
            try:
                channel = Channel.connect(self._path)
            except OSError as error:
                raise RefusedError("unavailable", f"{self._name} is not running ({error.strerror})") from None
            self._link = Link(channel, self._on_reply, self._on_closed)
        return self._link

    def _on_reply(self, message: Message, fds: list[int]) -> None:
        future = self._waiting.get(message.get("id", 0))
        if future is None or future.done():
            for fd in fds:
                os.close(fd)
            return
        future.set_result((message, fds))

    def _on_closed(self) -> None:
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(RefusedError("unavailable", f"{self._name} went away"))

    def close(self) -> None:
        if self._link is not None:
            self._link.close()


def answers(run_dir: Path, process: str, name: str = "") -> bool:
    """Whether somebody serves the socket of a process: `name`, or the one that is called like it."""
    kind = socket.SOCK_SEQPACKET if process == "ledger" else socket.SOCK_STREAM
    with socket.socket(socket.AF_UNIX, kind) as sock:
        try:
            sock.connect(str(run_dir / process / (name or f"{process}.sock")))
        except OSError:
            return False
    return True
