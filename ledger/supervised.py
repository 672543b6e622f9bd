"""What a process tells whoever started it: that it serves, and that its loop still turns.

The protocol of sd_notify(3) and sd_watchdog_enabled(3); `exeat up` speaks the first half of it, too.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable


class Clock(Protocol):
    """A loop that calls back later: `Reactor`, or asyncio's."""

    def call_later(self, delay: float, callback: Callable[[], None], /) -> object: ...


def notify_ready() -> None:
    """Say that we serve (READY=1). Nothing, where nobody asked to be told."""
    _tell(b"READY=1")


def beat(clock: Clock) -> None:
    """Say from this loop that it turns (WATCHDOG=1), twice in each time that systemd allows.

    A loop that is stuck says nothing, and systemd ends the process and starts it again. Without
    `WatchdogSec=` nothing is said.
    """
    every = interval()
    if every is None:
        return

    def again() -> None:
        clock.call_later(every, again)
        _tell(b"WATCHDOG=1")

    again()


def interval() -> float | None:
    """Seconds between two signs of life, half of what is allowed; None where none are wanted of us."""
    allowed, who = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not allowed.isascii() or not allowed.isdigit() or int(allowed) == 0:
        return None
    if who and who != str(os.getpid()):
        return None
    return int(allowed) / 2_000_000


def _tell(words: bytes) -> None:
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(words, address)
