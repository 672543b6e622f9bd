"""SOCKS5 UDP ASSOCIATE (RFC 1928 sections 4, 7): datagrams of one client, each to where it says.

The association lives as long as the TCP connection that asked for it. In a jail all associations
share the socket that the warden made there (nobody else could make one), told apart by the port a
client sends from; outside jails each has its own. Every destination is a flow of its own (udp.py).
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from exeat.ledger.reactor import EPOLLIN
from exeat.policy.addresses import from_packed
from exeat.policy.model import Address, Request
from exeat.proxy import socks5
from exeat.proxy.socks5 import Datagram, SocksError
from exeat.proxy.udp import BATCH, MAX_DATAGRAM, UdpFlow

if TYPE_CHECKING:
    from exeat.proxy.flow import Flow
    from exeat.proxy.gateway import Gateway

MAX_TARGETS: Final = 64  # live destinations of one association
MAX_REFUSED: Final = 256  # of one association in QUIET_S; then other new destinations are dropped unseen
QUIET_S: Final = 5.0  # how long a refused destination is dropped without another record
SURE_S: Final = 0.2  # how long the kernel's word on whose a client's port is holds

Peer = tuple[str, int]
IsClient = Callable[[int, Any], bool]  # of a family and an address: is it the client?


class UdpPort:
    """A socket that clients of associations send to."""

    def __init__(self, gateway: Gateway, sock: socket.socket) -> None:
        self._reactor = gateway.reactor
        self._sock = sock
        self.family = sock.family
        self._open: list[Association] = []  # whose client has not sent anything yet
        self._known: dict[Peer, Association] = {}
        self._reactor.add(sock.fileno(), EPOLLIN, self._on_readable)

    @property
    def address(self) -> tuple[Address, int]:
        """Where clients are to send to."""
        host, port = self._sock.getsockname()[:2]
        return from_packed(socket.inet_pton(self._sock.family, host)), port

    def join(self, association: Association) -> None:
        self._open.append(association)

    def leave(self, association: Association) -> None:
        if association in self._open:
            self._open.remove(association)
        for peer in [peer for peer, known in self._known.items() if known is association]:
            del self._known[peer]

    def reply(self, data: bytes, peer: Any) -> None:
        try:
            self._sock.sendto(data, peer)
        except OSError:
            return  # its queue is full, or it has gone

    def close(self) -> None:
        self._reactor.remove(self._sock.fileno())
        self._sock.close()

    def _on_readable(self, _events: int) -> None:
        for _ in range(BATCH):
            try:
                data, peer = self._sock.recvfrom(MAX_DATAGRAM)
            except OSError:  # nothing more, or an ICMP error of a client that has gone
                return
            association = self._known.get(peer[:2]) or self._claim(peer)
            if association is not None:
                association.heard(data, peer)

    def _claim(self, peer: Any) -> Association | None:
        """The association that this new sender belongs to: one that named its port before the others."""
        for association in sorted(self._open, key=lambda one: not one.says):
            if association.may_send(self.family, peer):
                self._open.remove(association)
                self._known[peer[:2]] = association
                return association
        return None


class Association:
    """`says` is the port that the client said it will send from; 0: it did not say.

    `is_client` tells who may send; without it the port is a jail's, which nobody else can reach.
    """

    def __init__(self, flow: Flow, port: UdpPort, says: int, is_client: IsClient | None = None) -> None:
        self.bound = port.address
        self._flow = flow
        self._gateway = flow.gateway
        self._jail = flow.jail
        self._src = flow.evidence.src
        self._port = port
        self._is_client = is_client
        self.says = says
        self._sure_until = 0.0  # reactor time
        self._gone = False
        self._targets: dict[bytes, UdpFlow] = {}
        self._refused: dict[bytes, float] = {}  # until when, in reactor time
        port.join(self)

    def may_send(self, family: int, peer: Any) -> bool:
        """Only who asked may, and only from the port that was named, if one was."""
        return self.says in (0, peer[1]) and (self._is_client is None or self._is_client(family, peer))

    def _is_here(self, peer: Any) -> bool:
        """Whether the port is still the client's: it may have closed it, and another process have it now."""
        now = self._gateway.reactor.now()
        if self._is_client is None or now < self._sure_until:
            return True
        if self._gone or not self._is_client(self._port.family, peer):
            if not self._gone:
                self._gone = True
                self._gateway.reactor.call_soon(partial(self._flow.cut, "client.gone"))
            return False
        self._sure_until = now + SURE_S
        return True

    def heard(self, data: bytes, peer: Any) -> None:
        if not self._is_here(peer):
            return
        try:
            datagram = socks5.read_datagram(data)
        except SocksError:
            return
        flow = self._targets.get(datagram.header) or self._begin(datagram, peer)
        if flow is not None:
            flow.send(datagram.payload)

    def _begin(self, datagram: Datagram, peer: Any) -> UdpFlow | None:
        header = datagram.header
        if not self._may_try(header):
            return None
        request = Request(self._jail.subject, datagram.host, datagram.port, "udp")
        reply = partial(self._reply, header, peer)
        ended = partial(self._ended, header)
        flow = UdpFlow(self._gateway, self._jail, request, self._src, reply, ended)
        if len(self._targets) >= MAX_TARGETS or len(self._jail.flows) >= self._jail.limit:
            self._gateway.enter(flow)
            flow.end("limit.connections")
            return None
        self._targets[header] = flow
        self._gateway.enter(flow)
        flow.begin()
        return None if flow.ended else flow

    def _may_try(self, header: bytes) -> bool:
        """Whether a new destination is judged at all: a refusal costs its sender one small datagram."""
        now = self._gateway.reactor.now()
        if len(self._refused) >= MAX_REFUSED:
            self._refused = {key: until for key, until in self._refused.items() if until > now}
        return len(self._refused) < MAX_REFUSED and self._refused.get(header, 0.0) <= now

    def _reply(self, header: bytes, peer: Any, payload: bytes) -> None:
        if self._is_here(peer):
            self._port.reply(header + payload, peer)

    def _ended(self, header: bytes) -> None:
        """Its next datagram begins another flow, after a while: it may have been refused."""
        self._targets.pop(header, None)
        self._refused[header] = self._gateway.reactor.now() + QUIET_S

    def close(self, cut: str = "") -> None:
        """The client's TCP connection has ended, or is to end; `cut` is the reason if it is cut."""
        self._port.leave(self)
        for flow in list(self._targets.values()):
            flow.end(cut) if cut else flow.leave()
        if self._is_client is not None:  # else the port is the jail's, for all of them
            self._port.close()


def begin(flow: Flow, says: int) -> Association | None:
    """An association for the client of `flow`; None where a client could not send to one.

    A client that only a password tells from others at its address must say which port is its own:
    its datagrams carry no password.
    """
    sock = flow.client.sock
    if flow.jail is not flow.came_by and not says:
        return None
    shared = flow.jail.udp.get("udp6" if sock.family == socket.AF_INET6 else "udp4")
    if shared is not None:
        return Association(flow, shared, says)  # nobody but the jail can reach it
    if sock.family == socket.AF_UNIX:
        return None
    own = flow.gateway.datagram_socket(sock.family)
    if own is None:
        return None
    try:
        own.bind((sock.getsockname()[0], 0))
        is_client = flow.gateway.same_client(flow)
    except OSError:
        own.close()
        return None
    return Association(flow, UdpPort(flow.gateway, own), says, is_client)
