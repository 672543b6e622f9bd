"""What flows have used of budgets and leases, and what has been promised to them.

Limits on the sum of both directions (a lease's `max_bytes`, a budget's `bytes`) are exact: what
one flow has reserved and not yet used is not offered to another. Limits on one direction
(`bytes_up`, `bytes_down`) cannot be held by a reservation that covers both; near them, flows get
the smallest step, so each overshoots by at most that.

Money (`usd`) is what flows are estimated to cost. It is reserved as the dearer direction of the
flow's payload; the headers of segments are charged as they pass, so a flow overshoots by those of
about a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from exeat.ledger.tally import Tally
from exeat.policy.usage import Usage
from exeat.proxy.gate import FIRST_STEP

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from exeat.policy.model import Decision, Subject
    from exeat.policy.rules import Limit
    from exeat.policy.snapshot import Snapshot
    from exeat.policy.tariff import Price

_EXACT: Final = "bytes"
_DIRECTED: Final = frozenset({"bytes_up", "bytes_down"})
_MONEY: Final = "usd"  # counted in micro-USD
_NANO: Final = 1000  # nano-USD in one of them


class Allowance(NamedTuple):
    """`free`: bytes that may be promised now. `left`: before subtracting what others hold."""

    free: int
    left: int
    reason: str  # the reason code once nothing is left


class Spending:
    """One table for all flows of this process."""

    def __init__(
        self, snapshot: Callable[[], Snapshot | None], now_ms: Callable[[], int], tally: Tally | None = None
    ) -> None:
        self.usage = Usage()
        self._tally = tally or Tally()
        self._snapshot = snapshot
        self._now_ms = now_ms
        self._promised: dict[tuple[str, str], int] = {}  # bytes
        self._promised_nano: dict[tuple[str, str], int] = {}  # nano-USD
        self._uncharged: dict[tuple[str, tuple[str, ...]], int] = {}  # nano-USD, less than a micro-USD each
        self._ended: set[str] = set()  # leases whose counters are of no use any more

    def ended(self, leases: Iterable[str]) -> None:
        """Control says that these will never be in force again."""
        self._ended.update(leases)

    def forget_ended(self, used: Collection[str]) -> None:
        """Drop the counters of ended leases, but of those in `used` and those that a snapshot still has."""
        snapshot = self._snapshot()
        if not self._ended or snapshot is None:
            return
        over = {
            name
            for name in self._ended
            if name not in used and name not in snapshot.leases and ("", name) not in self._promised
        }
        self._ended -= over
        for name in over:
            self.usage.forget_lease(name)

    def charge_open(self, project: str, decision: Decision) -> None:
        if decision.budgets:
            self.usage.charge(project, decision.budgets, connections=1, now_ms=self._now_ms())
        if decision.lease:
            self.usage.charge_lease(decision.lease, uses=1)

    def charge_bytes(self, project: str, decision: Decision, up: int, down: int) -> None:
        traffic = self._tally.traffic(project)
        traffic.out += up
        traffic.back += down
        if decision.budgets:
            self.usage.charge(project, decision.budgets, bytes_up=up, bytes_down=down, now_ms=self._now_ms())
        if decision.lease:
            self.usage.charge_lease(decision.lease, bytes=up + down)

    def charge_cost(self, project: str, decision: Decision, nano_usd: int) -> None:
        """A flow has cost that much more. Small sums add up: no budget is charged for a rounding."""
        if not decision.budgets:
            return
        key = (project, decision.budgets)
        micro, self._uncharged[key] = divmod(self._uncharged.get(key, 0) + nano_usd, _NANO)
        self.usage.charge(project, decision.budgets, usd=micro, now_ms=self._now_ms())

    def promise(self, project: str, decision: Decision, change: int, nano_usd: int = 0) -> None:
        """A flow holds `change` more (or less) bytes that it may pass and has not, worth `nano_usd`."""
        for key in _keys(project, decision):
            _add(self._promised, key, change)
            if nano_usd:
                _add(self._promised_nano, key, nano_usd)

    def money_left(self, subject: Subject, decision: Decision) -> int | None:
        """Nano-USD until the first budget is used up, None where none counts money."""
        now_ms = self._now_ms()
        return min(
            (
                self._money(subject, budget, limit, now_ms)
                for budget, limit in self._limits(subject, decision)
                if limit.counter == _MONEY
            ),
            default=None,
        )

    def _money(self, subject: Subject, budget: str, limit: Limit, now_ms: int) -> int:
        used = self.usage.used(subject.project, budget, limit.counter, limit.window_ms, now_ms)
        return _left(limit.amount, used) * _NANO

    def allowance(self, subject: Subject, decision: Decision, price: Price | None = None) -> Allowance | None:
        """The tightest limit on bytes, None when there is none. `price` is what they cost."""
        if not decision.lease and not decision.budgets:
            return None
        found: list[Allowance] = []
        snapshot = self._snapshot()
        lease = snapshot.leases.get(decision.lease) if snapshot and decision.lease else None
        if lease is not None and lease.max_bytes is not None:
            left = _left(lease.max_bytes, self.usage.lease_bytes(lease.id))
            found.append(self._free(("", lease.id), left, "lease.exhausted"))
        now_ms = self._now_ms()
        for budget, limit in self._limits(subject, decision):
            used = self.usage.used(subject.project, budget, limit.counter, limit.window_ms, now_ms)
            left = _left(limit.amount, used)
            if limit.counter == _EXACT:
                found.append(self._free((subject.project, budget), left, "budget.exceeded"))
            elif limit.counter in _DIRECTED:
                least = max(left, FIRST_STEP) if left > 0 else 0
                found.append(Allowance(least, left, "budget.exceeded"))
            elif limit.counter == _MONEY and price is not None:
                nano = self._money(subject, budget, limit, now_ms)
                free = nano - self._promised_nano.get((subject.project, budget), 0)
                found.append(Allowance(price.affords(free), price.affords(nano), "budget.exceeded"))
        return min(found) if found else None

    def _free(self, key: tuple[str, str], left: int, reason: str) -> Allowance:
        return Allowance(max(0, left - self._promised.get(key, 0)), left, reason)

    def ratios(self) -> Iterator[tuple[str, str, float]]:
        """Project, budget, and how much of it is used up: of its limits the one that is nearest."""
        snapshot, now_ms = self._snapshot(), self._now_ms()
        for project, digest in snapshot.projects.items() if snapshot is not None else ():
            policy = snapshot.policies.get(digest) if snapshot is not None else None
            for name, budget in policy.document.budgets.items() if policy is not None else ():
                used = [
                    self.usage.used(project, name, limit.counter, limit.window_ms, now_ms)
                    / max(1, limit.amount)
                    for limit in budget.limits
                ]
                yield project, name, max(used, default=0.0)

    def _limits(self, subject: Subject, decision: Decision) -> Iterator[tuple[str, Limit]]:
        snapshot = self._snapshot()
        document = snapshot.document_for(subject) if snapshot else None
        if document is None:
            return
        for name in decision.budgets:
            budget = document.budgets.get(name)
            for limit in budget.limits if budget else ():
                yield name, limit


def _left(amount: int, used: object) -> int:
    """What is not spent; nothing where the counter is no count."""
    return amount - used if type(used) is int and used >= 0 else 0


def _add(promised: dict[tuple[str, str], int], key: tuple[str, str], change: int) -> None:
    held = promised.get(key, 0) + change
    if held > 0:
        promised[key] = held
    else:
        promised.pop(key, None)


def _keys(project: str, decision: Decision) -> Iterator[tuple[str, str]]:
    if decision.lease:
        yield ("", decision.lease)
    for name in decision.budgets:
        yield (project, name)
