"""What one flow may still pass and what it has passed: its ledger records, its budgets, its lease.

The ledger hears of bytes before they pass (Gate); budgets are peeked at before and charged after.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from exeat.policy.model import Decision, Request, Verdict, permits
from exeat.policy.tariff import Wire
from exeat.proxy.gate import FIRST_STEP, Gate

if TYPE_CHECKING:
    from collections.abc import Callable

    from exeat.policy.snapshot import Snapshot
    from exeat.policy.tariff import Price
    from exeat.proxy.evidence import Evidence
    from exeat.proxy.gateway import Gateway
    from exeat.proxy.spending import Allowance

PROGRESS_S: Final = 60.0
RETRY_S: Final = 0.25


class Holder(Protocol):
    """The flow that passes the bytes."""

    @property
    def ended(self) -> str:
        """Why it has ended, "" while it has not."""
        ...

    def counts(self) -> tuple[int, int]:
        """Payload bytes (out, in) delivered so far."""
        ...

    def segments(self) -> tuple[int, int]:
        """TCP segments (out, in) on the network's side so far, where anybody counts them."""
        ...

    def granted(self) -> None:
        """More may pass than before."""
        ...

    def end(self, reason: str) -> None: ...


class Account:
    """Of a flow that policy has allowed. `open` first; `stop` once the flow has ended."""

    __slots__ = (
        "_by",
        "_ceiling",
        "_charged",
        "_gateway",
        "_held",
        "_holder",
        "_paid",
        "_price",
        "_progressed",
        "_request",
        "decision",
        "evidence",
        "gate",
    )

    def __init__(
        self, gateway: Gateway, evidence: Evidence, request: Request, decision: Decision, holder: Holder
    ) -> None:
        self.decision = decision
        self.evidence = evidence
        self.gate = Gate(self._reserve)
        self._gateway = gateway
        self._request = request
        self._holder = holder
        self._charged = (0, 0)
        self._by: Snapshot | None = None  # what was in force when the ledger was asked
        self._ceiling = 0  # as promised; the gate's own follows when it is durable
        self._held = 0
        self._price: Price | None = None  # where budgets count what it costs
        self._paid = 0  # nano-USD that are charged
        self._progressed = 0.0

    # -- opening

    def open(self, waiting: int, cookie: int, opened: Callable[[bool], None]) -> str:
        """Ask the ledger for a first reservation, of at least the `waiting` bytes.

        `opened` is told later whether it is durable. A reason code if leases and budgets leave no room:
        then the ledger is not asked.
        """
        self._gateway.spending.charge_open(self._request.subject.project, self.decision)
        if self.decision.budgets:
            self._price = self.evidence.price
            self._pay(Wire(0, 0))
        ceiling = self._affordable(self.gate.first_ceiling(waiting))
        if ceiling < waiting or not ceiling:
            return self._exhausted()
        self._promise(ceiling)
        self._by = self._gateway.snapshot
        record = self.evidence.opening(ceiling, cookie)
        self._gateway.ledger.append([record], partial(self._opened, ceiling, opened))
        return ""

    def _opened(self, ceiling: int, opened: Callable[[bool], None], durable: bool) -> None:
        if durable and not self._holder.ended:
            self._progressed = self._gateway.reactor.woke
            self.gate.grant(ceiling)
        opened(durable)

    # -- reservations and budgets

    def charge(self) -> None:
        """Charge what has passed since the last time."""
        out, back = self._holder.counts()
        up, down = out - self._charged[0], back - self._charged[1]
        if up or down:
            self._charged = (out, back)
            project = self._request.subject.project
            self._gateway.spending.charge_bytes(project, self.decision, up, down)
            if self._price is not None:
                self._pay(Wire(out, back, *self._holder.segments()))
            self._promise(self._ceiling)

    def _pay(self, wire: Wire) -> None:
        """Charge what the flow costs up to here and is not charged yet."""
        cost = self.evidence.cost(wire) if self._price is not None else None
        if cost is not None and cost > self._paid:
            more, self._paid = cost - self._paid, cost
            self._gateway.spending.charge_cost(self._request.subject.project, self.decision, more)

    @property
    def overspent(self) -> bool:
        """Whether the money of some budget is gone. Headers cost, too, and are not reserved."""
        if self._price is None:
            return False
        left = self._gateway.spending.money_left(self._request.subject, self.decision)
        return left is not None and left <= 0

    def _promise(self, ceiling: int) -> None:
        """Tell the others how much of `ceiling` (0: it is over) is held here and not used yet."""
        self._ceiling = ceiling
        if not self.decision.lease and not self.decision.budgets:
            return  # nobody counts
        held = max(0, ceiling - sum(self._charged))
        money = self._price.reserve(held) - self._price.reserve(self._held) if self._price is not None else 0
        self._gateway.spending.promise(self._request.subject.project, self.decision, held - self._held, money)
        self._held = held

    def _affordable(self, ceiling: int) -> int:
        """The part of a wished ceiling that leases and budgets allow now."""
        found = self._allowance()
        if found is None:
            return ceiling
        # Near a limit, take a share only: others may be running on the same lease.
        share = min(found.free, max(FIRST_STEP, found.free // 4))
        return min(ceiling, self._ceiling + share)

    def _reserve(self, ceiling: int) -> None:
        """Gate's question. Called while bytes pass: whatever ends the flow happens later."""
        self.charge()
        ceiling = self._affordable(ceiling)
        if ceiling > self.gate.reserved:
            self._promise(ceiling)
            record = self.evidence.reserve(ceiling, *self._holder.counts())
            self._gateway.ledger.append([record], partial(self._reserved, ceiling))
        elif self.gate.room > 0:
            self.gate.exhaust()
        else:
            self._gateway.reactor.call_soon(self._out_of_budget)

    def _reserved(self, ceiling: int, durable: bool) -> None:
        if self._holder.ended:
            return
        if not durable:
            self._gateway.reactor.call_later(RETRY_S, self._retry)
            return
        self.gate.grant(ceiling)
        self._holder.granted()

    def fits(self, count: int) -> bool:
        """Whether a datagram of so many bytes may pass now. If it never will, that ends the flow."""
        if count <= self.gate.room:
            return True
        if self.gate.last:
            self._gateway.reactor.call_soon(partial(self._holder.end, self._exhausted()))
        return False

    def _retry(self) -> None:
        if not self._holder.ended:
            self.gate.retry()

    def _out_of_budget(self) -> None:
        """All reserved bytes are used, none can be had: over, unless others still hold some."""
        if self._holder.ended:
            return
        found = self._allowance()
        undelivered = self.gate.taken - sum(self._holder.counts())
        if found is not None and found.left <= undelivered:
            self._holder.end(found.reason)
        else:
            self._gateway.reactor.call_later(RETRY_S, self._retry)

    def _allowance(self) -> Allowance | None:
        return self._gateway.spending.allowance(self._request.subject, self.decision, self._price)

    def _exhausted(self) -> str:
        found = self._allowance()
        return found.reason if found is not None else "budget.exceeded"

    # -- what the gateway's sweeps ask

    def progress(self, now: float) -> None:
        """Once a second: a record for a flow that lasts."""
        self.evidence.rest()
        if now - self._progressed >= PROGRESS_S:
            self._progressed = now
            record = self.evidence.progress(self.gate.reserved, *self._holder.counts())
            self._gateway.ledger.append([record], _whatever)

    def resume(self) -> bytes:
        return self.evidence.resume(self.gate.reserved, *self._holder.counts())

    def confirm(self) -> None:
        """The ledger took its time over `open`: what was allowed then may have ended since.

        To be asked once the flow is live and before its first byte passes.
        """
        reason = self._gateway.lease_over(self.decision.lease) if self.decision.lease else ""
        if reason:
            self._holder.end(reason)
        elif self._by is not self._gateway.snapshot:
            self.recheck()
        self._by = None

    def recheck(self) -> None:
        """The snapshot changed: does it still allow what runs here?"""
        if self._holder.ended:
            return
        decision = self._gateway.decide(self._request)
        if not self.holds(decision):
            self._holder.end("policy.changed")

    def holds(self, decision: Decision) -> bool:
        """Whether this flow may go on though `decision` is what a new one would get now.

        Used-up budgets and lease uses are judged where bytes are reserved, not here: the
        connection being judged has been paid for.
        """
        if decision.reason.startswith("budget."):
            return True
        if self.decision.lease:
            return decision.verdict is not Verdict.DENY or decision.reason.startswith("posture.")
        return decision.allowed and permits(decision, self.evidence.speech)

    # -- the end

    def stop(self) -> None:
        """The flow has ended: nothing is held or asked for any more."""
        self.charge()
        self._promise(0)
        self.gate.stop()

    def leave(self, wire: Wire) -> None:
        """The flow's close is on its way and says `wire`: nobody is held on to, so that both can go."""
        self._pay(wire)
        self._holder = _GONE


class _Gone:
    """In the place of a flow that is no more."""

    ended = "gone"

    def counts(self) -> tuple[int, int]:
        return 0, 0

    def segments(self) -> tuple[int, int]:
        return 0, 0

    def granted(self) -> None:
        return

    def end(self, _reason: str) -> None:
        return


_GONE: Final = _Gone()


def _whatever(_durable: bool) -> None:
    """A record that another one stands in for if it is lost."""
