"""The datagrams of ledger.sock (docs/architecture.md). Pure.

Request: u32 request number, then per record u16 length and the record's bytes.
Reply: u32 request number, u8 status, u64 sequence number of the first record. Big-endian.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_DATAGRAM: Final = 65536
REPLY: Final = struct.Struct(">IBQ")
_NUMBER: Final = struct.Struct(">I")
_LENGTH: Final = struct.Struct(">H")


class Status(IntEnum):
    """The ledger's answer to one request."""

    DURABLE = 0
    UNAVAILABLE = 1
    REFUSED = 2


class WireError(ValueError):
    """The datagram is not a request, or would not fit into one."""


def packed_size(records: Sequence[bytes]) -> int:
    """What the records take up of a datagram. Raises WireError if they cannot be one request."""
    if not records:
        raise WireError("a request carries at least one record")
    size = 0
    for record in records:
        if not 0 < len(record) <= 0xFFFF:
            raise WireError("record does not fit a u16 length")
        size += _LENGTH.size + len(record)
    if _NUMBER.size + size > MAX_DATAGRAM:
        raise WireError(f"request of {_NUMBER.size + size} bytes is over the limit of {MAX_DATAGRAM}")
    return size


def pack_request(number: int, records: Sequence[bytes]) -> bytes:
    """One datagram. Raises WireError as `packed_size`."""
    packed_size(records)
    parts = [_NUMBER.pack(number)]
    for record in records:
        parts += (_LENGTH.pack(len(record)), record)
    return b"".join(parts)


def request_number(datagram: bytes) -> int:
    """The number to answer to. Raises WireError if the datagram has none."""
    if len(datagram) < _NUMBER.size:
        raise WireError("no request number")
    return int(_NUMBER.unpack_from(datagram)[0])


def request_records(datagram: bytes) -> list[bytes]:
    """The records of a request. Raises WireError if the lengths do not add up."""
    if len(datagram) > MAX_DATAGRAM:
        raise WireError("over the limit of a datagram")
    records: list[bytes] = []
    at, end = _NUMBER.size, len(datagram)
    while at < end:
        if at + _LENGTH.size > end:
            raise WireError("ends inside a length")
        start = at + 2
        at = start + (datagram[start - 2] << 8 | datagram[start - 1])
        if at == start or at > end:
            raise WireError("ends inside a record")
        records.append(datagram[start:at])
    if not records:
        raise WireError("no records")
    return records
