"""The DNS messages that exeat itself writes: queries to an upstream, replies to a jail.

Sans-I/O. Everything is built from vetted values; of what a client sent only its question section
is echoed, as RFC 1035 wants it.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from exeat.dns.wire import (
    AD,
    CD,
    CLASS_IN,
    HEADER,
    OPT,
    QR,
    QUESTION_END,
    RA,
    RD,
    RECORD,
    SOA,
    TC,
    UDP_SIZE,
    Ede,
    Opt,
    Qtype,
    Query,
    Rcode,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exeat.policy.model import Address

NEGATIVE_S = 5  # seconds a client may remember a denial, so that an approved lease soon works


# Of each octet the bit that the case of a letter is: 0x20 for a to z, nothing for all else.
_CASE = bytes(0x20 if 97 <= octet <= 122 else 0 for octet in range(256))


def randomise_case(name: bytes, random: bytes) -> bytes:
    """0x20: flip the case of each letter of a lower-case `name` by a bit of `random`, which is as long."""
    letters = int.from_bytes(name.translate(_CASE), "big")
    flips = int.from_bytes(random, "big") & letters
    return (int.from_bytes(name, "big") ^ flips).to_bytes(len(name), "big")


def build_query(ident: int, question: bytes, *, block: int = 0) -> bytes:
    """A recursive query with our own OPT: no client option, flag or case goes through it.

    With `block` it is padded to a multiple of that many octets (RFC 7830; RFC 8467 says 128), so
    that its length does not tell an onlooker of an encrypted stream which name is asked for. Such a
    stream is also where an AD bit means something, and is asked for (RFC 6840 section 5.7).
    """
    header = HEADER.pack(ident, RD | AD if block else RD, 1, 0, 0, 1)
    padding = b""
    if block:
        bare = HEADER.size + len(question) + 1 + RECORD.size + 4
        padding = struct.pack(">HH", 12, -bare % block) + bytes(-bare % block)
    return header + question + b"\0" + RECORD.pack(OPT, UDP_SIZE, 0, len(padding)) + padding


def build_question(name: bytes, qtype: int) -> bytes:
    return name + QUESTION_END.pack(qtype, CLASS_IN)


def build_error(data: bytes, rcode: Rcode) -> bytes:
    """A bare header for a message that could not be read; `data` is at least a header."""
    ident, flags = struct.unpack_from(">HH", data)
    return HEADER.pack(ident, QR | flags & (0x7800 | RD) | rcode, 0, 0, 0, 0)


_SOA_DATA = (
    b"\x05exeat\x07invalid\x00"  # MNAME
    b"\x0ahostmaster\x05exeat\x07invalid\x00" + struct.pack(">5I", 1, 3600, 600, 86400, NEGATIVE_S)  # RNAME
)
_SOA_RECORD = b"\xc0\x0c" + RECORD.pack(SOA, CLASS_IN, NEGATIVE_S, len(_SOA_DATA)) + _SOA_DATA


def build_reply(
    query: Query,
    rcode: Rcode,
    *,
    addresses: Sequence[Address] = (),
    records: Sequence[bytes] = (),
    ttl: int = 0,
    ede: tuple[Ede, str] | None = None,
    limit: int = 0xFFFF,
    authentic: bool = False,
) -> bytes:
    """The whole reply. Without an answer, NOERROR and NXDOMAIN carry an SOA (RFC 2308).

    `records` are data of the asked type, without compression. All is owned by the asked name itself:
    the chain that led there is not shown. OPT
    goes only to a client that sent one. A reply over `limit` octets becomes an empty one with TC.
    """
    opt = _build_opt(query.opt, rcode, ede) if query.opt is not None else b""
    flags = QR | query.flags & (RD | CD) | RA | (AD if authentic else 0) | rcode & 0xF
    negative = not (addresses or records) and rcode in (Rcode.NOERROR, Rcode.NXDOMAIN)
    answer = b"".join(
        b"\xc0\x0c"
        + RECORD.pack(Qtype.A if a.family == 4 else Qtype.AAAA, CLASS_IN, ttl, len(packed))
        + packed
        for a in addresses
        for packed in (a.packed(),)
    )
    answer += b"".join(
        b"\xc0\x0c" + RECORD.pack(query.qtype, CLASS_IN, ttl, len(data)) + data for data in records
    )
    authority = _SOA_RECORD if negative else b""
    counts = (1, len(addresses) + len(records), int(negative), int(bool(opt)))
    reply = HEADER.pack(query.id, flags, *counts) + query.question + answer + authority + opt
    if len(reply) > limit:
        return HEADER.pack(query.id, flags & ~AD | TC, 1, 0, 0, int(bool(opt))) + query.question + opt
    return reply


def _build_opt(asked: Opt, rcode: Rcode, ede: tuple[Ede, str] | None) -> bytes:
    options = b""
    if ede is not None:
        code, text = ede
        body = struct.pack(">H", code) + text.encode("ascii", "replace")[:200]
        options = struct.pack(">HH", 15, len(body)) + body
    ttl = rcode >> 4 << 24 | (0x8000 if asked.dnssec_ok else 0)
    return b"\0" + RECORD.pack(OPT, UDP_SIZE, ttl, len(options)) + options
