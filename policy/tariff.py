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

    def of(self, wire: Wire, header: int) -> int:
        """Nano-USD for a flow, rounded up. `header` is bytes a segment."""
        out = (wire.bytes_out + header * wire.segs_out) * self.out_per_gb
        into = (wire.bytes_in + header * wire.segs_in) * self.in_per_gb
        return min(_MOST, self.per_flow + -(-(out + into) // _GB))

    def reserve(self, count: int) -> int:
        """Nano-USD that `count` bytes of payload, in either direction, may come to; headers aside."""
        return -(-count * max(self.out_per_gb, self.in_per_gb) // _GB)

    def affords(self, nano_usd: int) -> int:
        """How many bytes of payload, in either direction, may pass for that: `reserve` of them is no more."""
        dearest = max(self.out_per_gb, self.in_per_gb)
        return max(0, nano_usd) * _GB // dearest if dearest else _MOST * (nano_usd > 0)


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

    def price(self, host: str | Address, address: Address | None, port: int) -> Price | None:
        """The one for this destination; None where there is none."""
        return next((each for each in self.prices if each.reaches(host, address, port)), None)

    def cost(self, host: str | Address, address: Address | None, port: int, wire: Wire) -> int | None:
        """Nano-USD, rounded up; None where no price is for the destination.

        Payload and a header for each segment; what was sent again is not known by bytes and left out.
        """
        price = self.price(host, address, port)
        return None if price is None else price.of(wire, header_bytes(address))


def header_bytes(address: Address | None) -> int:
    """Of a segment to or from this address."""
    return HEADER_6 if address is not None and address.family == 6 else HEADER_4
