"""What traffic is estimated to cost. Pure, and integers throughout: nano-USD, bytes.

A tariff is a row of prices; the first whose scopes reach a destination counts. The digest of the
whole tariff stands in the record beside the sum, so that a price that changed explains itself.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final, NamedTuple

from exeat.policy.scopes import port_in

if TYPE_CHECKING:
    from exeat.policy.model import Address
    from exeat.policy.scopes import Scope

_GB: Final = 1_000_000_000  # bytes
HEADER_4: Final = 52  # bytes of IPv4 and TCP headers with timestamps, per segment
HEADER_6: Final = 72
_MOST: Final = (1 << 64) - 1  # what a record can hold


class Price(NamedTuple):
    """Nano-USD per GB (10^9 bytes) out of and into this network, and per flow, for some destinations."""

    name: str
    scopes: tuple[Scope, ...]
    out_per_gb: int
    in_per_gb: int
    per_flow: int

    def reaches(self, host: str | Address, address: Address | None, port: int) -> bool:
        """Whether it is for this name, or for the address that was dialled."""
        places = (host,) if address is None else (host, address)
        return any(
            scope.reaches(place) and (scope.ports is None or port_in(scope.ports, port))
            for scope in self.scopes
            for place in places
        )


class Wire(NamedTuple):
    """A flow as the network saw it: payload, and segments of TCP (0 where they are not known)."""

    bytes_out: int
    bytes_in: int
    segs_out: int = 0
    segs_in: int = 0


@dataclass(frozen=True)
class Tariff:
    """All prices, first match first."""

    prices: tuple[Price, ...]

    @cached_property
    def digest(self) -> str:
        """SHA-256 in hex over all that could change a sum."""
        rows = [[price.name, [str(scope) for scope in price.scopes], *price[2:]] for price in self.prices]
        return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()

    def cost(self, host: str | Address, address: Address | None, port: int, wire: Wire) -> int | None:
        """Nano-USD, rounded up; None where no price is for the destination.

        Payload and a header for each segment; what was sent again is not known by bytes and left out.
        """
        price = next((each for each in self.prices if each.reaches(host, address, port)), None)
        if price is None:
            return None
        header = HEADER_6 if address is not None and address.family == 6 else HEADER_4
        out = (wire.bytes_out + header * wire.segs_out) * price.out_per_gb
        into = (wire.bytes_in + header * wire.segs_in) * price.in_per_gb
        return min(_MOST, price.per_flow + -(-(out + into) // _GB))
