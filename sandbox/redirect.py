"""What makes a jail transparent, as netlink messages (pure).

A jail has only `lo`. With a default route of type `local` (AnyIP) every address is the jail's own,
and one nftables table sends each TCP connection to the transparent port, each DNS query to the
guard, and refuses the rest. `nft list ruleset` in a jail shows

    table inet exeat {
        chain untracked {
            type filter hook output priority -300; policy accept;
            ip daddr 127.0.0.0/8 tcp dport 3128 notrack
            ip daddr 127.0.0.0/8 tcp sport 3128 notrack
            ip6 daddr ::1 tcp dport 3128 notrack
            ip6 daddr ::1 tcp sport 3128 notrack
        }
        chain catch {
            type nat hook output priority -100; policy accept;
            meta l4proto udp th dport 53 redirect to :53
            meta l4proto tcp th dport 53 redirect to :53
            ip daddr 127.0.0.0/8 accept
            ip6 daddr ::1 accept
            meta l4proto tcp redirect to :3129
        }
        chain out {
            type filter hook output priority 0; policy drop;
            ip daddr 127.0.0.0/8 accept
            ip6 daddr ::1 accept
            reject with icmpx admin-prohibited
        }
    }

and a test compares the two. Messages and not text, because the library that reads text aborts in
a process with many descriptors and its program takes ten times as long to start as this takes in
all. Loopback stays a job's own: its programs may talk to each other there. What asks the proxy by
its port is kept out of connection tracking, which would cost a tenth of the new connections.

Formats: netlink(7), rtnetlink(7), linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import socket  # constants only
import struct
from functools import cache
from typing import TYPE_CHECKING, Final, NamedTuple

from exeat.sandbox.spec import INET_SOCKETS

if TYPE_CHECKING:
    from collections.abc import Iterable

NETLINK_ROUTE: Final = 0
NETLINK_NETFILTER: Final = 12
TABLE: Final = "exeat"

_REQUEST, _ACK, _EXCLUSIVE, _CREATE, _APPEND = 0x1, 0x4, 0x200, 0x400, 0x800
_NESTED: Final = 0x8000
_HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence number, port id

_NEW_LINK, _NEW_ROUTE = 16, 24
_UP: Final = 0x1  # IFF_UP, netdevice(7)
_TABLE_LOCAL, _BY_STATIC, _SCOPE_HOST, _KIND_LOCAL = 255, 4, 254, 2
_ROUTE_OIF, _ROUTE_PREFSRC = 4, 7
_LO: Final = 1  # its interface number in every network namespace

_BATCH_BEGIN, _BATCH_END = 16, 17
_NFTABLES: Final = 10
_NEW_TABLE, _NEW_CHAIN, _NEW_RULE = (_NFTABLES << 8 | number for number in (0, 3, 6))
_INET: Final = 1  # NFPROTO_INET: IPv4 and IPv6
_HOOK_OUTPUT: Final = 3
_DROP, _ACCEPT = 0, 1
_REG_VERDICT, _REG = 0, 1
_META_NFPROTO, _META_L4PROTO = 15, 16
_NETWORK, _TRANSPORT = 1, 2
_FROM, _TO = 0, 2  # where a transport header has its ports
_NAT_PORT_GIVEN: Final = 2
_REJECT_ICMPX, _ADMIN_PROHIBITED = 2, 3


class Exchange(NamedTuple):
    """Bytes to send on a netlink socket of this protocol; done with the ack of `last`, or an error."""

    protocol: int
    data: bytes
    last: int  # sequence number


class _Chain(NamedTuple):
    """A base chain of the table."""

    name: str
    kind: str
    priority: int
    policy: int

    def body(self) -> bytes:
        hook = _attribute(1, _be32(_HOOK_OUTPUT)) + _attribute(2, struct.pack(">i", self.priority))
        names = _attribute(1, _text(TABLE)) + _attribute(3, _text(self.name))
        return names + (
            _attribute(4 | _NESTED, hook)
            + _attribute(5, _be32(self.policy))
            + _attribute(7, _text(self.kind))
        )


@cache
def exchanges() -> tuple[Exchange, ...]:
    """All that is to be sent in a new namespace, in this order."""
    return _routes(), _table()


def failure(reply: bytes, last: int) -> int | None:
    """What one netlink reply says: an errno, 0 for "all of it is done", None for "read on".

    Errors come in the order of the messages and before the acknowledgement of the last one.
    """
    kind, sequence = struct.unpack_from("=4xH2xI", reply)
    (code,) = struct.unpack_from("=i", reply, _HEADER.size)
    if kind != 2:  # NLMSG_ERROR: anything else is no answer to us
        return None
    if code:
        return -int(code)
    return 0 if sequence == last else None


def _routes() -> Exchange:
    """`ip link set lo up`, and `ip route add local default dev lo` in both families."""
    up = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, _LO, _UP, _UP)
    oif = _attribute(_ROUTE_OIF, struct.pack("=I", _LO))
    # Else the source address of a connection would be the very address it goes to.
    source = _attribute(_ROUTE_PREFSRC, bytes((127, 0, 0, 1)))
    data = _message(_NEW_LINK, 1, up, _ACK) + b"".join(
        _message(_NEW_ROUTE, number, _route(family) + oif + extra, _CREATE | _EXCLUSIVE | _ACK)
        for number, (family, extra) in enumerate(((socket.AF_INET, source), (socket.AF_INET6, b"")), 2)
    )
    return Exchange(NETLINK_ROUTE, data, 3)


def _route(family: int) -> bytes:
    """struct rtmsg of a default route."""
    return struct.pack("=8BI", family, 0, 0, 0, _TABLE_LOCAL, _BY_STATIC, _SCOPE_HOST, _KIND_LOCAL, 0)


def _table() -> Exchange:
    """The table in one batch: the kernel takes all of it or nothing."""
    proxy, transparent, dns = (INET_SOCKETS[name][3] for name in ("proxy4", "trans4", "dnsu4"))
    loopback = (_to_loopback4(), _to_loopback6())
    rules = {
        _Chain("untracked", "filter", -300, _ACCEPT): [
            [*to, *_protocol(socket.IPPROTO_TCP), *_port(end, proxy), _expression("notrack")]
            for to in loopback
            for end in (_TO, _FROM)
        ],
        _Chain("catch", "nat", -100, _ACCEPT): [
            [*_protocol(socket.IPPROTO_UDP), *_port(_TO, dns), *_redirect(dns)],
            [*_protocol(socket.IPPROTO_TCP), *_port(_TO, dns), *_redirect(dns)],
            *([*to, _verdict(_ACCEPT)] for to in loopback),
            [*_protocol(socket.IPPROTO_TCP), *_redirect(transparent)],
        ],
        _Chain("out", "filter", 0, _DROP): [*([*to, _verdict(_ACCEPT)] for to in loopback), [_reject()]],
    }
    contents = [(_NEW_TABLE, _attribute(1, _text(TABLE)))]
    for chain, listed in rules.items():
        contents.append((_NEW_CHAIN, chain.body()))
        contents += ((_NEW_RULE, _rule(chain.name, rule)) for rule in listed)
    last = len(contents)
    family = struct.pack(">BBH", _INET, 0, 0)
    middle = b"".join(
        _message(kind, number, family + body, _CREATE | _APPEND | (_ACK if number == last else 0))
        for number, (kind, body) in enumerate(contents, 1)
    )
    edge = struct.pack(">BBH", socket.AF_UNSPEC, 0, _NFTABLES)
    data = _message(_BATCH_BEGIN, 0, edge) + middle + _message(_BATCH_END, last + 1, edge)
    return Exchange(NETLINK_NETFILTER, data, last)


def _rule(chain: str, expressions: Iterable[bytes]) -> bytes:
    listed = b"".join(_attribute(1 | _NESTED, expression) for expression in expressions)
    return _attribute(1, _text(TABLE)) + _attribute(2, _text(chain)) + _attribute(4 | _NESTED, listed)


# -- expressions: what `nft --debug=netlink` shows in brackets


def _expression(name: str, *attributes: bytes) -> bytes:
    return _attribute(1, _text(name)) + _attribute(2 | _NESTED, b"".join(attributes))


def _protocol(number: int) -> list[bytes]:
    return [_meta(_META_L4PROTO), _equals(bytes((number,)))]


def _port(offset: int, port: int) -> list[bytes]:
    return [_payload(_TRANSPORT, offset, 2), _equals(struct.pack(">H", port))]


def _to_loopback4() -> list[bytes]:
    return [*_family(socket.AF_INET), _payload(_NETWORK, 16, 1), _equals(bytes((127,)))]


def _to_loopback6() -> list[bytes]:
    return [*_family(socket.AF_INET6), _payload(_NETWORK, 24, 16), _equals(bytes(15) + b"\1")]


def _family(number: int) -> list[bytes]:
    return [_meta(_META_NFPROTO), _equals(bytes((number,)))]


def _meta(key: int) -> bytes:
    return _expression("meta", _attribute(2, _be32(key)), _attribute(1, _be32(_REG)))


def _payload(base: int, offset: int, length: int) -> bytes:
    values = (_REG, base, offset, length)
    return _expression("payload", *(_attribute(kind, _be32(value)) for kind, value in enumerate(values, 1)))


def _equals(value: bytes) -> bytes:
    data = _attribute(3 | _NESTED, _attribute(1, value))
    return _expression("cmp", _attribute(1, _be32(_REG)), _attribute(2, _be32(0)), data)


def _redirect(port: int) -> list[bytes]:
    value = _attribute(2 | _NESTED, _attribute(1, struct.pack(">H", port)))
    bounds = (_attribute(kind, _be32(_REG)) for kind in (1, 2))
    return [
        _expression("immediate", _attribute(1, _be32(_REG)), value),
        _expression("redir", *bounds, _attribute(3, _be32(_NAT_PORT_GIVEN))),
    ]


def _verdict(code: int) -> bytes:
    verdict = _attribute(2 | _NESTED, _attribute(1, _be32(code)))
    return _expression("immediate", _attribute(1, _be32(_REG_VERDICT)), _attribute(2 | _NESTED, verdict))


def _reject() -> bytes:
    return _expression(
        "reject", _attribute(1, _be32(_REJECT_ICMPX)), _attribute(2, bytes((_ADMIN_PROHIBITED,)))
    )


# -- framing


def _message(kind: int, number: int, body: bytes, flags: int = 0) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | flags, number, 0) + body


def _attribute(kind: int, value: bytes) -> bytes:
    size = 4 + len(value)
    return struct.pack("=HH", size, kind) + value + bytes(-size % 4)


def _text(value: str) -> bytes:
    return value.encode() + b"\0"


def _be32(value: int) -> bytes:
    return struct.pack(">I", value)
