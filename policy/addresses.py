"""IP addresses as integers: strict text form, our own table of what is public.

`ipaddress.is_global` calls NAT64, 6to4, IPv4-compatible, site-local and 6to4-relay addresses
global, and `is_private` misses shared space; the table here is the IANA special-purpose
registries (RFC 6890 and its updates), and whatever carries an IPv4 address inside is its own class.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from enum import StrEnum
from typing import NamedTuple

from exeat.policy.errors import MalformedError
from exeat.policy.model import Address

__all__ = [
    "Address",
    "AddressClass",
    "Cidr",
    "MalformedError",
    "class_starts",
    "classify",
    "embedded_v4",
    "format_address",
    "from_packed",
    "is_metadata",
    "parse_address",
    "parse_cidr",
    "parse_v4",
    "parse_v6",
]

WIDTH = {4: 32, 6: 128}
_OCTET = r"(0|[1-9][0-9]?|1[0-9][0-9]|2[0-4][0-9]|25[0-5])"
_QUAD = re.compile(rf"{_OCTET}\.{_OCTET}\.{_OCTET}\.{_OCTET}")
_GROUP = re.compile(r"[0-9A-Fa-f]{1,4}")
_LENGTH = re.compile(r"0|[1-9][0-9]{0,2}")
_MAPPED = 0xFFFF  # the upper 96 bits of ::ffff:0:0/96


class AddressClass(StrEnum):
    """What kind of place an address is. Only `PUBLIC` passes without `private: true`."""

    PUBLIC = "public"
    UNSPECIFIED = "unspecified"
    LOOPBACK = "loopback"
    PRIVATE = "private"
    SHARED = "shared"
    LINK_LOCAL = "linklocal"
    MULTICAST = "multicast"
    DOCUMENTATION = "doc"
    BENCHMARK = "bench"
    RESERVED = "reserved"
    TRANSLATED = "translated"


class Cidr(NamedTuple):
    """A network: `value` is its first address, `length` its prefix length."""

    family: int
    value: int
    length: int

    def holds(self, address: Address) -> bool:
        if address.family != self.family:
            return False
        shift = WIDTH[self.family] - self.length
        return address.value >> shift == self.value >> shift

    def covers(self, other: Cidr) -> bool:
        return other.length >= self.length and self.holds(Address(other.family, other.value))

    def __str__(self) -> str:
        return f"{format_address(Address(self.family, self.value))}/{self.length}"


def from_packed(packed: bytes) -> Address:
    """4 or 16 bytes of the wire form. v4-mapped IPv6 is the IPv4 address. Raises `malformed.ip`."""
    if len(packed) == 4:
        return Address(4, int.from_bytes(packed, "big"))
    if len(packed) != 16:
        raise MalformedError("malformed.ip")
    return collapse(Address(6, int.from_bytes(packed, "big")))


def collapse(address: Address) -> Address:
    """`::ffff:a.b.c.d` is `a.b.c.d`: a rule on one form must hit the other (RFC 4291, 2.5.5.2)."""
    if address.family == 6 and address.value >> 32 == _MAPPED:
        return Address(4, address.value & 0xFFFFFFFF)
    return address


def parse_address(text: bytes | str) -> Address:
    """Strict dotted quad or IPv6 text (RFC 4291, 2.2), no brackets, no zone.

    Raises MalformedError with `malformed.ip`, or `malformed.ip_zone` for `fe80::1%eth0`.
    """
    if isinstance(text, bytes):
        text = text.decode("latin-1")
    if "%" in text:
        raise MalformedError("malformed.ip_zone")
    value = parse_v4(text)
    if value is not None:
        return Address(4, value)
    value = parse_v6(text)
    if value is None:
        raise MalformedError("malformed.ip")
    return collapse(Address(6, value))


def parse_v4(text: str) -> int | None:
    match = _QUAD.fullmatch(text)
    if match is None:
        return None
    a, b, c, d = (int(part) for part in match.groups())
    return a << 24 | b << 16 | c << 8 | d


def parse_v6(text: str) -> int | None:
    head, gap, tail = text.partition("::")
    if "::" in tail or tail.startswith(":"):
        return None
    left, right = _groups(head, last=not gap), _groups(tail, last=True)
    if left is None or right is None:
        return None
    missing = 8 - len(left) - len(right)
    if (gap and missing < 1) or (not gap and missing != 0):
        return None
    value = 0
    for group in (*left, *[0] * missing, *right):
        value = value << 16 | group
    return value


def _groups(text: str, *, last: bool) -> list[int] | None:
    """The 16-bit groups of one side of `::`; only the last side may end in a dotted quad."""
    if not text:
        return []
    parts = text.split(":")
    quad = parse_v4(parts[-1]) if last else None
    if quad is not None:
        parts.pop()
    if not all(_GROUP.fullmatch(part) for part in parts):
        return None
    groups = [int(part, 16) for part in parts]
    return groups if quad is None else [*groups, quad >> 16, quad & 0xFFFF]


def parse_cidr(text: str) -> Cidr | None:
    """`a.b.c.d/n` or `v6/n` without host bits; None for anything else, v4-mapped space included."""
    base, slash, length_text = text.partition("/")
    if not slash or not _LENGTH.fullmatch(length_text):
        return None
    length = int(length_text)
    value = parse_v4(base)
    family = 4
    if value is None:
        value, family = parse_v6(base), 6
    if value is None or length > WIDTH[family] or value & ((1 << (WIDTH[family] - length)) - 1):
        return None
    cidr = Cidr(family, value, length)
    if family == 6 and (cidr.covers(_MAPPED_NET) or _MAPPED_NET.covers(cidr)):
        return None
    return cidr


_MAPPED_NET = Cidr(6, _MAPPED << 32, 96)


def format_address(address: Address) -> str:
    """Dotted quad, or the canonical IPv6 text of RFC 5952."""
    if address.family == 4:
        return ".".join(str(octet) for octet in address.packed())
    groups = [address.value >> shift & 0xFFFF for shift in range(112, -1, -16)]
    start, length = _longest_zero_run(groups)
    if length < 2:
        return ":".join(f"{group:x}" for group in groups)
    head = ":".join(f"{group:x}" for group in groups[:start])
    tail = ":".join(f"{group:x}" for group in groups[start + length :])
    return f"{head}::{tail}"


def _longest_zero_run(groups: list[int]) -> tuple[int, int]:
    best = (0, 0)
    start = 0
    for index, group in enumerate(groups):
        if group:
            start = index + 1
        elif index + 1 - start > best[1]:
            best = (start, index + 1 - start)
    return best


def _net(text: str) -> Cidr:
    base, _, length = text.partition("/")
    value = parse_v4(base)
    if value is not None:
        return Cidr(4, value, int(length))
    value = parse_v6(base)
    if value is None:
        raise ValueError(text)
    return Cidr(6, value, int(length))


# IANA IPv4 and IPv6 special-purpose address registries. Longer prefixes win; what no row names
# is public in IPv4, and reserved in IPv6 outside 2000::/3.
_C = AddressClass
_TABLE: tuple[tuple[str, AddressClass], ...] = (
    ("0.0.0.0/0", _C.PUBLIC),
    ("0.0.0.0/8", _C.UNSPECIFIED),
    ("10.0.0.0/8", _C.PRIVATE),
    ("100.64.0.0/10", _C.SHARED),
    ("127.0.0.0/8", _C.LOOPBACK),
    ("169.254.0.0/16", _C.LINK_LOCAL),
    ("172.16.0.0/12", _C.PRIVATE),
    ("192.0.0.0/24", _C.RESERVED),
    ("192.0.0.9/32", _C.PUBLIC),  # PCP anycast, RFC 7723
    ("192.0.0.10/32", _C.PUBLIC),  # TURN anycast, RFC 8155
    ("192.0.2.0/24", _C.DOCUMENTATION),
    ("192.88.99.0/24", _C.RESERVED),
    ("192.168.0.0/16", _C.PRIVATE),
    ("198.18.0.0/15", _C.BENCHMARK),
    ("198.51.100.0/24", _C.DOCUMENTATION),
    ("203.0.113.0/24", _C.DOCUMENTATION),
    ("224.0.0.0/4", _C.MULTICAST),
    ("240.0.0.0/4", _C.RESERVED),
    ("::/0", _C.RESERVED),
    ("::/96", _C.TRANSLATED),  # IPv4-compatible, RFC 4291 2.5.5.1
    ("::/128", _C.UNSPECIFIED),
    ("::1/128", _C.LOOPBACK),
    ("::ffff:0:0:0/96", _C.TRANSLATED),  # IPv4-translated, RFC 2765
    ("64:ff9b::/96", _C.TRANSLATED),  # NAT64, RFC 6052
    ("64:ff9b:1::/48", _C.TRANSLATED),  # local NAT64, RFC 8215
    ("2000::/3", _C.PUBLIC),
    ("2001::/23", _C.RESERVED),
    ("2001::/32", _C.TRANSLATED),  # Teredo, RFC 4380
    ("2001:1::1/128", _C.PUBLIC),  # PCP anycast, RFC 7723
    ("2001:1::2/128", _C.PUBLIC),  # TURN anycast, RFC 8155
    ("2001:1::3/128", _C.PUBLIC),  # SRP anycast, RFC 9665
    ("2001:2::/48", _C.BENCHMARK),
    ("2001:3::/32", _C.PUBLIC),  # AMT, RFC 7450
    ("2001:4:112::/48", _C.PUBLIC),  # AS112-v6, RFC 7535
    ("2001:20::/28", _C.PUBLIC),  # ORCHIDv2, RFC 7343
    ("2001:30::/28", _C.PUBLIC),  # DRIP, RFC 9374
    ("2001:db8::/32", _C.DOCUMENTATION),
    ("2002::/16", _C.TRANSLATED),  # 6to4, RFC 3056
    ("3fff::/20", _C.DOCUMENTATION),
    ("fc00::/7", _C.PRIVATE),
    ("fe80::/10", _C.LINK_LOCAL),
    ("fec0::/10", _C.PRIVATE),  # site-local, deprecated by RFC 3879
    ("ff00::/8", _C.MULTICAST),
)


def _intervals(family: int) -> tuple[list[int], list[AddressClass]]:
    """Flatten the table: the class of x is `classes[bisect_right(starts, x) - 1]`."""
    rows = [(cidr, name) for text, name in _TABLE if (cidr := _net(text)).family == family]
    edges = {0}
    for cidr, _ in rows:
        edges |= {cidr.value, cidr.value + (1 << (WIDTH[family] - cidr.length))}
    starts = sorted(edge for edge in edges if edge < 1 << WIDTH[family])
    classes = []
    for start in starts:
        covering = [(cidr.length, name) for cidr, name in rows if cidr.holds(Address(family, start))]
        classes.append(max(covering)[1])
    return starts, classes


_INTERVALS = {4: _intervals(4), 6: _intervals(6)}


def class_starts(family: int) -> tuple[int, ...]:
    """Where the class of addresses may change: the first address of every interval of the table."""
    return tuple(_INTERVALS[family][0])


_ISATAP = (0x00005EFE, 0x02005EFE)  # upper half of the interface identifier, RFC 5214 6.1


def classify(address: Address) -> AddressClass:
    """The class of an address. An ISATAP interface identifier inside public space is translated."""
    address = collapse(address)
    starts, classes = _INTERVALS[address.family]
    found = classes[bisect_right(starts, address.value) - 1]
    if found is AddressClass.PUBLIC and address.family == 6 and is_isatap(address.value):
        return AddressClass.TRANSLATED
    return found


def is_isatap(value: int) -> bool:
    """Whether an IPv6 address has an interface identifier that carries an IPv4 address (RFC 5214)."""
    return value >> 32 & 0xFFFFFFFF in _ISATAP


def embedded_v4(address: Address) -> tuple[Address, ...]:
    """Every IPv4 address that a translator could take out of this IPv6 address."""
    value = address.value
    if address.family == 4 or classify(address) is not AddressClass.TRANSLATED:
        return ()
    low = value & 0xFFFFFFFF
    found = [low]
    if value >> 112 == 0x2002:
        found = [value >> 80 & 0xFFFFFFFF]
    elif value >> 96 == 0x20010000:
        found = [value >> 64 & 0xFFFFFFFF, low ^ 0xFFFFFFFF]
    elif value >> 80 == 0x0064FF9B0001:
        # RFC 6052 2.2 with a /48, /56, /64 or /96 prefix: the network chooses, so judge each form.
        at_48 = (value >> 64 & 0xFFFF) << 16 | value >> 40 & 0xFFFF
        at_56 = (value >> 64 & 0xFF) << 24 | value >> 32 & 0xFFFFFF
        at_64 = value >> 24 & 0xFFFFFFFF
        found = [at_48, at_56, at_64, low]
    return tuple(Address(4, v4) for v4 in found)


METADATA = frozenset(
    parse_address(text)
    for text in (
        "169.254.169.254",  # AWS, GCP, Azure, OpenStack and most others
        "169.254.170.2",  # AWS container credentials
        "169.254.170.23",  # AWS EKS pod identity
        "168.63.129.16",  # Azure wire server
        "100.100.100.200",  # Alibaba
        "192.0.0.192",  # Oracle
        "fd00:ec2::254",  # AWS
        "fd00:ec2::23",  # AWS EKS pod identity
        "fd20:ce::254",  # GCP
        "fd00:42::42",  # Scaleway
    )
)


def is_metadata(address: Address) -> bool:
    """Whether this is a cloud metadata service, also when wrapped into an IPv6 address."""
    if collapse(address) in METADATA:
        return True
    return any(v4 in METADATA for v4 in embedded_v4(address))
