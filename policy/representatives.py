"""Every host, and every kind of address a name may resolve to, that two policies can tell apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exeat.policy.addresses import WIDTH, AddressClass, Cidr, class_starts, classify
from exeat.policy.decide import compile_policy, decide
from exeat.policy.document import Document
from exeat.policy.meta import LOOPBACK_NAMES, METADATA_NAMES
from exeat.policy.model import Address, Request, Subject
from exeat.policy.places import Host, address_places, edges, name_places
from exeat.policy.postures import SPECIAL_LABELS, Posture
from exeat.policy.rules import Kind, Rule
from exeat.policy.scopes import Reach, Scope
from exeat.policy.usage import Overlay

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# What this refuses, every policy does.
_UNENFORCED = compile_policy(Document(project="p", posture=Posture.OFF))
_SUBJECT = Subject("p", "a")
_METADATA_ENDS = tuple(f".{name}" for name in METADATA_NAMES)
# IPv6 forms that carry an IPv4 address in order: the first address of each, and how far it is shifted.
_CARRIERS = (
    (0x0064FF9B << 96, 0),  # NAT64
    (0x0064FF9B0001 << 80, 0),  # local NAT64, /96
    (0, 0),  # IPv4-compatible
    (0xFFFF << 48, 0),  # IPv4-translated
    (0x2002 << 112, 80),  # 6to4
    (0x20010000 << 96, 64),  # Teredo, the server
)
_TEREDO = 0x20010000 << 96
_TEREDO_SERVER = 0x08080808 << 64  # some server or other, so that only the client is judged
_ISATAP = 0x00005EFE << 32


def every_rule(document: Document) -> tuple[Rule, ...]:
    return (*document.rules, *(document.ceiling or ()))


def refused(host: Host) -> bool:
    """Whether the built-in rules refuse this host under any policy, port aside."""
    if isinstance(host, str):
        return host.rpartition(".")[2] in LOOPBACK_NAMES or f".{host}".endswith(_METADATA_ENDS)
    return not decide(_UNENFORCED, Request(_SUBJECT, host, 443), 0, Overlay()).allowed


def carried(v4: int) -> Iterator[Address]:
    """IPv6 addresses that have this IPv4 address inside."""
    for base, shift in _CARRIERS:
        yield Address(6, base | v4 << shift)
    yield Address(6, _TEREDO | _TEREDO_SERVER | v4 ^ 0xFFFFFFFF)


def hosts_of(documents: Iterable[Document], further: Iterable[Scope] = ()) -> tuple[list[str], list[Address]]:
    """Names, then addresses, that stand for every host there is; built-in refusals left out."""
    listed = list(documents)
    scopes = {scope for document in listed for rule in every_rule(document) for scope in _scopes(rule)}
    scopes.update(further)
    places = [place for document in listed for place, _ in document.control]
    names = {scope.name for scope in scopes if scope.reach not in (Reach.ANY, Reach.NET)}
    names |= {place for place in places if isinstance(place, str)}
    nets = {scope.net for scope in scopes if scope.net is not None}
    nets |= {_single(place) for place in places if isinstance(place, Address)}
    denials = {net for document in listed for net in denied_nets(document)}
    return (
        [name for name in name_places(names | SPECIAL_LABELS) if not refused(name)],
        [place for place in _addresses(nets, denials) if not refused(place)],
    )


def _scopes(rule: Rule) -> tuple[Scope, ...]:
    return (*rule.to, *rule.except_)


def denied_nets(document: Document) -> set[Cidr]:
    """Networks that a resolved or carried address must not be in: of deny rules and control plane."""
    rules = (rule for rule in document.rules if rule.kind is Kind.DENY)
    nets = {scope.net for rule in rules for scope in _scopes(rule) if scope.net is not None}
    return nets | {_single(place) for place, _ in document.control if isinstance(place, Address)}


def _single(place: Address) -> Cidr:
    return Cidr(place.family, place.value, WIDTH[place.family])


def _addresses(nets: set[Cidr], denials: set[Cidr]) -> list[Address]:
    found = set(address_places(nets))
    found |= {Address(family, start) for family in (4, 6) for start in class_starts(family)}
    inside = {edge.value for edge in edges(denials) if edge.family == 4}
    found.update(address for v4 in inside for address in carried(v4))
    # An ISATAP identifier turns up below any prefix of at most 64 bits (RFC 5214 6.1).
    prefixes = {net.value for net in nets if net.family == 6 and net.length <= 64}
    found |= {Address(6, prefix | _ISATAP | v4) for prefix in prefixes for v4 in inside}
    return sorted(found)


def address_classes(documents: Iterable[Document]) -> list[tuple[Address, bool]]:
    """Addresses that stand for every one a name may resolve to, and whether each is public.

    One address is enough to show any difference: more only add refusals, on both sides.
    """
    denials = {net for document in documents for net in denied_nets(document)}
    places = [place for place in _addresses(denials, denials) if not refused(place)]
    return [(place, classify(place) is AddressClass.PUBLIC) for place in places]
