"""DNS messages, strictly: bytes in, values out.

Sans-I/O, RFC 1035 with EDNS(0) (RFC 6891) and extended errors (RFC 8914). Two readers:
`parse_query` for what a jail sends and `parse_answer` for what an upstream sends. Neither
raises anything but `WireError`, and what goes out is built anew (`dns.build`).

A name travels here in *wire form*: length-prefixed labels, lower-cased, with the final zero
byte. Length bytes are at most 63 and ASCII letters begin at 65, so lower-casing the whole
string cannot touch a length.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from exeat.policy.model import Address

MAX_NAME = 255  # octets of wire form, RFC 1035 section 2.3.4
MAX_LABEL = 63
MAX_ANSWERS = 64  # records in an answer section; more is refused, not cut
MAX_RECORDS = 256  # records in all sections together
UDP_SIZE = 1232  # octets; what fits any path without fragments (DNS flag day 2020)
PLAIN_UDP_SIZE = 512  # octets, for a client without EDNS

CLASS_IN = 1
SOA = 6
OPT = 41

HEADER = struct.Struct(">6H")
QUESTION_END = struct.Struct(">HH")
RECORD = struct.Struct(">HHIH")
_HOST = re.compile(rb"[a-z0-9_.-]+")
QR, TC, RD, RA, AD, CD = 0x8000, 0x0200, 0x0100, 0x0080, 0x0020, 0x0010  # header flags


class Qtype(IntEnum):
    """The record types the guard knows by name."""

    A = 1
    NS = 2
    CNAME = 5
    SOA = 6
    NULL = 10
    PTR = 12
    MX = 15
    TXT = 16
    KEY = 25
    AAAA = 28
    SRV = 33
    NAPTR = 35
    SVCB = 64
    HTTPS = 65
    IXFR = 251
    AXFR = 252
    ANY = 255
    CAA = 257


class Rcode(IntEnum):
    """Response codes, RFC 1035 section 4.1.1 and RFC 6891 section 9."""

    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5
    BADVERS = 16


class Ede(IntEnum):
    """Extended DNS error codes, RFC 8914 section 4."""

    STALE = 3
    NOT_READY = 14
    BLOCKED = 15
    NOT_SUPPORTED = 21
    NO_REACHABLE_AUTHORITY = 22


class WireError(Exception):
    """The bytes are not a message we take. `rcode` says what to answer; None means nothing at all."""

    def __init__(self, message: str, rcode: Rcode | None = Rcode.FORMERR) -> None:
        super().__init__(message)
        self.rcode = rcode


class Opt(NamedTuple):
    """The EDNS(0) pseudo-record of a query. Options are checked for shape and forgotten."""

    udp_size: int
    version: int
    dnssec_ok: bool


@dataclass(frozen=True, slots=True)
class Query:
    """One question. `question` is the section as it was sent, for the echo; `name` is canonical."""

    id: int
    flags: int
    name: bytes
    qtype: int
    qclass: int
    question: bytes
    opt: Opt | None

    @property
    def wants_authentic(self) -> bool:
        """Whether this client understands the AD bit of a reply (RFC 6840 section 5.8)."""
        return bool(self.flags & AD) or (self.opt is not None and self.opt.dnssec_ok)

    @property
    def udp_limit(self) -> int:
        """How many octets of UDP payload this client takes from us."""
        if self.opt is None:
            return PLAIN_UDP_SIZE
        return max(PLAIN_UDP_SIZE, min(UDP_SIZE, self.opt.udp_size))


class Record(NamedTuple):
    """One answer record: `value` is an Address for A and AAAA, a name for CNAME, else None.

    Its data lies in the message from `start` to `end`.
    """

    owner: bytes
    rtype: int
    ttl: int
    value: Address | bytes | None
    start: int = 0
    end: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What an upstream said. `negative_ttl` comes from the SOA of the authority section, if any.

    `authentic` is the AD bit: it says that it has checked the signatures (RFC 4035 section 3.2.3).
    """

    id: int
    rcode: int
    truncated: bool
    question: bytes
    records: tuple[Record, ...]
    negative_ttl: int | None
    authentic: bool = False
    message: bytes = b""  # all of it: data of other types may point into it


def parse_query(data: bytes) -> Query:
    """Read a client's query. Raises WireError whose `rcode` is what to answer."""
    if len(data) < HEADER.size:
        raise WireError("shorter than a header", None)
    ident, flags, qdcount, ancount, nscount, arcount = HEADER.unpack_from(data)
    if flags & QR:
        raise WireError("a response, not a query", None)  # answering it could start a loop
    if flags & 0x7800:
        raise WireError("an opcode other than QUERY", Rcode.NOTIMP)
    if flags & (TC | 0x000F):
        raise WireError("response bits set in a query")
    if qdcount != 1 or ancount or nscount or arcount > 1:
        raise WireError("section counts of a query must be 1, 0, 0 and at most 1")
    name, end = _read_plain_name(data, HEADER.size)
    if end + 4 > len(data):
        raise WireError("question cut off")
    qtype, qclass = QUESTION_END.unpack_from(data, end)
    end += 4
    question = data[HEADER.size : end]
    opt = None
    if arcount:
        opt, end = _read_opt(data, end)
    if end != len(data):
        raise WireError("bytes after the last record")
    return Query(ident, flags, name, qtype, qclass, question, opt)


def _read_plain_name(data: bytes, offset: int) -> tuple[bytes, int]:
    """A name without compression, as a question must have it."""
    start = offset
    while True:
        if offset >= len(data):
            raise WireError("name cut off")
        size = data[offset]
        offset += 1
        if size == 0:
            break
        if size > MAX_LABEL:
            raise WireError("compressed or reserved label in the question")
        offset += size
    if offset - start > MAX_NAME:
        raise WireError("name longer than 255 octets")
    return data[start:offset].lower(), offset


def _read_opt(data: bytes, offset: int) -> tuple[Opt, int]:
    if offset + 11 > len(data) or data[offset] != 0:
        raise WireError("the additional record is not an OPT at the root")
    rtype, size, ttl, length = RECORD.unpack_from(data, offset + 1)
    if rtype != OPT:
        raise WireError("the additional record is not an OPT")
    start = offset + 11
    end = start + length
    if end > len(data):
        raise WireError("OPT cut off")
    while start < end:
        if start + 4 > end:
            raise WireError("EDNS option cut off")
        start += 4 + int.from_bytes(data[start + 2 : start + 4], "big")
    if start != end:
        raise WireError("EDNS option longer than its record")
    return Opt(size, ttl >> 16 & 0xFF, bool(ttl & 0x8000)), end


def read_name(data: bytes, offset: int) -> tuple[bytes, int]:
    """A possibly compressed name at `offset`: (canonical wire form, offset after it).

    Every pointer must go to a place before the one that led to it, so the walk always ends.
    """
    parts: list[bytes] = []
    length = 1
    end = 0
    floor = offset
    while True:
        if offset >= len(data):
            raise WireError("name cut off")
        size = data[offset]
        if size == 0:
            break
        if size >= 0xC0:
            if offset + 1 >= len(data):
                raise WireError("pointer cut off")
            target = (size & 0x3F) << 8 | data[offset + 1]
            if not HEADER.size <= target < floor:
                raise WireError("pointer that does not go back")
            end = end or offset + 2
            floor = offset = target
            continue
        if size > MAX_LABEL:
            raise WireError("reserved label type")
        length += size + 1
        if length > MAX_NAME or offset + 1 + size > len(data):
            raise WireError("name too long or cut off")
        parts.append(data[offset : offset + 1 + size])
        offset += 1 + size
    return b"".join(parts).lower() + b"\0", end or offset + 1


def parse_answer(data: bytes) -> Answer:
    """Read an upstream's response. Raises WireError on anything malformed or over the limits."""
    if len(data) < HEADER.size:
        raise WireError("shorter than a header")
    ident, flags, qdcount, ancount, nscount, arcount = HEADER.unpack_from(data)
    if not flags & QR or flags & 0x7800 or qdcount != 1:
        raise WireError("not a response to one query")
    _, end = _read_plain_name(data, HEADER.size)
    end += 4
    if end > len(data):
        raise WireError("question cut off")
    question = data[HEADER.size : end]
    if ancount > MAX_ANSWERS or ancount + nscount + arcount > MAX_RECORDS:
        raise WireError("too many records")
    rcode = flags & 0x000F
    truncated = bool(flags & TC)
    if truncated:  # RFC 2181 section 9: nothing in it may be used, so nothing in it is read
        return Answer(ident, rcode, True, question, (), None)
    records, end = _read_answers(data, end, ancount)
    negative_ttl, extended = _read_rest(data, end, nscount, arcount)
    rcode |= extended << 4
    return Answer(ident, rcode, False, question, records, negative_ttl, bool(flags & AD), data)


def _read_answers(data: bytes, offset: int, count: int) -> tuple[tuple[Record, ...], int]:
    records = []
    for _ in range(count):
        owner, rtype, rclass, ttl, start, offset = _read_record(data, offset)
        if rclass != CLASS_IN:
            raise WireError("answer of a class other than IN")
        records.append(Record(owner, rtype, ttl, _read_value(data, rtype, start, offset), start, offset))
    return tuple(records), offset


def _read_record(data: bytes, offset: int) -> tuple[bytes, int, int, int, int, int]:
    """(owner, type, class, ttl, start of data, end of data)."""
    owner, offset = read_name(data, offset)
    if offset + RECORD.size > len(data):
        raise WireError("record cut off")
    rtype, rclass, ttl, length = RECORD.unpack_from(data, offset)
    start = offset + RECORD.size
    if start + length > len(data):
        raise WireError("record data cut off")
    if ttl > 0x7FFFFFFF and rtype != OPT:
        ttl = 0  # RFC 2181 section 8
    return owner, rtype, rclass, ttl, start, start + length


def _read_value(data: bytes, rtype: int, start: int, end: int) -> Address | bytes | None:
    if rtype == Qtype.A or rtype == Qtype.AAAA:
        if end - start != (4 if rtype == Qtype.A else 16):
            raise WireError("address of the wrong length")
        return Address(4 if rtype == Qtype.A else 6, int.from_bytes(data[start:end], "big"))
    if rtype == Qtype.CNAME:
        target, after = read_name(data, start)
        if after != end:
            raise WireError("CNAME data is not one name")
        return target
    return None


def _read_rest(data: bytes, offset: int, nscount: int, arcount: int) -> tuple[int | None, int]:
    """Authority and additional: only the negative TTL (RFC 2308) and the extended rcode matter."""
    negative_ttl: int | None = None
    extended = 0
    for index in range(nscount + arcount):
        _, rtype, rclass, ttl, start, offset = _read_record(data, offset)
        if rtype == SOA and index < nscount and rclass == CLASS_IN:
            negative_ttl = min(ttl, _soa_minimum(data, start, offset))
        elif rtype == OPT:
            extended = ttl >> 24
    if offset != len(data):
        raise WireError("bytes after the last record")
    return negative_ttl, extended


def _soa_minimum(data: bytes, start: int, end: int) -> int:
    _, after = read_name(data, start)
    _, after = read_name(data, after)
    if after + 20 != end:
        raise WireError("SOA data of the wrong length")
    return int.from_bytes(data[end - 4 : end], "big")


def host_text(name: bytes) -> str | None:
    """The dotted text of a canonical wire name, or None when it holds anything but LDH and `_`.

    A label with a dot inside is refused as well: as text it would read as two labels.
    """
    labels = split_labels(name)
    text = b".".join(labels)
    if text.count(b".") != len(labels) - 1 or not _HOST.fullmatch(text):
        return None
    return text.decode("ascii")


def printable(name: bytes) -> str:
    """Any wire name as harmless text: RFC 1035 section 5.1 escapes, never a control character."""
    return ".".join("".join(_escape(byte) for byte in label) for label in split_labels(name)) or "."


def _escape(byte: int) -> str:
    char = chr(byte)
    return char if char.isascii() and (char.isalnum() or char in "-_*") else f"\\{byte:03d}"


def split_labels(name: bytes) -> list[bytes]:
    """The labels of an uncompressed, already checked wire name, without the root."""
    labels = []
    offset = 0
    while (size := name[offset]) != 0:
        labels.append(name[offset + 1 : offset + 1 + size])
        offset += 1 + size
    return labels


def wire_name(host: str) -> bytes:
    """The wire form of a canonical host (`names.parse_host`). Raises WireError if it does not fit."""
    out = bytearray()
    for label in host.encode("ascii", "replace").split(b"."):
        if not 0 < len(label) <= MAX_LABEL:
            raise WireError("empty or oversized label")
        out.append(len(label))
        out += label
    out.append(0)
    if len(out) > MAX_NAME:
        raise WireError("name longer than 255 octets")
    return bytes(out).lower()
