"""The head file: which (size, root) is known to be durable.

Two slots of one sector each, written in turn, so that a torn write leaves the other. A slot:
"exeathd1" | u64 size | 32 bytes root | u64 time | u32 crc32 of all that, then zeros. The slot of the
larger size counts.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Final

from exeat.ledger.merkle import HASH

if TYPE_CHECKING:
    from pathlib import Path

SLOT: Final = 512  # bytes
_MAGIC: Final = b"exeathd1"
_BODY: Final = struct.Struct(f">8sQ{HASH}sQ")


def pack(size: int, root: bytes, now_ns: int) -> bytes:
    body = _BODY.pack(_MAGIC, size, root, now_ns)
    return (body + zlib.crc32(body).to_bytes(4, "big")).ljust(SLOT, b"\0")


def slots(directory: Path) -> list[tuple[int, bytes] | None]:
    """`(size, root)` of both slots; None for one that is not valid."""
    try:
        data = (directory / "head").read_bytes()
    except FileNotFoundError:
        data = b""
    return [_unpack(data[start : start + _BODY.size + 4]) for start in (0, SLOT)]


def read(directory: Path) -> tuple[int, bytes] | None:
    """`(size, root)` of the newer valid slot; None if there is none."""
    return max((slot for slot in slots(directory) if slot is not None), default=None)


def _unpack(slot: bytes) -> tuple[int, bytes] | None:
    body, crc = slot[: _BODY.size], slot[_BODY.size :]
    if zlib.crc32(body).to_bytes(4, "big") != crc:
        return None
    magic, size, root, _ = _BODY.unpack(body)
    return (size, root) if magic == _MAGIC else None
