"""Clients outside every jail: the address, cgroup or uid that the kernel names says who they are.

Their doors exist from the start, but nothing is accepted before there is a policy. All clients of
one identity share one `Jail`, so limits, holds and cuts work as they do for a job; clients that no
identity knows share one too, whose subject the policy core refuses (`meta.attribution`).
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, Final

from exeat.ledger.ipc import peer_uid
from exeat.ledger.local_clients import LocalClients, peer_address
from exeat.policy.identity import NOBODY, Identities
from exeat.proxy import jails
from exeat.proxy.credentials import Attempts
from exeat.proxy.jails import Jail

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from exeat.policy.model import Subject
    from exeat.proxy.credentials import Credentials
    from exeat.proxy.flow import Flow
    from exeat.proxy.udp import UdpFlow

MAX_PATH: Final = 100  # bytes of a socket's path that go into a record's `src`


class Outside:
    """The static listeners and those who come in by them.

    `listeners` are (name, listening socket): ADDRESS:PORT, or the path of a Unix socket.
    """

    def __init__(
        self,
        listeners: Sequence[tuple[str, socket.socket]],
        identities: Identities,
        limit: int,
        credentials: Credentials | None,
    ) -> None:
        self.listeners = list(listeners)
        self._identities = identities
        self._clients = LocalClients(identities)
        self._limit = limit
        self._credentials = credentials
        self._attempts = Attempts()
        self._jails: dict[Subject, Jail] = {}
        self._named: dict[Flow, tuple[str, tuple[bytes, bytes] | None]] = {}  # by which entry of the file

    @property
    def jails(self) -> list[Jail]:
        return list(self._jails.values())

    @property
    def quiet(self) -> bool:
        return all(jail.quiet for jail in self._jails.values())

    def who(self, name: str, sock: socket.socket, peer: Any) -> tuple[Jail, str]:
        """The jail that stands for the client on `sock`, and what records call its way in."""
        if sock.family == socket.AF_UNIX:
            uid = peer_uid(sock)
            return self._jail(self._identities.of_peer(name, uid)), f"{name[-MAX_PATH:]} uid {uid}"
        subject = self._clients.of_tcp(sock, peer)
        source = f"[{peer[0]}]:{peer[1]}" if sock.family == socket.AF_INET6 else f"{peer[0]}:{peer[1]}"
        return self._jail(subject), f"{source} {name}"

    def same_client(self, sock: socket.SocketType) -> Callable[[int, Any], bool]:
        """Of a family and the address that a datagram came from: is it who is connected on `sock`?

        As far as the kernel can say: by process where an identity goes by that, else by address.
        """
        peer = sock.getpeername()
        address, subject = peer_address(sock.family, peer[0]), self._clients.of_tcp(sock, peer)

        def same(family: int, other: Any) -> bool:
            if peer_address(family, other[0]) != address:
                return False
            clients = self._clients
            return clients.by_address or clients.of_udp(family, other) == subject

        return same

    def must_say(self, jail: Jail) -> bool:
        """Whether a client of this jail has to say who it is: the kernel's word is never overruled."""
        return self._credentials is not None and jail.subject is NOBODY

    def named(self, said: tuple[bytes, bytes] | None, src: str, now: float) -> Jail | str:
        """The jail of a client that gives this name and password, or the reason code why not.

        `src` is its way in as records call it, `now` the reactor's time.
        """
        if said is None or self._credentials is None:
            return "auth.required"
        peer = _without_port(src)
        if self._attempts.barred(peer, now):
            return "auth.rate"
        name, password = said
        if not self._credentials.knows(name, password):
            self._attempts.failed(peer, now)
            return "auth.failed"
        return self._jail(self._identities.of_user(name.decode("ascii")))

    def remember(self, flow: Flow, name: bytes) -> None:
        """`flow` is let in for this name, until the entry in the file is another one."""
        if self._credentials is not None:
            text = name.decode("ascii")
            self._named[flow] = (text, self._credentials.entry(text))

    def forget(self, flow: Flow | UdpFlow) -> None:
        self._named.pop(flow, None)  # type: ignore[arg-type]  # one of datagrams is not in it

    def not_any_more(self) -> list[Flow]:
        """Flows of names that have gone from the file, or got another password."""
        credentials = self._credentials
        if credentials is None:
            return []
        credentials.refresh()
        return [flow for flow, (name, entry) in self._named.items() if credentials.entry(name) != entry]

    def _jail(self, subject: Subject) -> Jail:
        jail = self._jails.get(subject)
        if jail is None:
            limit = jails.MAX_CONNECTIONS if subject is NOBODY else self._limit
            jail = self._jails[subject] = Jail("", subject, None, {}, limit=limit)
        return jail


def _without_port(src: str) -> str:
    """A client's address, or the socket and uid it came by: what stays when it connects again."""
    peer, _, _ = src.partition(" ")
    return peer.rpartition(":")[0] if not src.startswith("/") else src
