"""What has been spent: counters of budgets and leases, without a clock of their own.

Budget windows are aligned to multiples of their length since 1970. When time steps back into an
earlier window the counters stay as they are: nothing is handed out twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from exeat.policy.index import ScopeIndex

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from exeat.policy.leases import Lease
    from exeat.policy.rules import Budget


class Counters(Protocol):
    """What `decide` reads. Anything but an int of at least 0 is taken as corrupt state."""

    def used(self, project: str, budget: str, counter: str, window_ms: int, now_ms: int) -> object: ...
    def lease_uses(self, lease_id: str) -> int: ...
    def lease_bytes(self, lease_id: str) -> int: ...


_Key = tuple[str, str, str]  # project, budget, counter


class Usage:
    """Counters in memory. Not thread-safe: it belongs to the loop that charges it."""

    def __init__(self) -> None:
        self._windows: dict[_Key, set[int]] = {}
        self._spent: dict[tuple[_Key, int], tuple[int, int]] = {}  # window start, amount
        self._uses: dict[str, int] = {}
        self._bytes: dict[str, int] = {}

    def define(self, project: str, budgets: Mapping[str, Budget]) -> None:
        """Tell which windows the budgets of a project count in. Cheap and idempotent."""
        for budget in budgets.values():
            for limit in budget.limits:
                self._windows.setdefault((project, budget.name, limit.counter), set()).add(limit.window_ms)

    def charge(
        self,
        project: str,
        budgets: Iterable[str],
        *,
        now_ms: int,
        connections: int = 0,
        bytes_up: int = 0,
        bytes_down: int = 0,
        lookups: int = 0,
        usd: int = 0,
    ) -> None:
        """Add to every defined window of the named budgets. `usd` is micro-dollars. Amounts >= 0."""
        amounts = {
            "connections": connections,
            "bytes_up": bytes_up,
            "bytes_down": bytes_down,
            "bytes": bytes_up + bytes_down,
            "lookups": lookups,
            "usd": usd,
        }
        if min(connections, bytes_up, bytes_down, lookups, usd) < 0:
            raise ValueError("a charge cannot be negative")
        spent = [(counter, amount) for counter, amount in amounts.items() if amount]
        for budget in budgets:
            for counter, amount in spent:
                self._add((project, budget, counter), amount, now_ms)

    def _add(self, key: _Key, amount: int, now_ms: int) -> None:
        for window_ms in self._windows.get(key, ()):
            start = now_ms - now_ms % window_ms
            known, before = self._spent.get((key, window_ms), (start, 0))
            if start > known:
                known, before = start, 0
            self._spent[key, window_ms] = (known, before + amount)

    def used(self, project: str, budget: str, counter: str, window_ms: int, now_ms: int) -> int:
        start, amount = self._spent.get(((project, budget, counter), window_ms), (0, 0))
        return 0 if now_ms - now_ms % window_ms > start else amount

    def charge_lease(self, lease_id: str, *, bytes: int = 0, uses: int = 0) -> None:  # noqa: A002
        if bytes < 0 or uses < 0:
            raise ValueError("a charge cannot be negative")
        self._bytes[lease_id] = self._bytes.get(lease_id, 0) + bytes
        self._uses[lease_id] = self._uses.get(lease_id, 0) + uses

    def lease_uses(self, lease_id: str) -> int:
        return self._uses.get(lease_id, 0)

    def lease_bytes(self, lease_id: str) -> int:
        return self._bytes.get(lease_id, 0)

    def restore(self, spent: Mapping[str, Any]) -> None:
        """Take over what was spent before this table existed (the hub's `spent` message).

        Budgets must have been defined; rows are in order of time. Raises ValueError or KeyError.
        """
        for row in spent["rows"]:
            amounts = {name: row[name] for name in row.keys() - {"project", "budgets", "at_ms"}}
            self.charge(row["project"], row["budgets"], now_ms=row["at_ms"], **amounts)
        for used in spent["leases"]:
            self.charge_lease(used["lease"], bytes=used["bytes"], uses=used["uses"])

    def forget_lease(self, lease_id: str) -> None:
        """Drop the counters of a lease that has ended, so that the table stays small."""
        self._bytes.pop(lease_id, None)
        self._uses.pop(lease_id, None)


def lease_spent(lease: Lease, counters: Counters) -> bool:
    """Whether bytes or uses are exhausted: used >= limit."""
    if lease.max_uses is not None and counters.lease_uses(lease.id) >= lease.max_uses:
        return True
    return lease.max_bytes is not None and counters.lease_bytes(lease.id) >= lease.max_bytes


_NO_LEASES: ScopeIndex[Lease] = ScopeIndex(())


@dataclass(frozen=True, slots=True)
class Overlay:
    """What changes faster than the policy: leases, revocations, the fence epoch, and use."""

    leases: ScopeIndex[Lease] = _NO_LEASES
    revoked: frozenset[str] = frozenset()
    min_epoch: int = 0
    usage: Counters = field(default_factory=Usage)

    @classmethod
    def of(
        cls,
        leases: Iterable[Lease],
        *,
        usage: Counters | None = None,
        revoked: Iterable[str] = (),
        min_epoch: int = 0,
    ) -> Overlay:
        return cls(ScopeIndex(leases), frozenset(revoked), min_epoch, usage or Usage())
