"""Sets of ports as integers: bit p is port p. Set algebra on 65535 ports is then one machine operation
per word, which is what makes comparing whole policies cheap.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from exeat.policy.scopes import Ports

ALL_PORTS = (1 << 65536) - 2  # ports 1 to 65535
NO_PORTS = 0


@lru_cache(maxsize=4096)
def mask_of(ports: Ports) -> int:
    mask = 0
    for low, high in ports:
        mask |= (1 << (high + 1)) - (1 << low)
    return mask


def ports_mask(ports: Iterable[int]) -> int:
    mask = 0
    for port in ports:
        mask |= 1 << port
    return mask


def lowest(mask: int) -> int:
    """The smallest port of a set that is not empty."""
    return (mask & -mask).bit_length() - 1


def ranges_of(mask: int) -> Ports:
    """The set as sorted ranges that do not touch."""
    out: list[tuple[int, int]] = []
    while mask:
        low = lowest(mask)
        length = lowest(~(mask >> low))  # the first gap above `low`
        out.append((low, low + length - 1))
        mask &= -1 << (low + length)
    return tuple(out)
