"""Leases as the command line and `--json` show them, and what would happen to a flow."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from exeat.appliance.errors import RefusedError
from exeat.policy import leases as states
from exeat.policy.addresses import format_address
from exeat.policy.errors import MalformedError
from exeat.policy.model import Address, Request
from exeat.policy.names import parse_authority, parse_host
from exeat.policy.reasons import advise, leasable, short_text
from exeat.policy.scopes import ports_text
from exeat.policy.usage import Usage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from exeat.policy.leases import Lease
    from exeat.policy.model import Subject
    from exeat.policy.snapshot import Snapshot


@dataclass
class Asked:
    """The flows that ask for one thing: the first one's job, and how often they began to wait. Kept in
    memory only: for people who decide, evidence is the ledger."""

    job: str
    episode: str
    node: str
    rule: str
    tries: int
    last_ms: int

    @classmethod
    def first(cls, subject: Mapping[str, Any], rule: str, now_ms: int) -> Asked:
        job, episode, node = (str(subject.get(key, "")) for key in ("job", "episode", "node"))
        return cls(job, episode, node, rule, 1, now_ms)

    def again(self, now_ms: int) -> None:
        self.tries += 1
        self.last_ms = now_ms


def version(lease: Lease, now_ms: int) -> str:
    """What a decision about it is bound to: another one after every change."""
    body = json.dumps(states.settle(lease, now_ms).to_json(), sort_keys=True)
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def row(lease: Lease, now_ms: int, asked: Asked | None = None) -> dict[str, Any]:
    """A lease, settled; times in ms since 1970."""
    settled = states.settle(lease, now_ms)
    return {
        "id": settled.id,
        "version": version(lease, now_ms),
        "job": settled.job,
        "requested": settled.requested_ms,
        "activated": settled.activated_ms,
        "max_ttl_ms": settled.max_ttl_ms,
        "max_uses": settled.max_uses,
        "private": settled.private,
        "approved": [asdict(approval) for approval in settled.approvals],
        "asked": asdict(asked) if asked is not None else None,
        "state": str(settled.state),
        "project": settled.project,
        "agents": sorted(settled.agents),
        "to": places(settled, ports=False),
        "ports": sorted({text for scope in settled.to for text in ports_text(scope.ports or settled.ports)}),
        "speech": words(settled),
        "proto": list(settled.protocols),
        "max_bytes": settled.max_bytes,
        "requester": settled.requester,
        "on_behalf_of": settled.on_behalf_of,
        "reason": settled.reason,
        "exp": settled.exp_ms,
        "lapses": settled.requested_ms + settled.request_ttl_ms,
        "ttl_ms": settled.ttl_ms,
        "approvals": [approval.by for approval in settled.approvals],
        "approvals_needed": settled.approvals_needed,
        "ended_by": settled.ended_by,
        "policy": settled.policy,
    }


def places(lease: Lease, *, ports: bool = True) -> list[str]:
    """What it is for: hosts and networks, or a folder."""
    if lease.file:
        return [lease.file]
    return [str(scope if ports else replace(scope, ports=None)) for scope in lease.to]


def words(lease: Lease) -> list[str]:
    """What may be spoken beside what the proxy judges, in the words of a policy."""
    return [word for word in ("raw", "ech", "direct", "records", "device", "file") if getattr(lease, word)]


def why(snapshot: Snapshot, subject: Subject, text: str, now_ms: int) -> dict[str, Any]:
    """What would happen to a flow of `subject` to HOST[:PORT], before names are resolved."""
    try:
        host, port = parse_authority(text.encode()) if _has_port(text) else (parse_host(text), 443)
    except (MalformedError, UnicodeEncodeError) as error:
        raise RefusedError(getattr(error, "code", "malformed.host"), f"`{text}` is not HOST[:PORT]") from None
    decision = snapshot.decide(Request(subject, host, port), now_ms, Usage())
    name = host_text(host)
    return {
        "to": f"{name}:{port}",
        "verdict": str(decision.verdict),
        "reason": decision.reason,
        "rule": decision.rule,
        "text": short_text(decision.reason),
        "leasable": leasable(decision),
        # The advice begins with the text above.
        "next": "" if decision.allowed else advise(decision, name, port, subject.project).partition("; ")[2],
    }


def host_text(host: str | Address) -> str:
    if isinstance(host, str):
        return host
    text = format_address(host)
    return f"[{text}]" if host.family == 6 else text


def _has_port(text: str) -> bool:
    return ":" in text.rpartition("]")[2]
