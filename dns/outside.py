"""Clients outside every jail: the address they ask from, or their cgroup or uid, says who they are.

All clients of one identity share one `Jail`, so that limits and remembered replies work as they do
for a job. Clients that no identity knows share one too, whose subject the policy core refuses.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from exeat.dns.responder import Jail
from exeat.ledger.local_clients import LocalClients

if TYPE_CHECKING:
    from collections.abc import Callable

    from exeat.dns.batch import Peers
    from exeat.policy.identity import Identities
    from exeat.policy.model import Subject

MAX_PEERS = 4096  # remembered client addresses


class Outside:
    """Finds the jail of a peer. `now` is seconds of CLOCK_BOOTTIME."""

    def __init__(self, identities: Identities, now: Callable[[], float]) -> None:
        self._clients = LocalClients(identities)
        self._now = now
        self._jails: dict[Subject, Jail] = {}
        self._peers: dict[str, Jail] = {}
        self.tables: Peers = {}  # what each of those is answered again, by packed address

    @property
    def jails(self) -> list[Jail]:
        return list(self._jails.values())

    def who(self, family: int, peer: Any) -> Jail:
        """The jail that stands for who sent a datagram. `peer` is as the socket module gives it."""
        if self._clients.by_address:
            return self._known(family, peer[0])
        return self._jail(self._clients.of_udp(family, peer))

    def accepted(self, sock: socket.socket, peer: Any) -> Jail:
        """The jail that stands for who made this connection."""
        if self._clients.by_address:
            return self._known(sock.family, peer[0])
        return self._jail(self._clients.of_tcp(sock, peer))

    def _known(self, family: int, text: str) -> Jail:
        jail = self._peers.get(text)
        if jail is None:
            jail = self._jail(self._clients.of_address(family, text))
            if len(self._peers) >= MAX_PEERS:  # a source address in UDP is easily varied
                self._peers.clear()
                self.tables.clear()
            self._peers[text] = jail
            self.tables[socket.inet_pton(family, text.partition("%")[0])] = jail.hot
        return jail

    def _jail(self, subject: Subject) -> Jail:
        jail = self._jails.get(subject)
        if jail is None:
            jail = self._jails[subject] = Jail.new("", subject, self._now())
        return jail
