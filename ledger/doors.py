"""The ledger's socket: who may write what, their requests as they come, and the answers.

What a request means is for whoever serves it (`ledger.daemon`).
"""

from __future__ import annotations

import socket
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from exeat.ledger import ipc, wire
from exeat.ledger import reactor as loop
from exeat.ledger.flows import NOBODY
from exeat.ledger.records import Kind
from exeat.ledger.wire import WireError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# `gap`, `boot` and `key` are the ledger's own: they say what was dropped, and which key signs.
ROLES: Final[dict[str, frozenset[Kind]]] = {
    "gateway": frozenset(
        {
            Kind.OPEN,
            Kind.RESERVE,
            Kind.PROGRESS,
            Kind.CLOSE,
            Kind.RESUME,
            Kind.DENY,
            Kind.DNS,
            Kind.RECONCILE,
        }
    ),
    "control": frozenset(
        {
            Kind.OPEN,  # of flows past the proxy, like the next three
            Kind.PROGRESS,
            Kind.CLOSE,
            Kind.RESUME,
            Kind.LEASE,
            Kind.POLICY,
            Kind.DENY,
            Kind.RECONCILE,
            Kind.ANOMALY,
            Kind.JOB,
            Kind.ATTEST,
        }
    ),
    "console": frozenset({Kind.ADMIN}),
    "witness": frozenset({Kind.WITNESS, Kind.ANOMALY}),
    "root": frozenset(),
}
_PER_TURN: Final = 256  # requests read from one connection before the others get their turn
_MAX_CLIENTS: Final = 256


@dataclass(eq=False, slots=True)
class Client:
    """One connection; `kinds` are what it may write, `owner` tells its flows from another's."""

    sock: socket.socket
    kinds: frozenset[Kind]
    owner: int
    outbox: deque[bytes] = field(default_factory=deque)


class Clerk(Protocol):
    """Who serves the clients."""

    def request(self, client: Client, number: int, datagram: bytes) -> None:
        """One datagram that has a request number."""

    def gone(self, owner: int) -> None:
        """A client left, or broke the protocol."""


class Doors:
    """Listens at `path` for root and the users of `writers` (uid to a role of `ROLES`). Raises OSError."""

    def __init__(self, reactor: loop.Reactor, path: Path, writers: Mapping[int, str], clerk: Clerk) -> None:
        self._reactor, self._path, self._writers, self._clerk = reactor, path, writers, clerk
        self._clients: dict[int, Client] = {}
        self._last_owner = NOBODY
        path.parent.mkdir(parents=True, exist_ok=True)
        self._listener = ipc.listen(path, kind=socket.SOCK_SEQPACKET)
        reactor.add(self._listener.fileno(), loop.EPOLLIN, self._on_accept)

    def reply(self, client: Client, data: bytes) -> None:
        """Send an answer, now or when the client has room for it."""
        if client.outbox:
            client.outbox.append(data)
            return
        try:
            client.sock.send(data)
        except BlockingIOError:
            # A client that does not read its answers is not read from either.
            client.outbox.append(data)
            self._reactor.modify(client.sock.fileno(), loop.EPOLLOUT)
        except OSError:
            pass  # gone; its end of stream comes by the loop

    def drop_all(self) -> None:
        """Close every connection: clients connect again, and say again what they have no answer for."""
        for client in list(self._clients.values()):
            self._drop(client)

    def close(self) -> None:
        """Let nobody in any more, and everybody go."""
        self.drop_all()
        self._reactor.remove(self._listener.fileno())
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def _on_accept(self, _events: int) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:  # nobody left to accept, or the caller is gone already
                return
            uid = ipc.peer_uid(sock)
            role = self._writers.get(uid, "root" if uid == 0 else "")
            if role not in ROLES or len(self._clients) >= _MAX_CLIENTS:
                sock.close()
                continue
            sock.setblocking(False)
            self._last_owner += 1
            client = Client(sock, ROLES[role], self._last_owner)
            self._clients[sock.fileno()] = client
            self._reactor.add(sock.fileno(), loop.EPOLLIN, partial(self._on_event, client))

    def _on_event(self, client: Client, events: int) -> None:
        if events & loop.EPOLLOUT:
            self._flush(client)
        elif events & (loop.EPOLLIN | loop.EPOLLHUP | loop.EPOLLERR):
            self._read(client)

    def _read(self, client: Client) -> None:
        for _ in range(_PER_TURN):
            try:
                datagram = client.sock.recv(wire.MAX_DATAGRAM + 1)
            except BlockingIOError:
                return
            except OSError:
                datagram = b""
            if not datagram:
                self._gone(client)
                return
            try:
                self._clerk.request(client, wire.request_number(datagram), datagram)
            except WireError:
                self._gone(client)
                return

    def _flush(self, client: Client) -> None:
        while client.outbox:
            try:
                client.sock.send(client.outbox[0])
            except BlockingIOError:
                return
            except OSError:
                self._gone(client)
                return
            client.outbox.popleft()
        self._reactor.modify(client.sock.fileno(), loop.EPOLLIN)

    def _gone(self, client: Client) -> None:
        self._drop(client)
        self._clerk.gone(client.owner)

    def _drop(self, client: Client) -> None:
        if self._clients.pop(client.sock.fileno(), None) is not None:
            self._reactor.remove(client.sock.fileno())
            client.sock.close()
