"""The rules that no policy can remove (M1-M8): checked before everything else, in this order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from exeat.policy.addresses import AddressClass, Cidr, classify, embedded_v4, is_metadata
from exeat.policy.model import Address, Request
from exeat.policy.rules import PROTOCOLS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

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


@dataclass(frozen=True)
class MetaRules:
    """M1-M8 with what they need to know of this node.

    `treat_as_public` (lab only) re-classes addresses; metadata and control plane stay forbidden.
    """

    project: str
    control: frozenset[tuple[str | Address, int]] = frozenset()
    treat_as_public: tuple[Cidr, ...] = ()
    host_local: frozenset[Address] = frozenset()

    def classify(self, address: Address) -> AddressClass:
        if any(cidr.holds(address) for cidr in self.treat_as_public):
            return AddressClass.PUBLIC
        return classify(address)

    def all_public(self, addresses: Sequence[Address]) -> bool:
        return all(self.classify(address) is AddressClass.PUBLIC for address in addresses)

    def refusal(self, request: Request) -> str:
        """The code of the first meta rule that refuses, or ''."""
        subject = request.subject
        if not subject.agent or not subject.project:
            return "meta.attribution"
        if subject.project != self.project:
            return "meta.project"
        if request.proto not in PROTOCOLS:
            return "meta.proto"
        if request.port in DNS_PORTS:
            return "meta.dns_bypass"
        return self._place(request)

    def _place(self, request: Request) -> str:
        host = request.host
        name = host if isinstance(host, str) else ""
        if name.rpartition(".")[2] in LOOPBACK_NAMES:
            return "meta.loopback"
        dialled = addresses_of(request)
        addresses = judged(dialled)
        classes = {self.classify(address) for address in dialled}
        if len(addresses) > len(dialled):
            classes |= {self.classify(address) for address in addresses} & _INSIDE
        if classes & _LOCAL or any(address in self.host_local for address in addresses):
            return "meta.loopback"
        if any(map(is_metadata, addresses)) or f".{name}".endswith(_METADATA_ENDS):
            return "meta.metadata"
        if classes & _SPECIAL:
            return "meta.special_address"
        if any((place, request.port) in self.control for place in (host, *addresses)):
            return "meta.control_plane"
        return ""
