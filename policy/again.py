"""A recorded decision, made again from what held then: by the same `decide`, with the record's own facts.

A record does not hold everything that a decision rested on. Where that matters the record's word is taken,
and it is said so: that a budget was used up, to what kind of address a name led. With that supposed, the
policy must give exactly what is recorded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import product
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from exeat.policy.addresses import format_address, parse_address
from exeat.policy.decide import edge_ports
from exeat.policy.model import Address, Decision, Request, Verdict
from exeat.policy.rules import PROTOCOLS, Kind
from exeat.policy.usage import Overlay, Usage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from exeat.policy.snapshot import Snapshot

# Whatever else is recorded as a reason was not said by a policy: the wire, the network, a limit.
_OF_POLICY: Final = (
    *("rule.", "posture.", "meta.", "ceiling.", "budget.", "sni.", "address.", "ip_literal."),
    *("lease.active", "policy.expired", "kill"),
)
_LED: Final = ("rule.", "lease.active", "address.not_public", "meta.")  # may be for what a name led to
# One of each kind; the first is the mildest.
_PLACES: Final = ("10.0.0.1", "127.0.0.1", "169.254.169.254", "169.254.1.1", "224.0.0.1")
_ALL: Final = 1 << 60
# The longest that a flow is decided before it is recorded: a person is waited for (55 s), and a dial.
_LATE_MS: Final = 60_000


class Result(StrEnum):
    SAME = "same"
    DIFFERS = "differs"
    UNKNOWN = "cannot be recomputed"


@dataclass(frozen=True)
class Recorded:
    """What a record says. `lookup`: of a name for whatever port. `direct`: of a flow past the proxy."""

    request: Request
    at_ms: int  # wall clock
    verdict: Verdict
    reason: str
    rule: str = ""
    lease: str = ""
    lookup: bool = False
    direct: bool = False

    def is_said_by(self, decision: Decision) -> bool:
        if self.direct:  # by one of the leases that allow it, which need not be the one that is named first
            return decision.verdict is not Verdict.DENY and self.lease in decision.matched and decision.direct
        return (decision.verdict, decision.reason, decision.rule) == (self.verdict, self.reason, self.rule)


class Again(NamedTuple):
    """`decision` is what comes out, `supposed` what was taken from the record, `why` what is amiss."""

    result: Result
    decision: Decision
    supposed: tuple[str, ...] = ()
    why: str = ""


class _Facts(NamedTuple):
    """What a record does not say, filled in. `port` 0: of a lookup that is for any."""

    at_ms: int
    port: int
    proto: str
    led: Address | None = None
    spent: bool = False


_Guess = tuple[str, dict[str, Any]]  # in words ("" where nothing is supposed), and what becomes of the facts
_AS_RECORDED: Final[_Guess] = ("", {})


def decide_again(snapshot: Snapshot, recorded: Recorded) -> Again:
    """The decision under `snapshot`, beside the recorded one."""
    facts = _Facts(recorded.at_ms, 0 if recorded.lookup else recorded.request.port, recorded.request.proto)
    plain = _decide(snapshot, recorded, facts)
    if not recorded.reason.startswith(_OF_POLICY):
        why = f"{recorded.reason} is not a policy's answer; what the policy alone says is shown"
        return Again(Result.UNKNOWN, plain, why=why)
    for supposed, changed in _guesses(snapshot, recorded):
        decision = _decide(snapshot, recorded, facts._replace(**changed))
        if recorded.is_said_by(decision):
            if recorded.reason.startswith("budget."):
                supposed = (*supposed, f"the budget {recorded.rule} was used up")
            return Again(Result.SAME, decision, supposed)
    return _mismatch(snapshot, recorded, plain)


def _guesses(snapshot: Snapshot, recorded: Recorded) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """All that may be true beside the record, what supposes least first."""
    earlier = {"at_ms": max(0, recorded.at_ms - _LATE_MS)}
    sources: tuple[Iterable[_Guess], ...] = (
        (_AS_RECORDED, ("it was decided up to a minute before it was recorded", earlier)),
        (_AS_RECORDED, *_ports(snapshot, recorded)),
        (_AS_RECORDED, *_led(snapshot, recorded)),
        (_AS_RECORDED, *([] if recorded.lease else [("a lease for it was spent", {"spent": True})])),
    )
    for combined in sorted(product(*sources), key=lambda each: sum(bool(words) for words, _ in each)):
        changed = {name: value for _, changes in combined for name, value in changes.items()}
        yield tuple(words for words, _ in combined if words), changed


def _ports(snapshot: Snapshot, recorded: Recorded) -> Iterator[_Guess]:
    """A lookup for a flow, or of records other than addresses, is decided for one port, not recorded."""
    request, policy = recorded.request, snapshot.policy_for(recorded.request.subject)
    if not recorded.lookup or policy is None or not isinstance(request.host, str):
        return
    overlay = Overlay.of(snapshot.leases.values())
    for port in edge_ports(policy, request.subject, request.host, overlay, ()):
        for proto in PROTOCOLS:
            yield f"the lookup was for port {port}/{proto}", {"port": port, "proto": proto}


def _led(snapshot: Snapshot, recorded: Recorded) -> Iterator[_Guess]:
    """Places a name may have led to, beside the one that is recorded: one of each kind that matters."""
    policy = snapshot.policy_for(recorded.request.subject)
    if policy is None or not recorded.reason.startswith(_LED) or not isinstance(recorded.request.host, str):
        return
    places = [parse_address(text) for text in _PLACES]
    if recorded.verdict is Verdict.DENY:
        nets = [scope.net for rule in policy.document.rules if rule.id == recorded.rule for scope in rule.to]
        named = [Address(net.family, net.value) for net in nets if net is not None]
        doors = {host for host, _ in policy.meta.control if isinstance(host, Address)}
        places = [*named, *places, *sorted({*policy.meta.host_local, *doors})]
    else:
        del places[1:]  # what is not public leaves the decision to those that say `private`
    for address in places:
        yield f"the name led to an address such as {format_address(address)}", {"led": address}


def _decide(snapshot: Snapshot, recorded: Recorded, facts: _Facts) -> Decision:
    request, usage = recorded.request, _usage(snapshot, recorded, facts)
    led = () if facts.led is None else (facts.led,)
    port, resolved = facts.port or request.port, (*request.resolved, *led)
    request = replace(request, port=port, proto=facts.proto, resolved=resolved)
    if recorded.lookup and not facts.port and isinstance(request.host, str):
        return snapshot.decide_lookup(request.subject, request.host, facts.at_ms, usage, request.resolved)
    return snapshot.decide(request, facts.at_ms, usage)


def _usage(snapshot: Snapshot, recorded: Recorded, facts: _Facts) -> Usage:
    """Counters at which what is recorded as used up is, and nothing else."""
    usage, policy = Usage(), snapshot.policy_for(recorded.request.subject)
    if policy is not None and recorded.reason in ("budget.exceeded", "budget.ask"):
        project = policy.document.project
        usage.define(project, policy.document.budgets)
        amounts = dict.fromkeys(("connections", "bytes_up", "bytes_down", "lookups", "usd"), _ALL)
        usage.charge(project, [recorded.rule], now_ms=facts.at_ms, **amounts)
    if facts.spent:
        for lease in snapshot.leases:
            usage.charge_lease(lease, bytes=_ALL, uses=_ALL)
    return usage


def _mismatch(snapshot: Snapshot, recorded: Recorded, plain: Decision) -> Again:
    if recorded.reason == "policy.expired":
        why = "the gateway had no news of control for too long, or by its clock the policy had expired"
    elif recorded.reason == "budget.state":
        why = "a counter could not be trusted then; which, the record does not say"
    elif recorded.reason == "rule.deny" and _known_rule(snapshot, recorded):
        why = f"rule {recorded.rule} may have denied a name that this one led to, which is not recorded"
    else:
        return Again(Result.DIFFERS, plain)
    return Again(Result.UNKNOWN, plain, why=why)


def _known_rule(snapshot: Snapshot, recorded: Recorded) -> bool:
    """Whether there is a deny rule of this name that has names in it, and the host could lead elsewhere."""
    policy = snapshot.policy_for(recorded.request.subject)
    if policy is None or not isinstance(recorded.request.host, str):
        return False
    denies = (rule for rule in policy.document.of_kind(Kind.DENY) if rule.id == recorded.rule)
    return any(scope.net is None for rule in denies for scope in rule.to)
