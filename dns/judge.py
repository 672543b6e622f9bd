"""The policy core as the guard asks it: may this name be looked up, and may it lead there?

Holds the snapshot in force and knows when it is too old. Everything here fails closed: without a
fresh snapshot the answer is a deny, whatever was asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from exeat.dns.known import encrypted_resolvers, on_list
from exeat.dns.wire import host_text
from exeat.ledger.clock import Clock
from exeat.policy.model import Address, Decision, Request, Subject, Verdict
from exeat.policy.names import MalformedError, parse_host
from exeat.policy.postures import Preset
from exeat.policy.usage import Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from exeat.dns.screen import Screen
    from exeat.policy.snapshot import Snapshot

# Codes that forbid a name as the target of an alias, beside `rule.deny`; a posture does not.
FORBIDDING = ("meta.", "malformed.", "policy.", "internal.", "dns.encrypted_resolver")
_OWN = ("dns.", "malformed.")  # what the guard refuses by itself, whatever a policy says
STANDS_S = 0.1
MAX_BINDINGS = 4096
MAX_LOOKED_AT = 5000  # rules; to look at more would hold up who else asks
LASTING = ("posture.", "rule.")  # what policies say, not counters, clocks and habits
EXPIRED = Decision(Verdict.DENY, "policy.expired")
BYPASS = Decision(Verdict.DENY, "dns.encrypted_resolver")


class Asker(NamedTuple):
    """Who looks a name up, and for which door. A jail's own lookup names no door: port 0."""

    subject: Subject
    port: int = 0
    proto: str = "tcp"


class Binding(NamedTuple):
    """Which policy decides for a subject."""

    digest: str = ""
    posture: str = ""


class Admitted(NamedTuple):
    """What `admit` said, under which snapshot, and when (seconds of CLOCK_BOOTTIME)."""

    decision: Decision
    snapshot: Snapshot | None
    at: float


class Judge:
    """Decides lookups under the newest snapshot. `now` is seconds of CLOCK_BOOTTIME."""

    def __init__(self, now: Callable[[], float], screen: Screen | None = None) -> None:
        self._now = now
        self._screen = screen
        self._clock = Clock()
        self._snapshot: Snapshot | None = None
        self.resolvers = encrypted_resolvers()  # names that posture `public` alone does not open
        self._fresh_until = 0.0
        self._usage = Usage()
        # What `verdict` looks at: the lookup itself was admitted and charged, and must not be
        # refused its answer because it was the last one.
        self._unspent = Usage()
        self._bindings: dict[Subject, Binding] = {}
        self._steady: dict[str, bool] = {}  # by the digest of the policy

    @property
    def snapshot(self) -> Snapshot | None:
        """The newest one, fresh or not."""
        return self._snapshot

    def restore(self, snapshot: Snapshot, spent: Mapping[str, Any]) -> None:
        """Count what an earlier guard had spent (the hub's `spent` message)."""
        snapshot.restore(self._usage, spent)

    def replace(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._bindings.clear()
        self._steady.clear()
        self.refresh()

    def refresh(self) -> None:
        """The snapshot in force was confirmed by control."""
        if self._snapshot is not None:
            self._fresh_until = self._now() + self._snapshot.fresh_ms / 1000

    @property
    def fresh(self) -> bool:
        return self._snapshot is not None and self._now() < self._fresh_until

    def knows_lease(self, lease: str) -> bool:
        return self._snapshot is not None and lease in self._snapshot.leases

    def binding(self, subject: Subject) -> Binding:
        """The policy that binds `subject`; an empty one without."""
        binding = self._bindings.get(subject)
        if binding is None:
            document = self._snapshot.document_for(subject) if self._snapshot is not None else None
            binding = Binding(document.digest, str(document.posture)) if document is not None else Binding()
            if len(self._bindings) >= MAX_BINDINGS:
                self._bindings.clear()
            self._bindings[subject] = binding
        return binding

    def stands(self, admitted: Admitted) -> bool:
        """Whether an admission just made need not be made again: nothing that it rests on can have ended."""
        decision, snapshot, at = admitted
        plain = decision.allowed and not decision.budgets and not decision.lease
        return plain and snapshot is self._snapshot and self._now() < min(at + STANDS_S, self._fresh_until)

    def steady(self, subject: Subject, decision: Decision) -> bool:
        """Whether only a new snapshot can make `decision` about `subject` another one.

        So it is where no rule, lease or policy begins or ends by itself, and nothing is counted.
        """
        if decision.budgets or decision.lease or not decision.reason.startswith(LASTING):
            return False
        digest = self.binding(subject).digest
        if digest not in self._steady:
            self._steady[digest] = self._lasts(subject)
        return self._steady[digest]

    def _lasts(self, subject: Subject) -> bool:
        snapshot = self._snapshot
        document = snapshot.document_for(subject) if snapshot is not None else None
        if snapshot is None or document is None or snapshot.shadows or document.expires_ms is not None:
            return False
        rules = (*document.rules, *(document.ceiling or ()))
        if len(rules) > MAX_LOOKED_AT or document.preset is Preset.STRICT:
            return False
        now_ms = self._clock.now_ms()
        return all(rule.when is None for rule in rules) and all(
            lease.nbf_ms <= now_ms for lease in snapshot.leases.values()
        )

    def admitted(self, decision: Decision) -> Admitted:
        """`decision`, which `admit` has just given, for `stands`."""
        return Admitted(decision, self._snapshot, self._now())

    def admit(self, asker: Asker, host: str) -> Decision:
        """May `host` be resolved for this asker at all? Asked before anything leaves the node."""
        decision = self._ask(asker, host, (), self._usage)
        if decision.allowed and self._screen is not None:
            return self._screen.look(asker.subject, host, decision, strict=self._strict(asker.subject))
        return decision

    def heard(self, asker: Asker, host: str, decision: Decision, *, exists: bool) -> None:
        """An upstream has answered what `decision` admitted; `exists` is False for no such name."""
        if self._screen is not None:
            strict = self._strict(asker.subject)
            self._screen.heard(asker.subject, host, decision, exists=exists, strict=strict)

    def _strict(self, subject: Subject) -> bool:
        document = self._snapshot.document_for(subject) if self._snapshot is not None else None
        return document is not None and document.preset is Preset.STRICT

    def records(self, asker: Asker, host: str) -> Decision | None:
        """The permission under which records of an admitted `host` other than addresses may be looked up."""
        if self._snapshot is None or not self.fresh:
            return None
        return self._snapshot.decide_records(asker.subject, host, self._clock.now_ms(), self._unspent)

    def shadow(self, asker: Asker, host: str, decided: Decision) -> str:
        """What a record of the lookup says of the shadow policy (`Snapshot.shadow`)."""
        snapshot = self._snapshot
        if snapshot is None or not snapshot.shadows or decided.reason.startswith(_OWN):
            return ""
        now_ms = self._clock.now_ms()
        if not asker.port:
            return snapshot.shadow_lookup(asker.subject, host, decided, now_ms, self._usage)
        request = Request(asker.subject, host, asker.port, asker.proto)
        return snapshot.shadow(request, decided, now_ms, self._usage)

    def odd_type(self, asker: Asker, host: str, decision: Decision) -> None:
        """The asker asks an allowed `host` for a type that only tunnels and zone transfers want."""
        if self._screen is not None:
            self._screen.odd_type(asker.subject, host, decision, strict=self._strict(asker.subject))

    def verdict(
        self, asker: Asker, host: str, targets: Sequence[bytes], addresses: tuple[Address, ...]
    ) -> Decision:
        """May `host` lead by way of `targets` (wire names) to `addresses`?

        A target need not be allowed (a CDN's name differs from the leased one), but it must not be
        denied; all addresses are judged as the asked name's.
        """
        decision = self._ask(asker, host, addresses, self._unspent)
        if not decision.allowed:
            return decision
        for target in targets:
            refusal = self._target(asker, target)
            if refusal is not None:
                return refusal
        return decision

    def _target(self, asker: Asker, target: bytes) -> Decision | None:
        try:
            text = host_text(target)
            host = parse_host(text) if text is not None else None
        except MalformedError as error:
            return Decision(Verdict.DENY, error.code)
        if not isinstance(host, str):
            return Decision(Verdict.DENY, "dns.refused")
        decision = self._ask(asker, host, (), self._unspent)
        forbidden = decision.reason == "rule.deny" or decision.reason.startswith(FORBIDDING)
        return decision if forbidden and not decision.allowed else None

    def charge(self, asker: Asker, decision: Decision) -> None:
        """Count one upstream query against the budgets that the decision named."""
        self._usage.charge(asker.subject.project, decision.budgets, now_ms=self._clock.now_ms(), lookups=1)

    def _ask(self, asker: Asker, host: str, addresses: tuple[Address, ...], usage: Usage) -> Decision:
        if self._snapshot is None or not self.fresh:
            return EXPIRED
        now_ms = self._clock.now_ms()
        if not asker.port:
            decision = self._snapshot.decide_lookup(asker.subject, host, now_ms, usage, addresses)
        else:
            request = Request(asker.subject, host, asker.port, asker.proto, addresses)
            decision = self._snapshot.decide(request, now_ms, usage)
        if decision.reason == "posture.public" and decision.allowed and on_list(host, self.resolvers):
            return BYPASS  # a rule or a lease for it would have been the reason
        return decision
