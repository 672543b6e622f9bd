"""Names for addresses backwards (RFC 1035 section 3.5, RFC 3596 section 2.5): which address one means.

Sans-I/O.
"""

from __future__ import annotations

from typing import Final

from exeat.policy.addresses import parse_v4
from exeat.policy.model import Address

_V4: Final = ".in-addr.arpa"
_V6: Final = ".ip6.arpa"
_NIBBLES: Final = 32
_DIGITS: Final = frozenset("0123456789abcdef")


def reversed_address(host: str) -> Address | None:
    """The address that the canonical `host` stands for; None where it is no whole reverse name."""
    if host.endswith(_V4):
        text = ".".join(reversed(host.removesuffix(_V4).split(".")))
        value = parse_v4(text)
        return None if value is None else Address(4, value)
    if host.endswith(_V6):
        nibbles = host.removesuffix(_V6).split(".")
        if len(nibbles) == _NIBBLES and all(each in _DIGITS for each in nibbles):
            return Address(6, int("".join(reversed(nibbles)), 16))
    return None
