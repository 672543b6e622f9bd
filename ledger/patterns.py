"""Regular expressions for runs of encoded fields, for `ledger.quick`: one call instead of a walk. Pure.

What they match is valid; what they do not match may be valid too (longer or other text).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

_LONGEST: Final = 40  # characters of a text; a longer one is walked over
# Unsigned integers of 64 bits in their shortest form (RFC 8949 section 4.2.1).
_NUMBER: Final = rb"(?:[\x00-\x17]|\x19[^\x00].|\x18[\x18-\xff]|\x1a(?!\x00\x00).{4}|\x1b(?!\x00{4}).{8})"


def _text(longest: int) -> bytes:
    """ASCII, with its length before it."""
    parts = [b"%s[ -~]{%d}" % (re.escape(bytes((0x60 + n,))), n) for n in range(min(longest + 1, 24))]
    parts += [b"\\x78%s[ -~]{%d}" % (re.escape(bytes((n,))), n) for n in range(24, longest + 1)]
    return b"(?:%s)" % b"|".join(parts)


def _bytes(cap: int) -> bytes:
    """Nothing, an identity or a hash."""
    parts = [rb"\x40", *[rb"\x50.{16}"] * (cap >= 16), *[rb"\x58\x20.{32}"] * (cap >= 32)]
    return b"(?:%s)" % b"|".join(parts)


def run(fields: Sequence[tuple[type, int]], empty: bytes) -> re.Pattern[bytes]:
    """Fields of these types (int, str, bytes) and caps up to the end of a record, the last not `empty`."""
    items = [
        _NUMBER if kind is int else _text(min(cap, _LONGEST)) if kind is str else _bytes(cap)
        for kind, cap in fields
    ]
    items.insert(-1, b"(?!%s\\Z)" % re.escape(empty))
    return re.compile(b"".join(items), re.DOTALL)
