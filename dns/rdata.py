"""The data of records other than addresses, read strictly and written anew.

Sans-I/O. Of a type that is not here, or data that does not have exactly its type's shape, nothing is
passed on. Names come out without compression (RFC 3597 section 4) and in lower case. HTTPS and SVCB
records (RFC 9460) lose what would lead a client past the gateway: ECH keys, HTTP/3, addresses that
nobody judged, and resolvers.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from exeat.dns.wire import Qtype, WireError, read_name

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_TXT: Final = 1024  # octets of one TXT record; a DKIM key of 4096 bits takes about 800
_CAA_TAG: Final = range(1, 16)
_SOA_NUMBERS: Final = 20
# Keys of SVCB parameters, RFC 9460 section 14.3.2. What is not kept goes.
_MANDATORY, _ALPN, _NO_DEFAULT_ALPN, _PORT = 0, 1, 2, 3
_HTTP3: Final = b"h3"


class Data(NamedTuple):
    """`octets` as they are sent on; `names` are aliases in them that must be judged like a CNAME's."""

    octets: bytes
    names: tuple[bytes, ...] = ()


def read(message: bytes, rtype: int, start: int, end: int) -> Data | None:
    """The data of one record in `message`. None where nothing of it may be passed on.

    Raises WireError when it is malformed or over a limit.
    """
    return _READERS[rtype](message, start, end)


def _read_names(message: bytes, at: int, end: int, count: int, after: int) -> bytes:
    """`count` names from `at`, then `after` octets that end at `end`: all of it, uncompressed."""
    out = b""
    for _ in range(count):
        name, at = read_name(message, at)
        out += name
    if at + after != end:
        raise WireError("record data of the wrong length")
    return out + message[at:end]


def _name(message: bytes, start: int, end: int) -> Data:
    return Data(_read_names(message, start, end, 1, 0))


def _mx(message: bytes, start: int, end: int) -> Data:
    return Data(_fixed(message, start, end, 2) + _read_names(message, start + 2, end, 1, 0))


def _srv(message: bytes, start: int, end: int) -> Data:
    return Data(_fixed(message, start, end, 6) + _read_names(message, start + 6, end, 1, 0))


def _soa(message: bytes, start: int, end: int) -> Data:
    return Data(_read_names(message, start, end, 2, _SOA_NUMBERS))


def _fixed(message: bytes, start: int, end: int, size: int) -> bytes:
    if start + size > end:
        raise WireError("record data cut off")
    return message[start : start + size]


def _txt(message: bytes, start: int, end: int) -> Data:
    """RFC 1035 section 3.3.14: strings, each after its length."""
    if not 0 < end - start <= MAX_TXT:
        raise WireError("TXT data empty or too long")
    at = start
    while at < end:
        at += 1 + message[at]
    if at != end:
        raise WireError("TXT string cut off")
    return Data(message[start:end])


def _caa(message: bytes, start: int, end: int) -> Data:
    """RFC 8659 section 4.1: flags, a tag of letters and digits, a value."""
    size = _fixed(message, start, end, 2)[1]
    tag = message[start + 2 : start + 2 + size]
    if size not in _CAA_TAG or start + 2 + size > end or not tag.isalnum() or end - start > MAX_TXT:
        raise WireError("malformed CAA data")
    return Data(message[start:end])


def _svcb(message: bytes, start: int, end: int) -> Data | None:
    priority = _fixed(message, start, end, 2)
    target, at = read_name(message, start + 2)
    names = (target,) if target != b"\0" else ()
    parameters = _parameters(message, at, end)
    if priority == b"\0\0":  # an alias; parameters mean nothing there (RFC 9460 section 2.4.2)
        return Data(priority + target, names)
    kept = _kept(parameters)
    if kept is None:
        return None
    body = b"".join(struct.pack(">HH", key, len(value)) + value for key, value in kept.items())
    return Data(priority + target + body, names)


def _parameters(message: bytes, at: int, end: int) -> dict[int, bytes]:
    """By key; keys must ascend (RFC 9460 section 2.2)."""
    found: dict[int, bytes] = {}
    last = -1
    while at < end:
        if at + 4 > end:
            raise WireError("SVCB parameter cut off")
        key, size = struct.unpack_from(">HH", message, at)
        at += 4
        if key <= last or at + size > end:
            raise WireError("SVCB parameters out of order or cut off")
        found[key], last = message[at : at + size], key
        at += size
    if at != end:
        raise WireError("SVCB data of the wrong length")
    return found


def _kept(parameters: dict[int, bytes]) -> dict[int, bytes] | None:
    """What may be told; None when too little is left for the record to mean what it did."""
    kept = {key: value for key, value in parameters.items() if key in (_ALPN, _NO_DEFAULT_ALPN, _PORT)}
    if _ALPN in kept:
        kept[_ALPN] = _without_http3(kept[_ALPN])
        if not kept[_ALPN]:
            if _NO_DEFAULT_ALPN in kept:
                return None  # it spoke HTTP/3 only
            del kept[_ALPN]
    needed = parameters.get(_MANDATORY, b"")
    if len(needed) % 2:
        raise WireError("malformed SVCB key list")
    if any(key not in kept for (key,) in struct.iter_unpack(">H", needed)):
        return None
    return ({_MANDATORY: needed} if needed else {}) | kept


def _without_http3(value: bytes) -> bytes:
    out, at = b"", 0
    while at < len(value):
        size = value[at]
        protocol = value[at + 1 : at + 1 + size]
        if not size or len(protocol) != size:
            raise WireError("malformed ALPN list")
        if not protocol.startswith(_HTTP3):
            out += value[at : at + 1 + size]
        at += 1 + size
    return out


_READERS: Final[dict[int, Callable[[bytes, int, int], Data | None]]] = {
    Qtype.NS: _name,
    Qtype.SOA: _soa,
    Qtype.PTR: _name,
    Qtype.MX: _mx,
    Qtype.TXT: _txt,
    Qtype.SRV: _srv,
    Qtype.SVCB: _svcb,
    Qtype.HTTPS: _svcb,
    Qtype.CAA: _caa,
}
SERVED: Final = frozenset(_READERS)
