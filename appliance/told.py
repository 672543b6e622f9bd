"""What a durable record tells those who watch: events by topic, as the AsyncAPI document has them. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from exeat.ledger.in_force import PLACE
from exeat.ledger.records import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exeat.ledger.records import Record

ADMIN: Final = frozenset({"kill.on", "kill.off", "cut"})  # what people did, in records of kind `policy`
Told = tuple[str, dict[str, Any]]  # topic and data


def told(record: Record, *, answered: bool = False) -> Iterator[Told]:
    """The events that a durable record is. `answered`: a request waited for this."""
    project, what = record.project, record.decision
    common = {"project": project, "actor": record.actor, "detail": record.detail}
    if record.kind is Kind.LEASE:
        row = {"id": record.lease_id, "agent": record.agent, "state": what, **common, **_lease(record.data)}
        if answered or what == "requested":
            yield "requests", row
        if what not in ("requested", "denied", "lapsed"):
            yield "leases", row
    elif record.kind is Kind.POLICY and what in ADMIN:
        yield "admin", {"what": what, **common}
    elif record.kind is Kind.POLICY and what != PLACE:
        yield "policy", {"what": what, "digest": record.policy_digest.hex(), **common}
    elif record.kind is Kind.JOB:
        code = record.count if what == "exit" else None
        who = {"job": record.job, "agent": record.agent}
        yield "jobs", {"what": what, **who, "reason": record.reason_code, "code": code, **common}
    elif record.kind in (Kind.ANOMALY, Kind.RECONCILE):
        kind = "books" if record.kind is Kind.RECONCILE else what
        row = {"kind": kind, "project": project, "agent": record.agent, "job": record.job}
        yield "alerts", {**row, "detail": record.detail, "count": record.count}


def _lease(data: bytes) -> dict[str, Any]:
    """Who asked, and until when it holds; nothing of a lease too large for its record."""
    try:
        said = json.loads(data)
        return {"requester": said["requester"], "exp_ms": said["exp_ms"]}
    except (ValueError, LookupError, TypeError):
        return {}
