"""Answers that must not be used before the way is open.

Where a lease lets a member go past the proxy, the addresses of its name are told to control before they
are answered, and the answer waits until the host's table has them: for a moment only, because without
the pinhole they lead nowhere.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from exeat.ledger.ipc import Message
    from exeat.ledger.reactor import Reactor
    from exeat.policy.model import Address, Subject
    from exeat.policy.snapshot import Snapshot

PATIENCE_S: Final = 1.0
MAX_WAITING: Final = 256


class Ahead:
    """`send` tells control, False if it cannot be told now."""

    def __init__(
        self, reactor: Reactor, snapshot: Callable[[], Snapshot | None], send: Callable[[Message], bool]
    ) -> None:
        self._reactor, self._snapshot, self._send = reactor, snapshot, send
        self._waiting: dict[int, Callable[[], None]] = {}
        self._key = 0

    def answer(
        self, subject: Subject, host: str, addresses: Sequence[tuple[Address, int]], then: Callable[[], None]
    ) -> None:
        """Call `then` once `addresses` (with their seconds to live) are open to `subject`, or at once
        where nothing opens them, or after PATIENCE_S."""
        snapshot = self._snapshot()
        if subject.job or snapshot is None or not snapshot.goes_direct(subject, host):
            then()
            return
        self._key += 1
        told = len(self._waiting) < MAX_WAITING and self._send(_pins(self._key, subject, host, addresses))
        if not told:
            then()
            return
        self._waiting[self._key] = then
        self._reactor.call_later(PATIENCE_S, partial(self._done, self._key))

    def heard(self, message: Message) -> None:
        """Control's `pins.set`."""
        self._done(message.get("key"))

    def _done(self, key: Any) -> None:
        then = self._waiting.pop(key, None) if type(key) is int else None
        if then is not None:
            then()


def _pins(key: int, subject: Subject, host: str, addresses: Sequence[tuple[Address, int]]) -> Message:
    return {
        "t": "pins",
        "key": key,
        "subject": subject._asdict(),
        "host": host,
        "addresses": [
            {"family": address.family, "value": str(address.value), "ttl": ttl} for address, ttl in addresses
        ],
    }
