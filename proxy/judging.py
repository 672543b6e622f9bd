"""What policy says to the proxy's flows: the snapshot in force, while it is fresh."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple

from exeat.policy.model import Decision, Request, Verdict
from exeat.proxy import jails

if TYPE_CHECKING:
    from exeat.ledger.clock import Clock
    from exeat.ledger.reactor import Reactor
    from exeat.ledger.tally import Tally
    from exeat.policy.model import Address
    from exeat.policy.snapshot import Snapshot
    from exeat.proxy.evidence import Evidence
    from exeat.proxy.guard_client import Question
    from exeat.proxy.jails import Jail
    from exeat.proxy.spending import Spending

STANDS_S: Final = 0.1  # how long the policy's yes may be used again, at most
MAX_LATELY: Final = 1024  # such answers


class _Lately(NamedTuple):
    """A plain yes of a moment ago."""

    decision: Decision
    addresses: tuple[Address, ...]  # for which it was given
    by: Snapshot
    at: float  # reactor time
    at_ms: int  # wall clock


class Judging:
    """The part of the gateway that decides. `snapshot` is None before the first one."""

    def __init__(self, reactor: Reactor, clock: Clock, spending: Spending, tally: Tally) -> None:
        self.reactor = reactor
        self.tally = tally
        self._deciding = tally.time("decision_duration_seconds")
        self.connecting = tally.time("connect_duration_seconds", "ok")
        self.clock = clock
        self.spending = spending
        self.snapshot: Snapshot | None = None
        self._stale_at = 0.0  # reactor time
        self._lately: dict[Question, _Lately] = {}

    def _put_in_force(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._stale_at = self.reactor.now() + snapshot.fresh_ms / 1000
        self._lately.clear()

    def decide(self, request: Request) -> Decision:
        snapshot = self.snapshot
        if snapshot is None:
            return Decision(Verdict.DENY, "policy.unavailable")
        if self.reactor.now() >= self._stale_at:
            return Decision(Verdict.DENY, "policy.expired")
        return snapshot.decide(request, self.clock.now_ms(), self.spending.usage)

    def judge(self, evidence: Evidence, request: Request) -> Decision:
        """Decide, and write down in the flow's evidence by what and how."""
        began = time.perf_counter()
        decision = self.decide(request)
        self._deciding.add(time.perf_counter() - began)
        self.describe_policy(evidence)
        evidence.decision = decision
        evidence.shadow = self.shadow(request, decision)
        return decision

    def judge_known(self, evidence: Evidence, question: Question, request: Request) -> tuple[Decision, float]:
        """As `judge`, of a request that asks nothing but `question`, with the addresses to it at hand.

        What it says to one flow stands for the next ones, as it stands for the flow itself (`stands`):
        therefore also when it was decided, in reactor time.
        """
        lately, now_ms = self._lately.get(question), self.clock.now_ms()
        if (
            lately is not None
            and lately.addresses is request.resolved
            and 0 <= now_ms - lately.at_ms < STANDS_S * 1000
            and self.reactor.woke - lately.at < STANDS_S / 2  # so that it stands until the flow opens, too
            and self.stands(lately.decision, lately.by, lately.at)
        ):
            self.describe_policy(evidence)
            evidence.decision, evidence.shadow = lately.decision, ""
            return lately.decision, lately.at
        decision, snapshot, at = self.judge(evidence, request), self.snapshot, self.reactor.woke
        if decision.allowed and snapshot is not None and not snapshot.shadows:
            if len(self._lately) >= MAX_LATELY:
                self._lately.clear()
            self._lately[question] = _Lately(decision, request.resolved, snapshot, at, now_ms)
        return decision, at

    def stops(self, jail: Jail) -> bool:
        """Whether the kill switch is on for the jail's subject."""
        return self.snapshot is not None and self.snapshot.stops(jail.subject)

    def stands(self, decision: Decision, by: Snapshot | None, at: float) -> bool:
        """Whether an allow of `by` at reactor time `at` need not be decided again.

        Not if anything in it is counted or runs out. A rule's `when` may have ended within STANDS_S:
        then the flow is taken for one that came that much earlier.
        """
        if by is None or by is not self.snapshot or decision.budgets or decision.lease:
            return False
        now = self.reactor.now()
        return decision.allowed and now - at < STANDS_S and now < self._stale_at

    def shadow(self, request: Request, decided: Decision) -> str:
        """What a record of `decided` says of the shadow policy (`Snapshot.shadow`)."""
        snapshot = self.snapshot
        if snapshot is None or not snapshot.shadows or self.reactor.now() >= self._stale_at:
            return ""
        return snapshot.shadow(request, decided, self.clock.now_ms(), self.spending.usage)

    def describe_policy(self, evidence: Evidence) -> None:
        """Write down under which policy a decision was made."""
        snapshot = self.snapshot
        if snapshot is None or snapshot.generation == evidence.generation:
            return
        document = snapshot.document_for(evidence.subject)
        if document is None:
            return
        evidence.generation = snapshot.generation
        evidence.policy_digest = bytes.fromhex(document.digest)
        evidence.posture = str(document.posture)

    def hold_s(self, jail: Jail) -> float:
        """How long a flow of `jail` waits for a person, in seconds."""
        if jail.hold_s is not None:
            return jail.hold_s
        document = self.snapshot.document_for(jail.subject) if self.snapshot else None
        return jails.hold_seconds(document.hold_ms if document else None)

    def lease_over(self, name: str) -> str:
        """The reason code why nothing passes by this lease any more, "" while it holds."""
        snapshot = self.snapshot
        lease = snapshot.leases.get(name) if snapshot else None
        if snapshot is None:
            return ""  # decisions are refused
        if lease is None or name in snapshot.revoked:
            return "lease.revoked"
        if self.clock.now_ms() >= lease.exp_ms:
            return "lease.expired"
        if lease.state == "active":
            return ""
        return "lease.revoked" if str(lease.state).startswith("revok") else f"lease.{lease.state}"
