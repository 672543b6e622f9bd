"""The rules that no policy can remove (M1-M8): checked before everything else, in this order."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, NamedTuple

from exeat.policy.addresses import (
    METADATA,
    WIDTH,
    AddressClass,
    Cidr,
    class_starts,
    classify,
    collapse,
    embedded_v4,
    is_isatap,
    is_metadata,
)
from exeat.policy.model import Address, Request
from exeat.policy.rules import PROTOCOLS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# DNS, DNS over TLS, DNS over QUIC (old and new port): the guard is the only resolver.
DNS_PORTS = frozenset({53, 784, 853, 8853})
LOOPBACK_NAMES = frozenset(
    {"localhost", "localdomain", "localhost6", "localdomain6", "ip6-localhost", "ip6-loopback"}
)
METADATA_NAMES = (
    "metadata",
    "metadata.google.internal",
    "metadata.goog",
    "metadata.azure.internal",
    "metadata.tencentyun.com",
    "metadata.platformequinix.com",
    "metadata.packet.net",
    "instance-data",
    "instance-data.ec2.internal",
    "rancher-metadata",
    "rancher-metadata.rancher.internal",
)
_METADATA_ENDS = tuple(f".{name}" for name in METADATA_NAMES)
_LOCAL = frozenset({AddressClass.LOOPBACK, AddressClass.UNSPECIFIED})
_SPECIAL = frozenset({AddressClass.LINK_LOCAL, AddressClass.MULTICAST, AddressClass.RESERVED})
# Of an IPv4 address inside IPv6 only these count here. Where a translator's format is ambiguous the
# other readings come out as 0.0.0.x or 255.x; such an address is refused anyway, for not being public.
_INSIDE = frozenset({AddressClass.LOOPBACK, AddressClass.LINK_LOCAL, AddressClass.MULTICAST})


# The ranks of what an address or name is refused for; the lowest is named.
_FINE, _LOOPBACK, _METADATA, _SPECIAL_PLACE = 99, 1, 2, 3
_CODES = {_LOOPBACK: "meta.loopback", _METADATA: "meta.metadata", _SPECIAL_PLACE: "meta.special_address"}
_MAPPED = (0xFFFF << 32, 0x10000 << 32)  # the edges of ::ffff:0:0/96
_SUSPECT_ENDS = tuple(f".{name}" for name in (*LOOPBACK_NAMES, *METADATA_NAMES))


def judged(addresses: Iterable[Address]) -> tuple[Address, ...]:
    """The addresses and every IPv4 address inside them: wrapping must not dodge a refusal."""
    out: list[Address] = []
    for address in addresses:
        out.append(address)
        if address.family == 6:
            out += embedded_v4(address)
    return tuple(out)


def addresses_of(request: Request) -> tuple[Address, ...]:
    """Everything the flow may be dialled to: the literal, and what the name resolved to."""
    if isinstance(request.host, Address):
        return (request.host, *request.resolved)
    return request.resolved


class Ground(NamedTuple):
    """What one address is: the rank of its refusal (`_FINE` is none), and whether it is public."""

    rank: int
    public: bool


class _Terrain:
    """The ground of every address, as tables of stretches over which it does not change.

    `treat_as_public` (lab only) re-classes addresses; metadata and host-local ones stay forbidden.
    """

    def __init__(self, treat_as_public: tuple[Cidr, ...], host_local: frozenset[Address]) -> None:
        self._treat_as_public = treat_as_public
        self._host_local = host_local
        self._tables = {family: self._table(family) for family in (4, 6)}

    def ground(self, address: Address) -> Ground:
        starts, grounds = self._tables[address.family]
        known = grounds[bisect_right(starts, address.value) - 1]
        if known is None or (address.family == 6 and is_isatap(address.value)):
            return self._look(address)
        return known

    def _table(self, family: int) -> tuple[list[int], list[Ground | None]]:
        edges = {*class_starts(family), *(_MAPPED if family == 6 else ())}
        for address in (*METADATA, *self._host_local):
            if address.family == family:
                edges |= {address.value, address.value + 1}
        for cidr in self._treat_as_public:
            if cidr.family == family:
                edges |= {cidr.value, cidr.value + (1 << (WIDTH[family] - cidr.length))}
        starts = sorted(edges)
        return starts, [self._stretch(Address(family, start)) for start in starts]

    def _stretch(self, first: Address) -> Ground | None:
        """The ground from `first` to the next edge; None where it varies with what is inside."""
        varies = classify(first) is AddressClass.TRANSLATED or collapse(first) != first
        return None if varies else self._look(first)

    def _look(self, address: Address) -> Ground:
        inside = embedded_v4(address)
        own = self._classify(address)
        classes = {own} | ({self._classify(v4) for v4 in inside} & _INSIDE)
        everything = (address, *inside)
        if classes & _LOCAL or not self._host_local.isdisjoint(everything):
            rank = _LOOPBACK
        elif is_metadata(address):
            rank = _METADATA
        else:
            rank = _SPECIAL_PLACE if classes & _SPECIAL else _FINE
        return Ground(rank, own is AddressClass.PUBLIC)

    def _classify(self, address: Address) -> AddressClass:
        if any(cidr.holds(address) for cidr in self._treat_as_public):
            return AddressClass.PUBLIC
        return classify(address)


_terrain = lru_cache(maxsize=8)(_Terrain)


@dataclass(frozen=True)
class MetaRules:
    """M1-M8 with what they need to know of this node."""

    project: str
    control: frozenset[tuple[str | Address, int]] = frozenset()
    treat_as_public: tuple[Cidr, ...] = ()
    host_local: frozenset[Address] = frozenset()

    @cached_property
    def _ground(self) -> Callable[[Address], Ground]:
        return _terrain(self.treat_as_public, self.host_local).ground

    @cached_property
    def _control_ports(self) -> frozenset[int]:
        return frozenset(port for _, port in self.control)

    def judge(self, request: Request) -> tuple[str, bool]:
        """The code of the first meta rule that refuses, or ''; and whether all that a name
        resolved to is public."""
        subject = request.subject
        if not subject.agent or not subject.project:
            return "meta.attribution", False
        if subject.project != self.project:
            return "meta.project", False
        if request.proto not in PROTOCOLS:
            return "meta.proto", False
        if request.port in DNS_PORTS:
            return "meta.dns_bypass", False
        return self._place(request)

    def _place(self, request: Request) -> tuple[str, bool]:
        host, public = request.host, True
        rank = _name_rank(host) if isinstance(host, str) else self._ground(host).rank
        for address in request.resolved:
            if address != host:
                ground = self._ground(address)
                rank = min(rank, ground.rank)
                public = public and ground.public
        if rank != _FINE:
            return _CODES[rank], public
        if request.port in self._control_ports and self._is_control(request):
            return "meta.control_plane", public
        return "", public

    def _is_control(self, request: Request) -> bool:
        places = (request.host, *judged(addresses_of(request)))
        return any((place, request.port) in self.control for place in places)


def _name_rank(name: str) -> int:
    dotted = f".{name}"
    if not dotted.endswith(_SUSPECT_ENDS):
        return _FINE
    return _METADATA if dotted.endswith(_METADATA_ENDS) else _LOOPBACK
