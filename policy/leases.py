"""Leases: a scope for a subject until a time, and the one table of their states.

    REQUESTED --n distinct approvals--> ACTIVE --exp--> EXPIRED
        | one deny -> DENIED  | request_ttl -> LAPSED  | revoke -> REVOKED
    ACTIVE --bytes or uses--> EXHAUSTED   --renew--> ACTIVE (exp = min(now + increment, activated + max_ttl))
    ACTIVE --revoke--> REVOKING --all acknowledged, or exp--> REVOKED

Everything that changes a state is in this file. Grants are half-open: nbf <= now < exp. `now_ms` is
wall-clock milliseconds; a caller that guards against clock steps passes the later of its clocks.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from exeat.policy.admin import OK, Actor, authorize
from exeat.policy.containment import excess
from exeat.policy.errors import ScopeError
from exeat.policy.model import Speech, permits
from exeat.policy.postures import HOUR_MS, KNOBS, Preset
from exeat.policy.rules import PROTOCOLS
from exeat.policy.scopes import HTTPS, Ports, Scope, parse_ports, parse_scope, ports_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from exeat.policy.model import Subject

HOME = "home"
DEFAULT_TTL_MS = HOUR_MS // 2
DEFAULT_REQUEST_TTL_MS = HOUR_MS


class State(StrEnum):
    REQUESTED = "requested"
    ACTIVE = "active"
    EXPIRED = "expired"
    EXHAUSTED = "exhausted"
    REVOKING = "revoking"
    REVOKED = "revoked"
    DENIED = "denied"
    LAPSED = "lapsed"


class Event(StrEnum):
    APPROVE = "approve"
    DENY = "deny"
    RENEW = "renew"
    REVOKE = "revoke"
    ACKNOWLEDGE = "acknowledge"
    EXHAUST = "exhaust"
    TIME = "time"


# (state, event) -> states the event may lead to. What is not here changes nothing and is answered
# with `state.<state>`; a state without a row is terminal.
TRANSITIONS: dict[State, dict[Event, frozenset[State]]] = {
    State.REQUESTED: {
        Event.APPROVE: frozenset({State.REQUESTED, State.ACTIVE}),
        Event.DENY: frozenset({State.DENIED}),
        Event.REVOKE: frozenset({State.REVOKED}),
        Event.TIME: frozenset({State.REQUESTED, State.LAPSED}),
    },
    State.ACTIVE: {
        Event.RENEW: frozenset({State.ACTIVE}),
        Event.REVOKE: frozenset({State.REVOKING, State.REVOKED}),
        Event.EXHAUST: frozenset({State.EXHAUSTED}),
        Event.TIME: frozenset({State.ACTIVE, State.EXPIRED}),
    },
    State.REVOKING: {
        Event.ACKNOWLEDGE: frozenset({State.REVOKING, State.REVOKED}),
        Event.TIME: frozenset({State.REVOKING, State.REVOKED}),
    },
}
TERMINAL = frozenset(State) - TRANSITIONS.keys()


@dataclass(frozen=True, slots=True)
class Approval:
    by: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease in any state. Empty agents, nodes or job: not bound to one. Times in ms since 1970."""

    id: str
    project: str
    to: tuple[Scope, ...]
    ports: Ports = HTTPS
    protocols: tuple[str, ...] = ("tcp",)
    except_: tuple[Scope, ...] = ()
    private: bool = False
    raw: bool = False
    ech: bool = False
    direct: bool = False
    records: bool = False
    device: bool = False  # `to` names a device of the node, and nothing that a network has
    file: str = ""  # a file scope (`files.py`), and then `to` is empty
    agents: frozenset[str] = frozenset()
    nodes: frozenset[str] = frozenset()
    job: str = ""
    state: State = State.ACTIVE
    nbf_ms: int = 0
    exp_ms: int = 0
    ttl_ms: int = DEFAULT_TTL_MS
    max_ttl_ms: int = KNOBS[Preset.STANDARD].max_ttl_ms
    request_ttl_ms: int = DEFAULT_REQUEST_TTL_MS
    requested_ms: int = 0
    activated_ms: int = 0
    max_bytes: int | None = None
    max_uses: int | None = None
    budget: str = ""
    approvals_needed: int = 1
    approvals: tuple[Approval, ...] = ()
    requester: str = ""
    on_behalf_of: str = ""
    ended_by: str = ""  # who denied or revoked it
    reason: str = ""  # the requester's words: untrusted text
    policy: str = ""  # digest of the policy it was asked under
    issuer: str = HOME
    epoch: int = 0
    seq: int = 0
    pending: tuple[str, ...] = ()  # REVOKING: who has not confirmed yet

    def serves(self, subject: Subject, proto: str, now_ms: int) -> bool:
        """Everything of the match but the target, revocation and use: of a lease for a network."""
        return not (self.device or self.file) and proto in self.protocols and self.holds(subject, now_ms)

    def holds(self, subject: Subject, now_ms: int) -> bool:
        """Whether it is this subject's, now."""
        return (
            self.state is State.ACTIVE
            and self.issuer == HOME
            and self.nbf_ms <= now_ms < self.exp_ms
            and self.project == subject.project
            and (not self.agents or subject.agent in self.agents)
            and (not self.nodes or subject.node in self.nodes)
            and (not self.job or subject.job == self.job)
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `Lease.from_json` gives an equal lease back."""
        out = asdict(self)
        out.update(
            to=[str(scope) for scope in self.to],
            ports=ports_text(self.ports),
            proto=list(out.pop("protocols")),
            agents=sorted(self.agents),
            nodes=sorted(self.nodes),
            state=str(self.state),
            approvals=[asdict(approval) for approval in self.approvals],
            pending=list(self.pending),
        )
        out["except"] = [str(scope) for scope in self.except_]
        del out["except_"]
        return out

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Lease:
        """Raises ValueError (or ScopeError, which is one) for anything `to_json` does not write."""
        values = dict(data)
        try:
            for name in ("to", "except"):
                values[name] = tuple(parse_scope(_text(item)) for item in values.get(name, ()))
            values["except_"] = values.pop("except")
            values["ports"] = parse_ports(map(_text, values.get("ports", ["443"])))
            values["protocols"] = _protocols(values.pop("proto", ["tcp"]))
            for name in ("agents", "nodes"):
                values[name] = frozenset(map(_text, values.get(name, ())))
            values["state"] = State(values.get("state", State.ACTIVE))
            values["approvals"] = tuple(
                Approval(_text(a["by"]), _ms(a["at_ms"])) for a in values.get("approvals", ())
            )
            values["pending"] = tuple(map(_text, values.get("pending", ())))
            return _checked(cls(**values))
        except (TypeError, KeyError) as error:
            raise ValueError(f"not a lease: {error}") from None


_INTEGERS = (
    *("nbf_ms", "exp_ms", "ttl_ms", "max_ttl_ms", "request_ttl_ms"),
    *("requested_ms", "activated_ms", "approvals_needed", "epoch", "seq"),
)
_TEXTS = (
    *("id", "project", "job", "file", "budget", "requester"),
    *("on_behalf_of", "ended_by", "reason", "policy", "issuer"),
)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def _ms(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"{value!r} is not a whole number from 0")
    return value


def _protocols(values: Iterable[object]) -> tuple[str, ...]:
    words = {_text(value) for value in values}
    if not words or not words <= set(PROTOCOLS):
        raise ScopeError("rule.proto", f"{sorted(words)} is not tcp or udp")
    return tuple(word for word in PROTOCOLS if word in words)


def _checked(lease: Lease) -> Lease:
    for name in _INTEGERS:
        _ms(getattr(lease, name))
    for name in _TEXTS:
        _text(getattr(lease, name))
    for limit in (lease.max_bytes, lease.max_uses):
        if limit is not None:
            _ms(limit)
    for name in ("private", "raw", "ech", "direct", "records", "device"):
        if type(getattr(lease, name)) is not bool:
            raise TypeError(f"`{name}` is not true or false")
    if not lease.id or not lease.project or not lease.ports:
        raise ValueError("not a lease: id, project and ports must not be empty")
    return lease


@dataclass(frozen=True, slots=True)
class Outcome:
    """The lease after an event, and why: `ok`, or the code of what was refused or capped."""

    lease: Lease
    reason: str

    @property
    def ok(self) -> bool:
        return self.reason in ("ok", "lease.max_ttl_capped")


@dataclass(frozen=True, slots=True)
class Narrowing:
    """What an approver changes; None keeps. Nothing here may widen."""

    to: tuple[Scope, ...] | None = None
    ports: Ports | None = None
    except_: tuple[Scope, ...] = ()
    ttl_ms: int | None = None
    max_bytes: int | None = None
    max_uses: int | None = None
    raw: bool | None = None
    ech: bool | None = None
    direct: bool | None = None
    records: bool | None = None


def request(draft: Lease, now_ms: int) -> Outcome:
    """A new request. `draft` carries scope, binding, ttl, limits, requester and approvals_needed."""
    longest = min(draft.ttl_ms, draft.max_ttl_ms)
    lease = replace(
        draft,
        state=State.REQUESTED,
        requested_ms=now_ms,
        ttl_ms=longest,
        approvals=(),
        nbf_ms=0,
        exp_ms=0,
        activated_ms=0,
    )
    if not (draft.to or draft.file) or draft.approvals_needed < 1 or longest < 1 or not draft.requester:
        return Outcome(replace(lease, state=State.DENIED), "lease.invalid")
    return Outcome(lease, "ok")


def settle(lease: Lease, now_ms: int) -> Lease:
    """What time alone has done to the lease."""
    if lease.state is State.REQUESTED and now_ms >= lease.requested_ms + lease.request_ttl_ms:
        return _move(lease, Event.TIME, State.LAPSED)
    if lease.state is State.ACTIVE and now_ms >= lease.exp_ms:
        return _move(lease, Event.TIME, State.EXPIRED)
    if lease.state is State.REVOKING and now_ms >= lease.exp_ms:
        return _move(lease, Event.TIME, State.REVOKED, pending=())
    return lease


def approve(lease: Lease, actor: Actor, now_ms: int, narrowing: Narrowing | None = None) -> Outcome:
    """One person's yes. Active at `approvals_needed` distinct people; never the requester's own."""
    lease = settle(lease, now_ms)
    refusal = _refusal(lease, Event.APPROVE, actor)
    if refusal:
        return Outcome(lease, refusal)
    narrowed = _narrow(lease, narrowing or Narrowing())
    if narrowed is None:
        return Outcome(lease, "review.widened")
    approvals = narrowed.approvals
    if all(approval.by != actor.id for approval in approvals):
        approvals = (*approvals, Approval(actor.id, now_ms))
    if len(approvals) < lease.approvals_needed:
        return Outcome(_move(narrowed, Event.APPROVE, State.REQUESTED, approvals=approvals), "ok")
    active = _move(
        narrowed,
        Event.APPROVE,
        State.ACTIVE,
        approvals=approvals,
        nbf_ms=now_ms,
        activated_ms=now_ms,
        exp_ms=now_ms + narrowed.ttl_ms,
        seq=lease.seq + 1,
    )
    return Outcome(active, "ok")


def deny(lease: Lease, actor: Actor, now_ms: int) -> Outcome:
    """One person's no is final, whoever said yes before."""
    lease = settle(lease, now_ms)
    refusal = _refusal(lease, Event.DENY, actor)
    if refusal:
        return Outcome(lease, refusal)
    return Outcome(_move(lease, Event.DENY, State.DENIED, ended_by=actor.id), "ok")


def renew(lease: Lease, actor: Actor, now_ms: int, increment_ms: int | None = None) -> Outcome:
    """Count `increment_ms` (the lease's ttl when None) from now, at most max_ttl from activation."""
    lease = settle(lease, now_ms)
    refusal = _refusal(lease, Event.RENEW, actor)
    if refusal:
        return Outcome(lease, refusal)
    wanted = now_ms + (lease.ttl_ms if increment_ms is None else increment_ms)
    latest = lease.activated_ms + lease.max_ttl_ms
    # A shorter increment must not end a lease early: that is what revoke is for.
    exp_ms = max(lease.exp_ms, min(wanted, latest))
    reason = "lease.max_ttl_capped" if wanted > latest else "ok"
    return Outcome(_move(lease, Event.RENEW, State.ACTIVE, exp_ms=exp_ms, seq=lease.seq + 1), reason)


def revoke(lease: Lease, actor: Actor, now_ms: int, pending: Iterable[str] = ()) -> Outcome:
    """Final. `pending` names who must confirm that live flows are cut; none: revoked at once."""
    lease = settle(lease, now_ms)
    refusal = _refusal(lease, Event.REVOKE, actor)
    if refusal:
        return Outcome(lease, refusal)
    waiting = tuple(sorted(pending)) if lease.state is State.ACTIVE else ()
    state = State.REVOKING if waiting else State.REVOKED
    return Outcome(
        _move(lease, Event.REVOKE, state, pending=waiting, ended_by=actor.id, seq=lease.seq + 1), "ok"
    )


def acknowledge(lease: Lease, who: str, now_ms: int) -> Outcome:
    """`who` has cut every flow of a lease that is being revoked."""
    lease = settle(lease, now_ms)
    if Event.ACKNOWLEDGE not in TRANSITIONS.get(lease.state, {}):
        return Outcome(lease, f"state.{lease.state}")
    pending = tuple(name for name in lease.pending if name != who)
    state = State.REVOKING if pending else State.REVOKED
    return Outcome(_move(lease, Event.ACKNOWLEDGE, state, pending=pending), "ok")


def exhaust(lease: Lease, now_ms: int) -> Outcome:
    """Its bytes or uses are spent."""
    lease = settle(lease, now_ms)
    if Event.EXHAUST not in TRANSITIONS.get(lease.state, {}):
        return Outcome(lease, f"state.{lease.state}")
    return Outcome(_move(lease, Event.EXHAUST, State.EXHAUSTED), "ok")


def _refusal(lease: Lease, event: Event, actor: Actor) -> str:
    if event not in TRANSITIONS.get(lease.state, {}):
        return f"state.{lease.state}"
    context = {"requester": lease.requester, "on_behalf_of": lease.on_behalf_of}
    reason = authorize(actor, f"lease.{event}", context).reason
    return "" if reason == OK else reason


def _move(lease: Lease, event: Event, state: State, **changes: Any) -> Lease:
    if state not in TRANSITIONS.get(lease.state, {}).get(event, frozenset()):
        raise ValueError(f"{event} does not lead from {lease.state} to {state}")
    return replace(lease, state=state, **changes)


def _narrow(lease: Lease, change: Narrowing) -> Lease | None:
    """The lease under `change`, or None where any dimension would widen."""
    narrowed = replace(
        lease,
        to=lease.to if change.to is None else change.to,
        ports=lease.ports if change.ports is None else change.ports,
        except_=tuple(dict.fromkeys((*lease.except_, *change.except_))),
        ttl_ms=lease.ttl_ms if change.ttl_ms is None else change.ttl_ms,
        max_bytes=lease.max_bytes if change.max_bytes is None else change.max_bytes,
        max_uses=lease.max_uses if change.max_uses is None else change.max_uses,
        raw=lease.raw if change.raw is None else change.raw,
        ech=lease.ech if change.ech is None else change.ech,
        direct=lease.direct if change.direct is None else change.direct,
        records=lease.records if change.records is None else change.records,
    )
    widened = (
        excess([lease], narrowed) is not None
        or not 0 < narrowed.ttl_ms <= lease.ttl_ms
        or _raises(change.max_bytes, lease.max_bytes)
        or _raises(change.max_uses, lease.max_uses)
        or not all(permits(lease, speech) for speech in Speech if permits(narrowed, speech))
    )
    return None if widened or not (narrowed.to or narrowed.file) else narrowed


def _raises(new: int | None, old: int | None) -> bool:
    return new is not None and (new < 0 or (old is not None and new > old))
