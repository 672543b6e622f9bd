"""The jails whose connections this process accepts: the socket a client came in by is who it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import socket

    from exeat.policy.model import Subject
    from exeat.proxy.associate import UdpPort
    from exeat.proxy.flow import Flow
    from exeat.proxy.refusals import Book
    from exeat.proxy.udp import UdpFlow

MAX_CONNECTIONS: Final = 256  # per jail, refused ones that are still being told so included
DEFAULT_HOLD_MS: Final = 2500
MAX_HOLD_MS: Final = 55_000
TRANSPARENT: Final[tuple[str, ...]] = ("trans4", "trans6")
UDP: Final[tuple[str, ...]] = ("udp4", "udp6")
DOORS: Final[tuple[str, ...]] = ("proxy4", "proxy6", "proxyu", "socks4", "socks6", *TRANSPARENT)


@dataclass(eq=False, slots=True)
class Jail:
    """`hold_s` None: as long as the policy in force says."""

    name: str
    subject: Subject
    hold_s: float | None
    listeners: dict[str, socket.socket]
    limit: int = MAX_CONNECTIONS
    udp: dict[str, UdpPort] = field(default_factory=dict)  # for associations
    flows: set[Flow | UdpFlow] = field(default_factory=set)
    parked: int = 0
    closing: int = 0  # closes and refusals not yet durable, and one for all its sums of refusals
    refusals: Book | None = None
    removed: bool = False

    @property
    def quiet(self) -> bool:
        return not self.flows and not self.closing


def hold_seconds(hold_ms: object) -> float:
    """How long an ask is held: the project's choice within the limits, in seconds."""
    if type(hold_ms) is not int or hold_ms < 0:
        hold_ms = DEFAULT_HOLD_MS
    return min(hold_ms, MAX_HOLD_MS) / 1000
