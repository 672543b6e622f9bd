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
from exeat.policy.usage import Overlay

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from exeat.policy.scopes import Scope

# What this refuses, every policy does.
_UNENFORCED = compile_policy(Document(project="p", posture=Posture.OFF))
_SUBJECT = Subject("p", "a")
_METADATA_ENDS = tuple(f".{name}" for name in METADATA_NAMES)
# IPv6 forms that carry an IPv4 address in order: the network, and how far the address is shifted.
_CARRIERS = (
    (Cidr(6, 0x0064FF9B << 96, 96), 0),  # NAT64
    (Cidr(6, 0x0064FF9B0001 << 80, 48), 0),  # local NAT64; the /96 form stands for the others
    (Cidr(6, 0, 96), 0),  # IPv4-compatible
    (Cidr(6, 0xFFFF << 48, 96), 0),  # IPv4-translated
    (Cidr(6, 0x2002 << 112, 16), 80),  # 6to4
    (Cidr(6, 0x20010000 << 96, 32), 64),  # Teredo, the server
)
_TEREDO = Cidr(6, 0x20010000 << 96, 32)
_TEREDO_SERVER = 0x08080808 << 64  # some server or other, so that only the client is judged
_ISATAP = 0x00005EFE << 32


def every_rule(document: Document) -> tuple[Rule, ...]:
    return (*document.rules, *(document.ceiling or ()))


def refused(host: Host) -> bool:
    """Whether the built-in rules refuse this host under any policy, port aside."""
    if isinstance(host, str):
        return host.rpartition(".")[2] in LOOPBACK_NAMES or f".{host}".endswith(_METADATA_ENDS)
    return not decide(_UNENFORCED, Request(_SUBJECT, host, 443), 0, Overlay()).allowed


def names_of(documents: Iterable[Document], further: Iterable[Scope] = ()) -> list[str]:
    """Names that stand for every name there is; built-in refusals left out."""
    names = set(SPECIAL_LABELS)
    for document in documents:
        names |= {place for place, _ in document.control if isinstance(place, str)}
        for rule in every_rule(document):
            names.update(scope.name for scope in _scopes(rule) if scope.name)
    names.update(scope.name for scope in further if scope.name)
    return [name for name in name_places(names) if not refused(name)]


def literals_of(documents: Iterable[Document], further: Iterable[Scope] = ()) -> list[Address]:
    """Addresses that stand for every address there is, built-in refusals among them."""
    listed = list(documents)
    nets = {scope.net for document in listed for rule in every_rule(document) for scope in _scopes(rule)}
    nets.update(scope.net for scope in further)
    places = {_single(p) for document in listed for p, _ in document.control if isinstance(p, Address)}
    return _addresses({net for net in nets if net is not None} | places, _denied_nets(listed))


def resolved_of(documents: Iterable[Document]) -> list[Address]:
    """Addresses that stand for every one a name may resolve to, built-in refusals among them.

    One address is enough to show any difference: more only add refusals, on both sides.
    """
    denials = _denied_nets(documents)
    return _addresses(denials, denials)


def is_public(address: Address) -> bool:
    return classify(address) is AddressClass.PUBLIC


def _scopes(rule: Rule) -> tuple[Scope, ...]:
    return (*rule.to, *rule.except_)


def _denied_nets(documents: Iterable[Document]) -> set[Cidr]:
    """Networks that a resolved or carried address must not be in: of deny rules and control plane."""
    nets: set[Cidr] = set()
    for document in documents:
        for rule in document.of_kind(Kind.DENY):
            nets.update(scope.net for scope in _scopes(rule) if scope.net is not None)
        nets.update(_single(place) for place, _ in document.control if isinstance(place, Address))
    return nets


def _single(place: Address) -> Cidr:
    return Cidr(place.family, place.value, WIDTH[place.family])


def _addresses(nets: set[Cidr], denials: set[Cidr]) -> list[Address]:
    """The edges of `nets` and of the address classes, and where some of `nets` tell apart IPv6 that
    carries IPv4, the edges of `denials` as carried there: elsewhere the plain address shows as much."""
    found = set(address_places(nets))
    found |= {Address(family, start) for family in (4, 6) for start in class_starts(family)}
    v6 = [net for net in nets if net.family == 6]
    inside = {edge.value for edge in edges(denials) if edge.family == 4}
    for carrier, shift in _CARRIERS:
        if any(carrier.covers(net) or net.covers(carrier) for net in v6):
            found |= {Address(6, carrier.value | v4 << shift) for v4 in inside}
            if carrier == _TEREDO:
                found |= {Address(6, carrier.value | _TEREDO_SERVER | v4 ^ 0xFFFFFFFF) for v4 in inside}
    return sorted(found)


def isatap_places(prefixes: Iterable[Cidr], denials: Iterable[Cidr]) -> Iterator[Address]:
    """An ISATAP identifier carries IPv4 below any prefix of at most 64 bits (RFC 5214 6.1)."""
    inside = {edge.value for edge in edges(denials) if edge.family == 4}
    for net in prefixes:
        if net.family == 6 and net.length <= 64:
            yield from (Address(6, net.value | _ISATAP | v4) for v4 in inside)
