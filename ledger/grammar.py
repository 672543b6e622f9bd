"""The verifier's quick look at a record: the usual ones by a grammar, any by the parser. Pure.

As `ledger.verify`, it shares nothing with the writer: a regular expression per number of fields,
made from docs/formats/ledger.md. What it accepts the parser accepts; tests hold them together.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Final

from exeat.ledger.verify_offline import KINDS, TYPES, parse_record


def brief(data: bytes) -> tuple[str, tuple[bytes, int, int, int]]:
    """(kind, (flow, bytes_out, bytes_in, reserved)). Raises ValueError unless `data` is a record."""
    count = data[1] if data[:1] == b"\x98" else (data[0] & 31 if data else 0)
    found = _grammar(count).fullmatch(data) if 8 <= count <= len(_ITEMS) + 2 else None
    if found is None:
        kind, fields = parse_record(data)
        return kind, (fields[2], fields[3], fields[4], fields[5])
    number, flow, out, into, reserved = found.groups()
    return KINDS[number[0]], (flow[1:], _uint(out), _uint(into), _uint(reserved))


def _uint(item: bytes) -> int:
    return item[0] if len(item) == 1 else int.from_bytes(item[1:], "big")


def _string(major: int, content: bytes, longest: int) -> bytes:
    """A pattern for strings of up to `longest` bytes of `content`, each with its length before it."""
    short = [b"%s%s{%d}" % (re.escape(bytes((major + n,))), content, n) for n in range(24)]
    long = [b"%s%s{%d}" % (re.escape(bytes((n,))), content, n) for n in range(24, longest + 1)]
    return b"(?:%s|%s(?:%s))" % (b"|".join(short), re.escape(bytes((major + 24,))), b"|".join(long))


_NUMBER: Final = rb"(?:[\x00-\x17]|\x18[\x18-\xff]|\x19(?!\x00).{2}|\x1a(?!\x00\x00).{4}|\x1b(?!\x00{4}).{8})"
_BYTES: Final = _string(0x40, b".", 32)
_ASCII: Final = _string(0x60, rb"[ -~]", 64)
_FLOW: Final = rb"(?:\x40|\x50.{16})"
_DEST: Final = b"(?:\xf6|\x85%s%s%s%s%s)" % (_ASCII, _NUMBER, _ASCII, _BYTES, _ASCII)
_ITEMS: Final = tuple({"u": _NUMBER, "b": _BYTES, "t": _ASCII, "d": _DEST}[kind] for kind in TYPES)
_DEFAULT: Final = {"u": rb"\x00", "b": rb"\x40", "t": rb"\x60", "d": rb"\xf6"}
_TOLD: Final = frozenset({3, 4, 5})  # the three counts


@cache
def _grammar(count: int) -> re.Pattern[bytes]:
    """Records of `count` items that are ASCII, without long texts, of kinds that need not be known."""
    head = bytes((0x80 | count,)) if count < 24 else bytes((0x98, count))
    used = count - 2
    items = [
        b"(%s)" % _FLOW if at == 2 else b"(%s)" % item if at in _TOLD else item
        for at, item in enumerate(_ITEMS[:used])
    ]
    items.insert(-1, b"(?!%s\\Z)" % _DEFAULT[TYPES[used - 1]])  # a default at the end is left out
    return re.compile(re.escape(head) + rb"\x01([\x01-\x0f])" + b"".join(items), re.DOTALL)
