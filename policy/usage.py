"""What has been spent: counters of budgets and leases, without a clock of their own.

Budget windows are aligned to multiples of their length since 1970. When time steps back into an
earlier window the counters stay as they are: nothing is handed out twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from exeat.policy.index import ScopeIndex
from exeat.policy.rules import excepted
from exeat.policy.scopes import port_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from exeat.policy.index import Cell, Entry
    from exeat.policy.leases import Lease
    from exeat.policy.model import Address, Request, Subject
    from exeat.policy.rules import Budget


_Key = tuple[str, str, str]  # project, budget, counter
Peek = tuple[tuple[_Key, int], int]  # key and window in ms, limit


class Counters(Protocol):
    """What `decide` reads. Anything but an int of at least 0 is taken as corrupt state."""

    def used(self, project: str, budget: str, counter: str, window_ms: int, now_ms: int) -> object: ...
    def lease_uses(self, lease_id: str) -> int: ...
    def lease_bytes(self, lease_id: str) -> int: ...


_UNSPENT = (0, 0)


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

    def has_room(self, peeks: Iterable[Peek], now_ms: int) -> bool:
        """Whether `used` is below the limit for each. A negative counter is corrupt: never room."""
        spent = self._spent
        for key, limit in peeks:
            start, amount = spent.get(key, _UNSPENT)
            if not 0 <= amount < limit and (amount < 0 or limit <= 0 or now_ms - now_ms % key[1] <= start):
                return False
        return True

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


class _Bound(NamedTuple):
    """The leases of a project, by the narrowest thing they are bound to."""

    jobs: dict[str, ScopeIndex[Lease]]
    agents: dict[str, ScopeIndex[Lease]]
    free: ScopeIndex[Lease]


class LeaseIndex:
    """Leases by whom they serve and where. Immutable after construction.

    A thousand agents may each hold a lease for the same host; none pays for the others'.
    """

    def __init__(self, leases: Iterable[Lease] = ()) -> None:
        projects: dict[str, list[Lease]] = {}
        self.speaks = False  # whether any of them says what may be spoken
        self._direct: set[tuple[str, str]] = set()
        for lease in leases:
            self.speaks = self.speaks or lease.raw or lease.ech or lease.direct or lease.records
            projects.setdefault(lease.project, []).append(lease)
            if lease.direct:
                self._direct.update((lease.project, scope.name) for scope in lease.to if scope.name)
        self._projects = {project: _bound(found) for project, found in projects.items()}

    def goes_direct(self, subject: Subject, host: str) -> bool:
        """Whether a lease of the subject's project may take `host` past the proxy."""
        return (subject.project, host) in self._direct

    def _cells(self, subject: Subject, host: str | Address) -> list[Cell[Lease]]:
        bound = self._projects.get(subject.project)
        if bound is None:
            return []
        found = [bound.free.cell(host)]
        for index in (bound.jobs.get(subject.job), bound.agents.get(subject.agent)):
            if index is not None:
                found.append(index.cell(host))
        return [cell for cell in found if cell is not None]

    def covering(self, subject: Subject, host: str | Address) -> Iterator[Entry[Lease]]:
        """Scopes of the subject's leases that cover the host, ports and except aside."""
        for cell in self._cells(subject, host):
            yield from cell.entries()

    def matching(self, request: Request, now_ms: int) -> list[Lease]:
        """The active leases that cover the request, by id; revocation and use aside."""
        cells = self._cells(request.subject, request.host)
        if not cells:
            return []
        found = {
            lease.id: lease
            for cell in cells
            for lease, ports, _ in cell.entries()
            if lease.serves(request.subject, request.proto, now_ms)
            and port_in(ports, request.port)
            and not excepted(lease, request.host, request.port)
        }
        return [found[name] for name in sorted(found)]


def _bound(leases: Iterable[Lease]) -> _Bound:
    jobs: dict[str, list[Lease]] = {}
    agents: dict[str, list[Lease]] = {}
    free: list[Lease] = []
    for lease in leases:
        if lease.job:
            jobs.setdefault(lease.job, []).append(lease)
        elif lease.agents:
            for agent in lease.agents:
                agents.setdefault(agent, []).append(lease)
        else:
            free.append(lease)
    return _Bound(
        {job: ScopeIndex(found) for job, found in jobs.items()},
        {agent: ScopeIndex(found) for agent, found in agents.items()},
        ScopeIndex(free),
    )


_NO_LEASES = LeaseIndex()


@dataclass(frozen=True, slots=True)
class Overlay:
    """What changes faster than the policy: leases, revocations, the fence epoch, and use."""

    leases: LeaseIndex = _NO_LEASES
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
        return cls(LeaseIndex(leases), frozenset(revoked), min_epoch, usage or Usage())
