"""Connections whose client asked nobody: redirected to us with the address it had in mind.

The address says where, the first bytes say who: the server name of a ClientHello, the Host of a
request. A name so found is decided, resolved by the guard and dialled like one that a client asked
for by CONNECT, so naming another host gains nothing. Where the client says no name (or waits for the
server to speak first), the guard is asked for which single name it answered this address; failing
that the address itself is the target. The address is dialled only if it is the target or among
the addresses vetted for the name.

A refusal is what the client can read: a TLS alert, an HTTP answer, or a reset.
"""

from __future__ import annotations

import dataclasses
import socket
import struct
from typing import TYPE_CHECKING, Final

from exeat.policy.model import Address, Request, Verdict
from exeat.proxy import refusal
from exeat.proxy.ends import reset_on_close
from exeat.proxy.first_bytes import HTTP_PORT, TLS_PORTS
from exeat.proxy.flow import Flow
from exeat.proxy.redirected import RedirectedDoor

if TYPE_CHECKING:
    from exeat.proxy.doors import Arrival
    from exeat.proxy.ends import End
    from exeat.proxy.exchange import Before
    from exeat.proxy.gateway import Gateway
    from exeat.proxy.jails import Jail
    from exeat.proxy.refusal import Refusal

QUIET_S: Final = 0.4  # how long a client may be silent before it counts as one that listens first
_SO_ORIGINAL_DST: Final = 80  # linux/netfilter_ipv4.h; IP6T_SO_ORIGINAL_DST is the same


def original_destination(sock: socket.SocketType) -> tuple[Address, int] | None:
    """Where a redirected connection was going; None if it was not redirected but came straight here."""
    try:
        if sock.family == socket.AF_INET:
            found = sock.getsockopt(socket.SOL_IP, _SO_ORIGINAL_DST, 16)
            port, raw = struct.unpack("!2xH4s8x", found)
        else:
            found = sock.getsockopt(socket.IPPROTO_IPV6, _SO_ORIGINAL_DST, 28)
            port, raw = struct.unpack("!2xH4x16s4x", found)
    except OSError:  # ENOENT: nothing tracks it
        return None
    here = sock.getsockname()
    if (socket.inet_ntop(sock.family, raw), port) == here[:2]:
        return None
    return Address(4 if sock.family == socket.AF_INET else 6, int.from_bytes(raw)), port


class TransparentFlow(Flow):
    """A Flow that begins with an address instead of a question."""

    __slots__ = ("_may_be_quiet", "_names", "_place", "_unnamed")
    _door: RedirectedDoor | None

    def __init__(
        self,
        gateway: Gateway,
        jail: Jail,
        client: End,
        src: str,
        before: Before | None = None,
        place: tuple[Address, int] | None = None,
    ) -> None:
        self._place = place  # what the client had in mind
        self._names: tuple[str, ...] | None = None  # for which the guard answered it; None: not asked yet
        self._unnamed: Arrival | None = None  # waits for `_names`
        self._may_be_quiet = False
        super().__init__(gateway, jail, client, src, before)

    def next(self, before: Before) -> Flow:
        return TransparentFlow(
            self.gateway, self.jail, self.client, self.evidence.src, before, self._need_place()
        )

    def _door_of_next(self) -> RedirectedDoor:
        address, port = self._need_place()
        self.evidence.name_source, self.evidence.host, self.evidence.port = "address", address, port
        return RedirectedDoor(address, port, again=True)

    def _must_say_who(self) -> bool:
        return False  # it does not know that there is a proxy

    def begin(self) -> None:
        found = original_destination(self.client.sock)
        if found is None:
            self._refuse(refusal.from_code("transparent.direct"))
            return
        self._place = address, port = found
        evidence = self.evidence
        evidence.name_source, evidence.host, evidence.port = "address", address, port
        evidence.src = f"{evidence.src.partition(' ')[0]} to {refusal.place_text(address, port)}"
        self._door = RedirectedDoor(address, port)
        if port in TLS_PORTS:
            self._until(self.gateway.settings.hello_timeout_s, "tls.timeout")
        elif port != HTTP_PORT:
            self._ask_names()

    # -- the name

    def _ask_names(self) -> None:
        self._listen(wanted=False)
        self._until(self.gateway.settings.dial_timeout_s, "dns.unavailable")
        self._cancel = self.gateway.guard.names(self.jail.subject, self._need_place()[0], self._on_names)

    def _on_names(self, names: tuple[str, ...]) -> None:
        self._cancel = None
        self._names = names
        if self.closed or self._door is None:
            return
        arrival = self._unnamed
        if arrival is not None:
            super()._arrived(self._named(arrival) or arrival)
            return
        # Nothing has been read yet, and with a name nothing needs to be: the server may speak first.
        arrival = self._named(self._door.silent())
        if arrival is not None:
            super()._arrived(arrival)
            return
        self._may_be_quiet = True
        self._until(QUIET_S, "")
        self._listen(wanted=True)

    def _arrived(self, arrival: Arrival) -> None:
        if arrival.source != "address" or not arrival.tunnel:
            super()._arrived(arrival)
        elif self._names is None:
            self._unnamed = arrival
            self._ask_names()
        else:
            super()._arrived(self._named(arrival) or arrival)

    def _named(self, arrival: Arrival) -> Arrival | None:
        """The arrival by the one name that the address was answered for, if policy may let it pass.

        If policy refuses both, the name is what a person can do something with.
        """
        if self._names is None or len(self._names) != 1:
            return None
        (name,) = self._names
        verdicts = [
            self.gateway.decide(Request(self.jail.subject, host, arrival.port)).verdict
            for host in (name, arrival.host)
        ]
        if verdicts[0] is Verdict.DENY and verdicts[1] is not Verdict.DENY:
            return None
        return dataclasses.replace(arrival, source="dns", host=name)

    def expire(self) -> None:
        if self._may_be_quiet and self._door is not None and self._hear is Flow._hear_request:
            self._may_be_quiet = False
            code = self._door.unfinished
            if not code:
                self._arrived(self._door.silent())
                return
            self._until(self.gateway.settings.hello_timeout_s, code)
            return
        super().expire()

    # -- where to

    def _dial(self, addresses: tuple[Address, ...]) -> None:
        """The address that the client chose comes first if it was vetted, and not at all otherwise."""
        aim, _ = self._need_place()
        if aim in addresses:
            addresses = (aim, *(address for address in addresses if address != aim))
        super()._dial(addresses)

    # -- the ways out

    def refuse_limit(self, code: str) -> None:
        self._refuse(self._own(code))

    def _answer(self, why: Refusal, *, stays: bool) -> bytes:
        return b"" if self._door is None else super()._answer(why, stays=stays)

    def _part(self, *, answered: bool) -> None:
        if answered:
            super()._part(answered=True)
            return
        reset_on_close(self.client.sock)
        self._close()

    def _drop(self) -> None:
        if self._arrival is None and self._before is None and self._hear is not Flow._hear_nothing_more:
            # To connect is to ask: a client that goes on from address to address is seen.
            self.gateway.refused(self, self._own("client.gone"))
        super()._drop()

    def _need_place(self) -> tuple[Address, int]:
        if self._place is None:
            raise RuntimeError("no destination in this state")
        return self._place
