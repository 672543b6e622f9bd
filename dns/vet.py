"""What of an upstream's answer may be believed: the chain of names, its addresses, how long.

Pure. An answer is either taken whole or refused whole; nothing is picked out of a bad one. The
judgement over names and addresses is the policy core's, passed in by the resolver.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from exeat.dns.build import NEGATIVE_S
from exeat.dns.wire import Answer, Qtype, Rcode, Record
from exeat.policy.model import Address

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_HOPS = 8  # CNAMEs in one chain
MIN_TTL_S = 1
MAX_TTL_S = 30
NEGATIVE_CACHE_S = 30
_MAPPED = 0xFFFF  # ::ffff:0:0/96, an IPv4 address in disguise


class Status(StrEnum):
    """How a lookup ended, seen from the network (what policy says comes on top)."""

    FOUND = "found"
    NXDOMAIN = "nxdomain"  # no such name
    NODATA = "nodata"  # the name exists, but not with this type
    HOSTILE = "hostile"  # an answer that no honest server gives
    UNAVAILABLE = "unavailable"  # no upstream gave a usable answer


@dataclass(frozen=True, slots=True)
class Chain:
    """The vetted shape of one answer.

    `targets` are the names the asked one is an alias of, in order, in wire form. `ttl` is in
    seconds and already clamped; for a negative answer it says how long that may be remembered.
    `stale` is the resolver's mark for an answer past its time, `authentic` the upstream's AD bit.
    """

    status: Status
    targets: tuple[bytes, ...] = ()
    addresses: tuple[Address, ...] = ()
    ttl: int = MIN_TTL_S
    stale: bool = False
    authentic: bool = False


UNAVAILABLE = Chain(Status.UNAVAILABLE)
HOSTILE = Chain(Status.HOSTILE, ttl=NEGATIVE_S)


def follow(answer: Answer, name: bytes, qtype: int) -> Chain:
    """Follow `answer` from `name` to its addresses of type `qtype` (A or AAAA).

    Every CNAME must belong to the chain, every address to its end, and an address record of the
    asked type anywhere else makes the answer HOSTILE; so does a loop, a fork or a v4-mapped AAAA.
    """
    if answer.rcode not in (Rcode.NOERROR, Rcode.NXDOMAIN):
        return UNAVAILABLE
    aliases = aliases_of(answer.records)
    if aliases is None:
        return HOSTILE
    targets = walk(aliases, name)
    if targets is None:
        return HOSTILE
    end = targets[-1] if targets else name
    found = [record for record in answer.records if record.rtype == qtype]
    if any(record.owner != end for record in found) or any(_mapped(record) for record in found):
        return HOSTILE
    if answer.rcode == Rcode.NXDOMAIN:
        return HOSTILE if found else Chain(Status.NXDOMAIN, targets, (), negative_ttl(answer))
    if not found:
        return Chain(Status.NODATA, targets, (), negative_ttl(answer))
    addresses = tuple(dict.fromkeys(r.value for r in found if isinstance(r.value, Address)))
    ttl = min(record.ttl for record in answer.records if record.rtype in (qtype, Qtype.CNAME))
    ttl = max(MIN_TTL_S, min(MAX_TTL_S, ttl))
    return Chain(Status.FOUND, targets, addresses, ttl, authentic=answer.authentic)


def aliases_of(records: Sequence[Record]) -> dict[bytes, bytes] | None:
    """owner -> target of every CNAME; None when one name has two."""
    aliases: dict[bytes, bytes] = {}
    for record in records:
        if isinstance(record.value, bytes) and aliases.setdefault(record.owner, record.value) != record.value:
            return None
    return aliases


def walk(aliases: dict[bytes, bytes], name: bytes) -> tuple[bytes, ...] | None:
    """The targets in order; None for a loop, a chain too long, or a CNAME outside the chain."""
    targets: list[bytes] = []
    while name in aliases:
        name = aliases[name]
        targets.append(name)
        if len(targets) > min(MAX_HOPS, len(aliases)):
            return None
    return tuple(targets) if len(targets) == len(aliases) else None


def _mapped(record: Record) -> bool:
    return (
        isinstance(record.value, Address) and record.value.family == 6 and record.value.value >> 32 == _MAPPED
    )


def negative_ttl(answer: Answer) -> int:
    """RFC 2308, capped so that a lease or a fixed zone is seen soon; no SOA means do not keep it."""
    if answer.negative_ttl is None:
        return 0
    return min(NEGATIVE_CACHE_S, answer.negative_ttl)


def dial_order(chains: Sequence[Chain]) -> tuple[tuple[Address, int], ...]:
    """(address, ttl) of both families, alternating, IPv4 first: one dead family costs one try."""
    lists = [[(address, chain.ttl) for address in chain.addresses] for chain in chains]
    lists.sort(key=lambda items: items[0][0].family if items else 9)
    longest = max((len(items) for items in lists), default=0)
    return tuple(items[i] for i in range(longest) for items in lists if i < len(items))
