"""Whether one grant lies inside another: exact, through unions of scopes, ports and excepts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from exeat.policy.places import Covers, Host, address_places, name_places
from exeat.policy.portsets import lowest, mask_of, ranges_of
from exeat.policy.scopes import ANY_PORT, Reach, Scope

if TYPE_CHECKING:
    from collections.abc import Iterable

    from exeat.policy.rules import Grantable


class Extent:
    """The hosts and ports of one item: what `to` covers less what `except` takes out."""

    def __init__(self, item: Grantable) -> None:
        self._to = Covers((scope, mask_of(scope.ports or item.ports)) for scope in item.to)
        self._except = Covers((scope, mask_of(scope.ports or ANY_PORT)) for scope in item.except_)

    def ports(self, host: Host) -> int:
        mask = 0
        for ports in self._to.of(host):
            mask |= ports
        if mask:
            for ports in self._except.of(host):
                mask &= ~ports
        return mask


def places_of(scopes: Iterable[Scope]) -> list[Host]:
    """Hosts that stand for every host, as far as these scopes can tell."""
    listed = list(scopes)
    names = [scope.name for scope in listed if scope.reach not in (Reach.ANY, Reach.NET)]
    nets = [scope.net for scope in listed if scope.net is not None]
    return [*name_places(names), *address_places(nets)]


def meet(one: Grantable, a: Scope, two: Grantable, b: Scope) -> Scope | None:
    """What scope `a` of one and `b` of two have in common: scopes nest or are apart, never overlap in
    part. It carries its own ports."""
    place = b if a.covers(b) else a if b.covers(a) else None
    ports = mask_of(a.ports or one.ports) & mask_of(b.ports or two.ports)
    return None if place is None or not ports else replace(place, ports=ranges_of(ports))


def excess(outer: Iterable[Grantable], inner: Grantable) -> tuple[Host, int] | None:
    """A host and port of `inner` that no item of `outer` reaches; None when all of it lies inside."""
    allowed, wanted = list(outer), Extent(inner)
    extents = [Extent(item) for item in allowed]
    scopes = [scope for item in (*allowed, inner) for scope in (*item.to, *item.except_)]
    for host in places_of(scopes):
        mask = wanted.ports(host)
        for extent in extents if mask else ():
            mask &= ~extent.ports(host)
        if mask:
            return host, lowest(mask)
    return None
