"""DNS messages that were whole once: real ones of every kind the guard reads, bitten, cut and spliced.

Quicker than a property test's own search by far; for numbers, where that is for cleverness.
"""

from __future__ import annotations

import random
from functools import cache
from typing import TYPE_CHECKING

import dns.message
import dns.rrset

from exeat.dns.other_records import gather
from exeat.dns.rdata import SERVED
from exeat.dns.vet import follow
from exeat.dns.wire import Qtype, WireError, parse_answer, parse_query

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "www.example.org."
_DATA = {
    "A": "192.0.2.1",
    "AAAA": "2001:db8::1",
    "CNAME": "edge.example.org.",
    "NS": "ns.example.org.",
    "PTR": "host.example.org.",
    "MX": "10 mail.example.org.",
    "TXT": '"v=spf1 -all" "more"',
    "SRV": "1 2 443 srv.example.org.",
    "SOA": "ns.example.org. host.example.org. 1 2 3 4 5",
    "CAA": '0 issue "ca.example.org"',
    "HTTPS": '1 svc.example.org. mandatory="alpn" alpn="h2,h3" port="8443" ipv4hint="192.0.2.1"',
    "SVCB": "0 alias.example.org.",
}
_BYTES = (0, 1, 2, 0x3F, 0x40, 0xBF, 0xC0, 0xFF)  # lengths and pointers at their edges


@cache
def originals() -> tuple[bytes, ...]:
    """A query and an answer of each type, with aliases, an SOA and EDNS."""
    out: list[bytes] = []
    for kind, text in _DATA.items():
        query = dns.message.make_query(NAME, kind, use_edns=0)
        out.append(query.to_wire())
        reply = dns.message.make_response(query)
        reply.answer.append(dns.rrset.from_text(NAME, 60, "IN", "CNAME", "edge.example.org."))
        reply.answer.append(dns.rrset.from_text("edge.example.org.", 60, "IN", kind, text))
        reply.authority.append(dns.rrset.from_text("example.org.", 60, "IN", "SOA", _DATA["SOA"]))
        out.append(reply.to_wire())
    return tuple(out)


def mutations(seed: int, count: int) -> Iterator[bytes]:
    """`count` of them, the same for the same seed."""
    source = random.Random(seed)
    whole = originals()
    for _ in range(count):
        data = bytearray(source.choice(whole))
        for _ in range(source.randrange(1, 5)):
            at = source.randrange(len(data)) if data else 0
            kind = source.randrange(5)
            if kind == 0 and data:
                data[at] ^= 1 << source.randrange(8)
            elif kind == 1 and data:
                data[at] = source.choice(_BYTES)
            elif kind == 2:
                del data[at:]
            elif kind == 3:
                data[at:at] = source.randbytes(source.randrange(1, 4))
            else:
                other = source.choice(whole)
                data[at:] = other[source.randrange(len(other)) :]
        yield bytes(data)


def read(data: bytes) -> bool:
    """Everything the guard does with bytes from either side; whether any of it was taken as a message.

    Raises whatever comes out that should not.
    """
    taken = False
    try:
        parse_query(data)
        taken = True
    except WireError:
        pass
    try:
        answer = parse_answer(data)
    except WireError:
        return taken
    name = answer.question[:-4].lower()
    if not answer.truncated:
        follow(answer, name, Qtype.A)
        for qtype in SERVED:
            gather(answer, name, qtype)
    return True
