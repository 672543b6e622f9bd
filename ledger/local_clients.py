"""Who a client outside jails is, where the kernel can say more than its address: its cgroup and uid.

A socket belongs to the process that made it, whoever else holds it, and to the cgroup that process
was in at that moment. What cannot be told is nobody: a client on this machine whose socket is gone
is never taken for whoever else its address stands for.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Any, Final

from exeat.ledger.sock_diag import Cgroups, Owner, SocketOwners, cgroup_root, is_local
from exeat.policy.identity import NOBODY, Identities
from exeat.policy.model import Address, Subject

if TYPE_CHECKING:
    from exeat.ledger.sock_diag import Place

_ORIGINAL_DST: Final = 80  # SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST


class LocalClients:
    """Subjects of TCP and UDP clients. Asks the kernel only if an identity has a uid or a cgroup."""

    def __init__(self, identities: Identities) -> None:
        self._identities = identities
        self._owners = SocketOwners() if identities.by_process else None
        self._cgroups = Cgroups(cgroup_root())

    @property
    def by_address(self) -> bool:
        """Does the address alone say it, so that an answer holds for the next client, too?"""
        return self._owners is None

    def of_address(self, family: int, text: str) -> Subject:
        """The subject that this address stands for."""
        return self._identities.of_address(peer_address(family, text))

    def of_tcp(self, sock: socket.SocketType, peer: Any) -> Subject:
        """The subject behind an accepted connection. `peer` is its address as `accept` gave it."""
        subject = self.of_address(sock.family, peer[0])
        if self._owners is None:
            return subject
        client = (_bare(peer[0]), peer[1])
        owner = self._owners.of_tcp(sock.family, client, _asked(sock))
        return self._judge(owner, sock.family, client, subject)

    def of_udp(self, family: int, peer: Any) -> Subject:
        """The subject behind a datagram from `peer`, whatever address it was sent to."""
        subject = self.of_address(family, peer[0])
        if self._owners is None:
            return subject
        client = (_bare(peer[0]), peer[1])
        return self._judge(self._owners.of_udp(family, client), family, client, subject)

    def close(self) -> None:
        if self._owners is not None:
            self._owners.close()

    def _judge(self, owner: Owner | None, family: int, client: Place, by_address: Subject) -> Subject:
        if owner is None:
            return NOBODY if is_local(family, client[0]) else by_address
        path = self._cgroups.path(owner.cgroup)
        if path is None:
            return NOBODY
        return self._identities.of_process(owner.uid, path) or by_address


def peer_address(family: int, text: str) -> Address:
    """The client's address as the kernel gave it (IPv6 with or without a zone)."""
    packed = socket.inet_pton(family, _bare(text))
    return Address(4 if family == socket.AF_INET else 6, int.from_bytes(packed))


def _bare(text: str) -> str:
    return text.partition("%")[0]


def _asked(sock: socket.SocketType) -> Place:
    """Where the client connected to: before a redirect, where there was one."""
    six = sock.family == socket.AF_INET6
    try:
        raw = sock.getsockopt(socket.IPPROTO_IPV6 if six else socket.SOL_IP, _ORIGINAL_DST, 28 if six else 16)
    except OSError:  # not known to connection tracking
        name = sock.getsockname()
        return _bare(name[0]), name[1]
    (port,) = struct.unpack_from("!H", raw, 2)
    return socket.inet_ntop(sock.family, raw[8:24] if six else raw[4:8]), port
