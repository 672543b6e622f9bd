"""The one nftables table of the host, `inet exeat`, as text for `nft -f -` (pure).

It guards what cannot live in a jail of its own: processes of the host (by cgroup and uid) and
containers that somebody else made (by their interface). Both are *members*: a member reaches the
gateway's doors, its TCP is redirected to the transparent door, its lookups to the guard, and
everything else is rejected. A *pinhole* lets one member speak to a few addresses directly, until
a time and for so many bytes.

Every value in the text is a number, an address, or a word that its type has checked, so no value
can end a statement and begin another. nft(8); priorities and hooks as there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from exeat.policy.addresses import WIDTH, Cidr, format_address
from exeat.policy.model import Address
from exeat.sandbox.names import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

TABLE: Final = "inet exeat"
# Marks of connections that go through a pinhole: "EX" and the pinhole's number.
MARK: Final = 0x45580000
MAX_PINHOLES: Final = 256
MAX_TARGETS: Final = 64  # of one pinhole
MAX_BYTES: Final = 1 << 53
MAX_SECONDS: Final = 366 * 86_400
COUNTERS: Final = ("dns", "bypass", "quic", "rejected", "spoofed")

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}(/[A-Za-z0-9][A-Za-z0-9._-]{0,62})?", re.ASCII)
_INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}", re.ASCII)  # IFNAMSIZ is 16 with its NUL
_CGROUP = re.compile(
    r"[A-Za-z0-9_][A-Za-z0-9_.@:-]{0,127}(/[A-Za-z0-9_][A-Za-z0-9_.@:-]{0,127}){0,7}", re.ASCII
)
_REJECT: Final = "reject with icmpx type admin-prohibited"
_ENCRYPTED_DNS: Final = "{ 784, 853, 8853 }"  # DNS over TLS and QUIC (RFC 7858, 9250; drafts)
# Before anybody else's redirect (dstnat is -100): of two, the first one counts.
_CHAINS: Final = (
    ("pre", "filter hook prerouting priority -310"),
    ("nat_pre", "nat hook prerouting priority -110"),
    ("nat_out", "nat hook output priority -110"),
    ("nat_post", "nat hook postrouting priority 90"),
    ("input", "filter hook input priority 0"),
    ("output", "filter hook output priority 0"),
    ("forward", "filter hook forward priority 0"),
)
_FAMILIES: Final = ((4, "ip", "ipv4_addr"), (6, "ip6", "ipv6_addr"))


def _refuse(message: str) -> SpecError:
    return SpecError("argument", message)


def _number(value: object, low: int, high: int, what: str) -> None:
    if type(value) is not int or not low <= value <= high:
        raise _refuse(f"{what} is a whole number from {low} to {high}")


def _word(pattern: re.Pattern[str], value: object, what: str) -> None:
    if type(value) is not str or not pattern.fullmatch(value):
        raise _refuse(f"{what} `{str(value)[:80]!a}` cannot be used in a rule")


class Target(NamedTuple):
    """One place: address, `tcp` or `udp`, port."""

    address: Address
    proto: str
    port: int


def check_target(target: Target) -> Target:
    """The target, if all of it is what its type says. Raises SpecError."""
    address, proto, port = target
    if type(address) is not Address or address.family not in (4, 6):
        raise _refuse("a target's address is an IPv4 or IPv6 address")
    _number(address.value, 0, (1 << WIDTH[address.family]) - 1, "an address")
    if proto not in ("tcp", "udp"):
        raise _refuse("a target's protocol is tcp or udp")
    _number(port, 1, 65535, "a port")
    return target


@dataclass(frozen=True, slots=True)
class Cgroup:
    """A cgroup below the v2 root, `a.slice/b`; everything below it belongs to it."""

    path: str

    def __post_init__(self) -> None:
        _word(_CGROUP, self.path, "the cgroup")

    @property
    def level(self) -> int:
        """How many steps below the root of the v2 tree."""
        return self.path.count("/") + 1


@dataclass(frozen=True, slots=True)
class Host:
    """Processes of the host: in `cgroup`, or with a uid in one of `uids` (both ends count)."""

    label: str  # project/agent, for people
    cgroup: Cgroup | None = None
    uids: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        _word(_LABEL, self.label, "the label")
        for low, high in self.uids:
            _number(low, 1, 2**32 - 2, "a uid")
            _number(high, low, 2**32 - 2, "the last uid of a range")
        if self.cgroup is None and not self.uids:
            raise _refuse("a host entry names a cgroup or uids")


@dataclass(frozen=True, slots=True)
class Veth:
    """Whatever sends through `interface`; only from `sources`, else it is dropped."""

    label: str
    interface: str
    sources: tuple[Cidr, ...]

    def __post_init__(self) -> None:
        _word(_LABEL, self.label, "the label")
        _word(_INTERFACE, self.interface, "the interface")
        if not self.sources:
            raise _refuse("an interface needs the addresses of what is behind it")
        for source in self.sources:
            if type(source) is not Cidr or source.family not in WIDTH:
                raise _refuse("a source is a network")
            _number(source.length, 0, WIDTH[source.family], "a prefix length")
            _number(source.value, 0, (1 << WIDTH[source.family]) - 1, "a network")


@dataclass(frozen=True, slots=True)
class Pinhole:
    """The member of this label may speak to `targets` for `quota` bytes (IP packets, both ways together).

    `number` tells it from all others, `end` is a time of CLOCK_BOOTTIME in seconds.
    """

    number: int
    member: str
    targets: tuple[Target, ...]
    quota: int
    end: int

    def __post_init__(self) -> None:
        _number(self.number, 1, 0xFFFF, "a pinhole's number")
        _word(_LABEL, self.member, "the label")
        _number(self.quota, 1, MAX_BYTES, "a quota")
        _number(self.end, 0, 2**53, "an end")
        if not 0 < len(self.targets) <= MAX_TARGETS:
            raise _refuse(f"a pinhole has 1 to {MAX_TARGETS} targets")
        for target in self.targets:
            if check_target(target).port == 53:
                raise _refuse("lookups go to the guard, never through a pinhole")

    @property
    def mark(self) -> int:
        return MARK | self.number


@dataclass(frozen=True, slots=True)
class Table:
    """The whole desired state. A member's number is its place in `members`.

    `doors` are the gateway's listeners (0.0.0.0 and :: mean any local address); `transparent` and
    `dns` are the ports where redirected TCP and lookups arrive, 0 for none. `never` is what no
    pinhole may reach. `prefix` stands before cgroup paths where the v2 tree is not the root.
    """

    members: tuple[Host | Veth, ...] = ()
    doors: tuple[Target, ...] = ()
    transparent: int = 0
    dns: int = 0
    never: tuple[Target, ...] = ()
    pinholes: tuple[Pinhole, ...] = ()
    prefix: str = ""

    def __post_init__(self) -> None:
        if self.prefix not in ("", "unified/"):
            raise _refuse("no such tree of cgroups")
        _number(self.transparent, 0, 65535, "the transparent port")
        _number(self.dns, 0, 65535, "the port for lookups")
        for target in (*self.doors, *self.never):
            check_target(target)
        numbers = {pinhole.number for pinhole in self.pinholes}
        if len(numbers) != len(self.pinholes) or len(numbers) > MAX_PINHOLES:
            raise _refuse(f"pinholes have different numbers, and there are at most {MAX_PINHOLES}")
        labels = {member.label for member in self.members}
        if len(labels) != len(self.members):
            raise _refuse("members have different labels")
        if any(pinhole.member not in labels for pinhole in self.pinholes):
            raise _refuse("a pinhole is for no member")

    def pinholes_of(self, number: int) -> list[Pinhole]:
        """Those of the member with this number."""
        return [pinhole for pinhole in self.pinholes if pinhole.member == self.members[number].label]


def replacement(table: Table, now: float) -> str:
    """One transaction: whatever the table holds goes, counters included, and `table` is there."""
    return "\n".join([f"add table {TABLE}", f"delete table {TABLE}", *_body(table, now), ""])


def change(old: Table, new: Table, now: float) -> str:
    """One transaction from `old`, which must be what is loaded, to `new`. What stays keeps counting."""
    kept = {pinhole.number for pinhole in new.pinholes}
    gone = [pinhole for pinhole in old.pinholes if pinhole.number not in kept]
    lines = [f"flush table {TABLE}", *(line for pinhole in gone for line in _removal(pinhole))]
    lines += [f"flush set {TABLE} p{pinhole.number}_{family}" for pinhole in old.pinholes for family in (4, 6)
              if pinhole.number in kept]  # fmt: skip
    return "\n".join([*lines, *_body(new, now), ""])


def _removal(pinhole: Pinhole) -> Iterator[str]:
    name = f"p{pinhole.number}"
    for end in ("_out", "_in"):
        yield f"delete chain {TABLE} {name}{end}"
        yield f"delete counter {TABLE} {name}{end}"
    yield f"delete quota {TABLE} {name}"
    for family in (4, 6):
        yield f"delete set {TABLE} {name}_{family}"


def _body(table: Table, now: float) -> Iterator[str]:
    yield f"add table {TABLE}"
    for name, hook in _CHAINS:
        yield f"add chain {TABLE} {name} {{ type {hook}; policy accept; }}"
    for pinhole in table.pinholes:
        yield from _pinhole(pinhole, now)
    for number, member in enumerate(table.members):
        yield from _objects(number, member)
    for number, member in enumerate(table.members):
        if isinstance(member, Host):
            yield from _host(table, number, member)
        else:
            yield from _veth(table, number, member)
    for number in range(len(table.members)):
        yield from _nat(table, number)
        yield from _filter(table, number)
    yield from _replies(table)


def _rule(chain: str, text: str) -> str:
    return f"add rule {TABLE} {chain} {text}"


def _objects(number: int, member: Host | Veth) -> Iterator[str]:
    yield from (f"add chain {TABLE} m{number}_{chain}" for chain in ("nat", "filter"))
    for name in COUNTERS[: 4 if isinstance(member, Host) else 5]:
        yield f"add counter {TABLE} m{number}_{name}"


def _host(table: Table, number: int, host: Host) -> Iterator[str]:
    matches = [f"meta skuid {low}-{high}" if low != high else f"meta skuid {low}" for low, high in host.uids]
    if host.cgroup is not None:
        path = f"{table.prefix}{host.cgroup.path}"
        matches.insert(0, f'socket cgroupv2 level {host.cgroup.level} "{path}"')
    for match in matches:
        yield _rule("nat_out", f'{match} jump m{number}_nat comment "{host.label}"')
        yield _rule("output", f'{match} jump m{number}_filter comment "{host.label}"')


def _veth(table: Table, number: int, veth: Veth) -> Iterator[str]:
    chain, way = f"m{number}_source", f'iifname "{veth.interface}"'
    yield f"add chain {TABLE} {chain}"
    yield _rule("pre", f'{way} jump {chain} comment "{veth.label}"')
    for family, keyword, _ in _FAMILIES:
        sources = [f"{source}" for source in veth.sources if source.family == family]
        if sources:
            yield _rule(chain, f"{keyword} saddr {{ {', '.join(sources)} }} return")
    # Neighbour discovery (RFC 4861): from the link itself; hop limit 255 says that it was not forwarded.
    yield _rule(chain, "ip6 saddr { ::, fe80::/10 } ip6 hoplimit 255 icmpv6 type "
                "{ nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit } return")  # fmt: skip
    yield _rule(chain, "ip6 saddr { ::, fe80::/10 } drop")  # multicast memberships: of no use, no offence
    yield _rule(chain, f"counter name m{number}_spoofed drop")
    yield _rule("nat_pre", f'{way} jump m{number}_nat comment "{veth.label}"')
    yield _rule("input", f"{way} icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept")
    yield _rule("input", f'{way} jump m{number}_filter comment "{veth.label}"')
    yield _rule("forward", f'{way} jump m{number}_filter comment "{veth.label}"')


def _doors(table: Table) -> Iterator[str]:
    for family, keyword, _ in _FAMILIES:
        mine = [door for door in table.doors if door.address.family == family]
        exact = [_element(door) for door in mine if door.address.value]
        if exact:
            yield f"{keyword} daddr . meta l4proto . th dport {{ {', '.join(exact)} }}"
        for door in mine:
            if not door.address.value:  # nothing else can listen there: the port is taken on all of them
                yield f"meta nfproto ipv{family} fib daddr type local {door.proto} dport {door.port}"


def _element(target: Target) -> str:
    return f"{format_address(target.address)} . {target.proto} . {target.port}"


def _nat(table: Table, number: int) -> Iterator[str]:
    """Only the first packet of a connection comes here."""
    chain = f"m{number}_nat"
    for match in _doors(table):
        yield _rule(chain, f"{match} return")
    yield _rule(chain, f"meta l4proto {{ tcp, udp }} th dport 53 counter name m{number}_dns")
    if table.dns:
        yield _rule(chain, f"meta l4proto {{ tcp, udp }} th dport 53 redirect to :{table.dns}")
    for pinhole in table.pinholes_of(number):
        for family, keyword, _ in _FAMILIES:
            yield _rule(
                chain, f"{keyword} daddr . meta l4proto . th dport @p{pinhole.number}_{family} return"
            )
    yield _rule(chain, f"tcp dport {_ENCRYPTED_DNS} counter name m{number}_bypass")
    if table.transparent:
        yield _rule(chain, f"meta l4proto tcp redirect to :{table.transparent}")


def _filter(table: Table, number: int) -> Iterator[str]:
    """Every packet of a member, but those that the kernel sends for no socket (a reset)."""
    chain = f"m{number}_filter"
    if isinstance(table.members[number], Host):
        # A server of its own answers clients on this machine, never those outside.
        yield _rule(chain, 'oifname "lo" ct direction reply ct state established,related accept')
    else:
        # Asked by the host itself; what is forwarded to a member gets no further than `forward`.
        yield _rule(chain, "ct direction reply ct state established,related fib daddr type local accept")
    for match in _doors(table):
        yield _rule(chain, f"{match} accept")
    redirected = [f"tcp dport {table.transparent}"] if table.transparent else []
    redirected += [f"{proto} dport {table.dns}" for proto in ("tcp", "udp") if table.dns]
    for match in redirected:
        yield _rule(chain, f"ct status dnat fib daddr type local {match} accept")
    if pinholes := table.pinholes_of(number):
        yield from _through(table, chain, pinholes)
    yield _rule(chain, f"udp dport 443 counter name m{number}_quic {_REJECT}")
    yield _rule(chain, f"udp dport {_ENCRYPTED_DNS} counter name m{number}_bypass {_REJECT}")
    yield _rule(chain, f"counter name m{number}_rejected {_REJECT}")


def _through(table: Table, chain: str, pinholes: Iterable[Pinhole]) -> Iterator[str]:
    yield _rule(chain, f"fib daddr type {{ local, broadcast, multicast, anycast }} {_REJECT}")
    for family, keyword, _ in _FAMILIES:
        never = [_element(target) for target in table.never if target.address.family == family]
        if never:
            yield _rule(
                chain, f"{keyword} daddr . meta l4proto . th dport {{ {', '.join(never)} }} {_REJECT}"
            )
    for pinhole in pinholes:
        for family, keyword, _ in _FAMILIES:
            name = f"p{pinhole.number}"
            yield _rule(chain, f"{keyword} daddr . meta l4proto . th dport @{name}_{family} jump {name}_out")


def _pinhole(pinhole: Pinhole, now: float) -> Iterator[str]:
    """Its sets, counters and quota, and what a packet in each direction must pass.

    A set's timeout ends the way out for connections that exist, too: each packet is looked up.
    """
    name, left = f"p{pinhole.number}", min(int(pinhole.end - now), MAX_SECONDS)
    yield f"add quota {TABLE} {name} {{ over {pinhole.quota} bytes; }}"
    for family, _, kind in _FAMILIES:
        yield f"add set {TABLE} {name}_{family} {{ type {kind} . inet_proto . inet_service; flags timeout; }}"
        elements = [f"{_element(target)} timeout {left}s" for target in pinhole.targets
                    if target.address.family == family]  # fmt: skip
        if elements and left > 0:
            yield f"add element {TABLE} {name}_{family} {{ {', '.join(elements)} }}"
    for way in ("out", "in"):
        yield f"add counter {TABLE} {name}_{way}"
        yield f"add chain {TABLE} {name}_{way}"
    yield _rule(f"{name}_out", f"quota name {name} {_REJECT}")
    yield _rule(f"{name}_out", f"ct mark set {pinhole.mark:#x} counter name {name}_out accept")
    yield _rule(f"{name}_in", f"quota name {name} drop")
    for family, keyword, _ in _FAMILIES:
        match = f"{keyword} saddr . meta l4proto . th sport @{name}_{family}"
        yield _rule(f"{name}_in", f"{match} counter name {name}_in accept")
    yield _rule(f"{name}_in", "ct state related accept")  # an ICMP error about it: packet too big
    yield _rule(f"{name}_in", "drop")


def _replies(table: Table) -> Iterator[str]:
    for number, member in enumerate(table.members):
        for pinhole in table.pinholes_of(number):
            match = f"ct direction reply ct mark {pinhole.mark:#x} jump p{pinhole.number}_in"
            if isinstance(member, Veth):
                yield _rule("forward", f'oifname "{member.interface}" {match}')
                yield _rule("nat_post", f"ct mark {pinhole.mark:#x} masquerade")
            else:
                yield _rule("input", match)
        if isinstance(member, Veth):
            yield _rule("forward", f'oifname "{member.interface}" drop')
