"""Scopes: what may be reached. `host`, `*.host` (below, not the apex), `.host` (apex and below),
`*` (any name), an address, a CIDR; each optionally with `:ports`. Nothing else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import idna

from exeat.policy.addresses import WIDTH, Cidr, format_address, parse_cidr, parse_v6
from exeat.policy.errors import MalformedError, ScopeError
from exeat.policy.model import Address
from exeat.policy.names import parse_host

if TYPE_CHECKING:
    from collections.abc import Iterable

Ports = tuple[tuple[int, int], ...]
ANY_PORT: Ports = ((1, 65535),)
HTTPS: Ports = ((443, 443),)

_PORTS = re.compile(r"([1-9][0-9]{0,4})(?:-([1-9][0-9]{0,4}))?")
_TAIL = re.compile(r"(.*?)(?::([^:\[\]]*))?", re.DOTALL)
_V6_NET = re.compile(r"\[?([0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*/[0-9]+)\]?(?::([^:\[\]]*))?")


class Reach(StrEnum):
    HOST = "host"
    TREE = "tree"  # .host
    BELOW = "below"  # *.host
    ANY = "any"  # *
    NET = "net"


@dataclass(frozen=True, slots=True)
class Scope:
    """One scope. `name` is set for HOST, TREE and BELOW, `net` for NET; `ports` None: the rule's."""

    reach: Reach
    name: str = ""
    net: Cidr | None = None
    ports: Ports | None = None

    @property
    def wide(self) -> bool:
        return self.reach is not Reach.HOST and not self.single_address

    @property
    def single_address(self) -> bool:
        return self.net is not None and self.net.length == WIDTH[self.net.family]

    @property
    def specificity(self) -> tuple[int, int]:
        """Sorts scopes that match the same target: exact > longer suffix or prefix > any."""
        if self.reach is Reach.HOST or self.single_address:
            return (2, 0)
        if self.net is not None:
            return (1, self.net.length)
        return (0, 0) if self.reach is Reach.ANY else (1, self.name.count(".") + 1)

    def reaches(self, target: str | Address) -> bool:
        """Whether the target, ports aside, is inside. Names and addresses never mix."""
        if isinstance(target, Address):
            return self.net is not None and self.net.holds(target)
        match self.reach:
            case Reach.HOST:
                return target == self.name
            case Reach.TREE:
                return target == self.name or target.endswith("." + self.name)
            case Reach.BELOW:
                return target.endswith("." + self.name)
            case Reach.ANY:
                return True
            case Reach.NET:
                return False

    def covers(self, other: Scope) -> bool:
        """Whether every target of `other` is inside, ports aside."""
        if self.net is not None or other.net is not None:
            return self.net is not None and other.net is not None and self.net.covers(other.net)
        if self.reach is Reach.ANY or other.reach is Reach.ANY:
            return self.reach is Reach.ANY
        if other.reach is Reach.HOST:
            return self.reaches(other.name)
        if other.name == self.name:
            return self.reach is Reach.TREE or self.reach is other.reach is Reach.BELOW
        return self.reach is not Reach.HOST and other.name.endswith("." + self.name)

    def __str__(self) -> str:
        text = {Reach.TREE: f".{self.name}", Reach.BELOW: f"*.{self.name}", Reach.ANY: "*"}.get(
            self.reach, self.name
        )
        if self.net is not None:
            text = self._net_text()
        return text if self.ports is None else f"{text}:{_ports_text(self.ports)[0]}"

    def _net_text(self) -> str:
        net = self.net
        assert net is not None  # noqa: S101 - for the type checker: reach NET has a net
        if not self.single_address:
            return f"[{net}]" if net.family == 6 else str(net)
        text = format_address(Address(net.family, net.value))
        return f"[{text}]" if net.family == 6 else text


def parse_ports(texts: Iterable[str]) -> Ports:
    """`443`, `30000-30009` or `any`, each; the result is sorted and merged. Raises `scope.port`."""
    found: list[tuple[int, int]] = []
    for text in texts:
        if text == "any":
            found.append((1, 65535))
            continue
        match = _PORTS.fullmatch(text)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if low > high or high > 65535:
            raise ScopeError("scope.port", f"`{text}` is not a port 1-65535, a range LOW-HIGH, or any")
        found.append((low, high))
    return merge_ports(found)


def merge_ports(ranges: Iterable[tuple[int, int]]) -> Ports:
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def _ports_text(ports: Ports) -> list[str]:
    if ports == ANY_PORT:
        return ["any"]
    return [str(low) if low == high else f"{low}-{high}" for low, high in ports]


ports_text = _ports_text


def ports_cover(outer: Ports, inner: Ports) -> bool:
    return all(any(low >= a and high <= b for a, b in outer) for low, high in inner)


def port_in(ports: Ports, port: int) -> bool:
    return any(low <= port <= high for low, high in ports)


def parse_scope(text: str) -> Scope:
    """One scope as a policy file writes it. Raises ScopeError `scope.*`."""
    match = _V6_NET.fullmatch(text)
    if match:
        return Scope(Reach.NET, net=_cidr(match[1]), ports=_one_port(match[2]))
    base, ports_part = _split_ports(text)
    ports = _one_port(ports_part)
    if "/" in base:
        return Scope(Reach.NET, net=_cidr(base), ports=ports)
    if base == "*":
        return Scope(Reach.ANY, ports=ports)
    for prefix, reach in (("*.", Reach.BELOW), (".", Reach.TREE)):
        if base.startswith(prefix):
            return Scope(reach, name=_name(base.removeprefix(prefix), text), ports=ports)
    host = _host(base, text)
    if isinstance(host, Address):
        return Scope(Reach.NET, net=Cidr(host.family, host.value, WIDTH[host.family]), ports=ports)
    return Scope(Reach.HOST, name=host, ports=ports)


def _split_ports(text: str) -> tuple[str, str | None]:
    if parse_v6(text) is not None:
        raise ScopeError("scope.syntax", f"write the IPv6 address `{text}` in brackets: `[{text}]`")
    if "://" in text or "@" in text:
        raise ScopeError("scope.syntax", f"`{text}` is not a host: no scheme, no user, no path")
    match = _TAIL.fullmatch(text)
    return (match[1], match[2]) if match else (text, None)


def _one_port(text: str | None) -> Ports | None:
    return None if text is None else parse_ports([text])


def _cidr(text: str) -> Cidr:
    net = parse_cidr(text)
    if net is not None:
        return net
    if not re.fullmatch(r"[0-9A-Fa-f:.]+/[0-9]+", text):
        raise ScopeError("scope.syntax", f"`{text}` is not a host: no scheme, no user, no path")
    raise ScopeError(
        "scope.cidr", f"`{text}` is not a network: bad prefix length, host bits set, or over v4-mapped IPv6"
    )


def _name(base: str, text: str) -> str:
    host = _host(base, text)
    if isinstance(host, Address):
        raise ScopeError("scope.syntax", f"`{text}` puts a wildcard on an address: use a CIDR")
    return host


def _host(base: str, text: str) -> str | Address:
    if "*" in base:
        raise ScopeError(
            "scope.wildcard", f"`{text}`: a wildcard is only the whole first label, as in `*.host`"
        )
    if not base.isascii() or "xn--" in base.lower():
        base = _to_a_labels(base, text)
    try:
        return parse_host(base)
    except MalformedError as error:
        raise ScopeError("scope.syntax", f"`{text}` is not a scope ({error.code})") from None


def _to_a_labels(base: str, text: str) -> str:
    """IDNA2008, UTS-46 non-transitional, and back: a label that does not survive is refused.

    Full-width digits map to ASCII ones, so the result must not be an address either.
    """
    try:
        encoded = idna.encode(base, uts46=True, transitional=False, std3_rules=False).decode("ascii")
        if idna.encode(idna.decode(encoded), uts46=False).decode("ascii") != encoded:
            raise ScopeError("scope.idna", f"`{text}` does not survive IDNA conversion")
        if isinstance(parse_host(encoded), Address):
            raise ScopeError("scope.idna", f"`{text}` becomes an address: write the address")
    except (idna.IDNAError, UnicodeError, MalformedError) as error:
        raise ScopeError("scope.idna", f"`{text}` is not a valid international name: {error}") from None
    return encoded
