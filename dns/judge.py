"""The policy core as the guard asks it: may this name be looked up, and may it lead there?

Holds the snapshot in force and knows when it is too old. Everything here fails closed: without a
fresh snapshot the answer is a deny, whatever was asked.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from exeat.policy.usage import Usage

from exeat.policy.model import Address, Decision, Request, Subject, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from exeat.policy.snapshot import Snapshot

EXPIRED = Decision(Verdict.DENY, "policy.expired")


class Asker(NamedTuple):
    """Who looks a name up, and for which door. A jail's own lookup names no door: port 0."""

    subject: Subject
    port: int = 0
    proto: str = "tcp"


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


class Judge:
    """Decides lookups under the newest snapshot. `now` is seconds of CLOCK_BOOTTIME."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._snapshot: Snapshot | None = None
        self._fresh_until = 0.0
        self._usage = Usage()

    def replace(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self.refresh()

    def refresh(self) -> None:
        """The snapshot in force was confirmed by control."""
        if self._snapshot is not None:
            self._fresh_until = self._now() + self._snapshot.fresh_ms / 1000

    @property
    def fresh(self) -> bool:
        return self._snapshot is not None and self._now() < self._fresh_until

    @property
    def generation(self) -> int:
        return self._snapshot.generation if self._snapshot is not None else 0

    def knows_lease(self, lease: str) -> bool:
        return self._snapshot is not None and lease in self._snapshot.leases

    def digest(self, subject: Subject) -> str:
        """The digest of the policy that binds `subject`, "" without one."""
        document = self._snapshot.document_for(subject) if self._snapshot is not None else None
        return document.digest if document is not None else ""

    def admit(self, asker: Asker, host: str) -> Decision:
        """May `host` be resolved for this asker at all? Asked before anything leaves the node."""
        if self._snapshot is None or not self.fresh:
            return EXPIRED
        if asker.port:
            return self._decide(asker, host, ())
        return self._snapshot.decide_lookup(asker.subject, host, wall_ms(), self._usage)

    def _decide(self, asker: Asker, host: str, addresses: tuple[Address, ...]) -> Decision:
        if self._snapshot is None:
            return EXPIRED
        request = Request(asker.subject, host, asker.port, asker.proto, addresses)
        return self._snapshot.decide(request, wall_ms(), self._usage)
