"""Who may do what in the admin plane. Agents, workers and drivers never grant; nobody alone widens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from exeat.policy.model import Decision, Verdict

OK = "ok"

# What is asked for can never be granted by what asks: no setting lifts this.
SELF = frozenset({"agent", "worker", "driver"})
PEOPLE = frozenset({"viewer", "approver", "operator", "admin"})
REVIEWERS = frozenset({"approver", "operator", "admin"})
OPERATORS = frozenset({"operator", "admin"})
READERS = PEOPLE | {"auditor"}

# What the role of an account is here. Who drives jobs is the `driver` of rule MP-20, who never grants what
# is asked for: an account's `operator` is not the operator of this file, who reviews, too.
ACCOUNTS: Mapping[str, str] = {
    "viewer": "viewer",
    "operator": "driver",
    "approver": "approver",
    "admin": "admin",
    "auditor": "auditor",
}


@dataclass(frozen=True, slots=True)
class Actor:
    """Someone who has been authenticated. `role` is one word; an unknown role may do nothing."""

    id: str
    role: str


Context = Mapping[str, Any]


def authorize(actor: Actor, action: str, context: Context | None = None) -> Decision:
    """Whether `actor` may do `action`: allow `ok`, deny `meta.*`, or ask `meta.second_reviewer`.

    Context: `requester`, `on_behalf_of` (ids) for leases; `widens`, `reviewers` for `policy.update`.
    What the context does not say counts as the worse answer.
    """
    judge = _ACTIONS.get(action)
    if judge is None:
        code = "meta.ledger" if action.startswith("ledger.") else "meta.unknown_action"
        return Decision(Verdict.DENY, code)
    if not actor.id:
        return Decision(Verdict.DENY, "meta.attribution")
    code = judge(actor, context or {})
    if code == OK:
        return Decision(Verdict.ALLOW, OK)
    return Decision(Verdict.ASK if code == "meta.second_reviewer" else Verdict.DENY, code)


def _approve(actor: Actor, context: Context) -> str:
    if actor.role in SELF:
        return "meta.self_grant"
    if not context.get("requester") or actor.id in (context["requester"], context.get("on_behalf_of")):
        return "meta.sod"
    return _role(actor, REVIEWERS)


def _update_policy(actor: Actor, context: Context) -> str:
    if actor.role in SELF:
        return "meta.self_grant"
    if actor.role not in OPERATORS:
        return "meta.role"
    others = set(context.get("reviewers") or ()) - {actor.id}
    return "meta.second_reviewer" if context.get("widens", True) and not others else OK


def _own_or_reviewer(actor: Actor, context: Context) -> str:
    """Giving up or prolonging within what was approved is the requester's own business."""
    mine = actor.id in (context.get("requester"), context.get("on_behalf_of"))
    return OK if mine else _role(actor, REVIEWERS)


def _review(actor: Actor, _context: Context) -> str:
    return _role(actor, REVIEWERS)


def _stop(actor: Actor, _context: Context) -> str:
    """Stopping is always safe, so whoever may say no to a lease may; letting it go on is an operator's."""
    return "meta.self_grant" if actor.role in SELF else _role(actor, REVIEWERS)


def _operate(actor: Actor, _context: Context) -> str:
    return "meta.self_grant" if actor.role in SELF else _role(actor, OPERATORS)


def _read(actor: Actor, _context: Context) -> str:
    return _role(actor, READERS | SELF)


def _drive(actor: Actor, _context: Context) -> str:
    """Submitting work and ending it: what a job may reach is not decided here."""
    return _role(actor, OPERATORS | {"driver"})


def _read_ledger(actor: Actor, _context: Context) -> str:
    return "meta.ledger" if actor.role in SELF else _role(actor, READERS)


def _ask(actor: Actor, _context: Context) -> str:
    return _role(actor, PEOPLE | SELF)


def _role(actor: Actor, roles: frozenset[str]) -> str:
    return OK if actor.role in roles else "meta.role"


_ACTIONS: dict[str, Callable[[Actor, Context], str]] = {
    "lease.request": _ask,
    "lease.approve": _approve,
    "lease.deny": _review,
    "lease.renew": _own_or_reviewer,
    "lease.revoke": _own_or_reviewer,
    "policy.update": _update_policy,
    "job.read": _read,
    "job.drive": _drive,
    "kill.on": _stop,
    "flow.cut": _stop,
    "kill.off": _operate,
    # Reading only: nobody writes to the ledger but the processes whose flows it records.
    "ledger.read": _read_ledger,
    "ledger.query": _read_ledger,
    "ledger.verify": _read_ledger,
    "ledger.export": _read_ledger,
}
