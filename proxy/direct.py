"""Flows that go past the proxy, judged and paid for here all the same.

Control opens pinholes for leases `via: direct`. Before it opens one, and each second while one is open, it
asks what policy says now and tells what has passed; leases, budgets and the kill switch are looked at in
one place, whichever way the bytes take. docs/architecture.md, hub.sock, `direct`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from exeat.policy.model import Address, Decision, Request, Subject, Verdict
from exeat.policy.names import parse_host
from exeat.policy.tariff import Wire
from exeat.policy.usage import lease_spent

if TYPE_CHECKING:
    from exeat.ledger.ipc import Message
    from exeat.policy.tariff import Price
    from exeat.proxy.gateway import Gateway

MAX_RESERVED: Final = 1 << 50  # bytes, where neither lease nor budget says less
_PAID: Final = ("budget.", "posture.", "ip_literal.")
LEAST: Final = 2048  # bytes: less is no conversation
FORGOTTEN_S: Final = 60.0  # control asks every second; after so long a flow counts as having moved all


@dataclass(eq=False)
class _Held:
    """A flow that counts here: by whom, how much of its reservation is charged, and when it was heard of.

    Its bytes are those of IP packets: headers are in them. `paid` is in nano-USD.
    """

    subject: Subject
    decision: Decision
    reserved: int
    price: Price | None
    spent: str  # the reason code once all of that has passed: a lease's bytes are used up, or a budget
    out: int = 0
    into: int = 0
    heard: float = 0.0
    paid: int = 0

    @property
    def rest(self) -> int:
        return max(0, self.reserved - self.out - self.into)

    @property
    def promised(self) -> tuple[int, int]:
        """Bytes that may still pass, and what they may cost in nano-USD."""
        return self.rest, self.price.reserve(self.rest) if self.price is not None else 0


class DirectDesk:
    """Answers control's `direct` messages."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._held: dict[str, _Held] = {}

    def asked(self, message: Message) -> Message | None:
        """The answer; None where none is wanted."""
        self._drop_forgotten()
        flow = str(message["flow"])
        held = self._held.get(flow)
        if held is not None:
            self._charge(held, int(message["out"]), int(message["in"]))
        if message.get("over"):
            if held is not None:
                self._release(flow, held)
            return None
        lease, request = str(message["lease"]), _request(message)
        decision = self._gateway.decide(request)
        reason = self._why_not(decision, lease, paid=held is not None)
        if not reason and held is None:
            # A flow that another process began has been charged to it: control begins it anew.
            reason = (
                self._begin(flow, request, decision, message) if message.get("opens") else "policy.changed"
            )
        return self._said(message, request.subject, reason)

    def _why_not(self, decision: Decision, lease: str, *, paid: bool) -> str:
        gateway = self._gateway
        over = gateway.lease_over(lease)
        if over:
            return over
        if paid:
            # What it may move is reserved: used-up budgets and lease uses are nothing to it any more, and
            # neither is what the posture says of those without a lease.
            reserved = decision.verdict is not Verdict.DENY or decision.reason.startswith(_PAID)
            return "" if reserved else decision.reason
        known = gateway.snapshot.leases.get(lease) if gateway.snapshot is not None else None
        if known is not None and lease_spent(known, gateway.spending.usage):
            return "lease.exhausted"
        if decision.verdict is Verdict.DENY:
            return decision.reason
        return "" if decision.direct and lease in decision.matched else "policy.changed"

    def _begin(self, flow: str, request: Request, decision: Decision, message: Message) -> str:
        spending, subject = self._gateway.spending, request.subject
        decision = _charged_to(decision, str(message["lease"]))
        tariff = self._gateway.settings.tariff if decision.budgets else None
        address = request.resolved[0] if request.resolved else None
        price = None if tariff is None else tariff.price(request.host, address, request.port)
        found = spending.allowance(subject, decision, price)
        free = MAX_RESERVED if found is None else found.free
        reserved = min(free // max(1, int(message.get("share", 1))), MAX_RESERVED)
        if reserved < LEAST:
            return found.reason if found is not None else "internal.error"
        spending.charge_open(subject.project, decision)
        spent = found.reason if found is not None else ""
        held = _Held(subject, decision, reserved, price, spent, heard=self._gateway.reactor.now())
        spending.promise(subject.project, decision, *held.promised)
        self._held[flow] = held
        self._pay(held)
        return ""

    def _pay(self, held: _Held) -> None:
        cost = held.price.of(Wire(held.out, held.into), 0) if held.price is not None else 0
        more, held.paid = cost - held.paid, cost
        self._gateway.spending.charge_cost(held.subject.project, held.decision, more)

    def _charge(self, held: _Held, out: int, into: int) -> None:
        held.heard = self._gateway.reactor.now()
        up, down, (bytes_before, nano_before) = out - held.out, into - held.into, held.promised
        if up < 0 or down < 0 or not (up or down):
            return
        held.out, held.into = out, into
        self._gateway.spending.charge_bytes(held.subject.project, held.decision, up, down)
        self._pay(held)
        rest, nano = held.promised
        change = rest - bytes_before, nano - nano_before
        self._gateway.spending.promise(held.subject.project, held.decision, *change)

    def _release(self, flow: str, held: _Held) -> None:
        rest, nano = held.promised
        self._gateway.spending.promise(held.subject.project, held.decision, -rest, -nano)
        del self._held[flow]

    def _drop_forgotten(self) -> None:
        now = self._gateway.reactor.now()
        for flow, held in [item for item in self._held.items() if now - item[1].heard > FORGOTTEN_S]:
            self._charge(held, held.out + held.rest, held.into)
            self._release(flow, held)

    def _said(self, message: Message, subject: Subject, reason: str) -> dict[str, Any]:
        snapshot = self._gateway.snapshot
        document = snapshot.document_for(subject) if snapshot is not None else None
        held = self._held.get(str(message["flow"]))
        return {
            "t": "direct.said",
            "request": message["request"],
            "reason": reason,
            "reserved": held.reserved if held is not None else 0,
            "spent": held.spent if held is not None else "",
            "generation": snapshot.generation if snapshot is not None else 0,
            "policy": document.digest if document is not None else "",
            "posture": str(document.posture) if document is not None else "",
        }


def _charged_to(decision: Decision, lease: str) -> Decision:
    """Of several leases that allow it, the one that opened the pinhole pays."""
    return Decision(
        decision.verdict, decision.reason, lease, decision.matched, decision.budgets, lease, direct=True
    )


def _request(message: Message) -> Request:
    """Raises KeyError, TypeError or ValueError for what is no request."""
    addresses = tuple(Address(int(family), int(value)) for family, value in message["addresses"])
    subject = Subject(**message["subject"])
    return Request(
        subject, parse_host(str(message["host"])), int(message["port"]), str(message["proto"]), addresses
    )
