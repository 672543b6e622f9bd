"""The flows of this process as people see them: listed when somebody asks, a few in one turn of the loop.

Nothing is kept for it, and the flows pay nothing for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from exeat.policy.model import Address
from exeat.proxy.refusal import place_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from exeat.ledger.ipc import Message
    from exeat.ledger.reactor import Reactor
    from exeat.proxy.evidence import Evidence
    from exeat.proxy.flow import Flow
    from exeat.proxy.tunnel import Tunnel
    from exeat.proxy.udp import UdpFlow

SLICE: Final = 256  # flows looked at in one turn; about a millisecond
PAUSE_S: Final = 0.001
MAX_ROWS: Final = 2000  # of one answer; the others are counted


class Listing:
    """One answer to control's `flows.list` (docs/architecture.md, hub.sock)."""

    def __init__(
        self,
        reactor: Reactor,
        send: Callable[[Message], bool],
        asked: Message,
        live: Iterable[Tunnel | UdpFlow],
        waiting: Iterable[Flow | UdpFlow],
    ) -> None:
        self._reactor = reactor
        self._send = send
        self._asked = asked
        limit = asked.get("limit")
        self._left = min(limit, MAX_ROWS) if isinstance(limit, int) else MAX_ROWS
        self._total = 0
        self._live = list(live)
        self._waiting = [flow for flow in waiting if flow.evidence.decision is not None]
        self._next()

    def _next(self) -> None:
        """Look at some flows, oldest first, and tell of them."""
        rows: list[dict[str, Any]] = []
        tunnels, self._live = self._live[:SLICE], self._live[SLICE:]
        for tunnel in tunnels:
            if not tunnel.ended:
                self._look(rows, tunnel.flow.evidence, "live", tunnel.counts)
        flows, self._waiting = self._waiting[: SLICE - len(tunnels)], self._waiting[SLICE - len(tunnels) :]
        for flow in flows:
            if not flow.closed:
                self._look(rows, flow.evidence, "waiting", _none)
        done = not self._live and not self._waiting
        part = {"t": "flows.part", "request": self._asked.get("request"), "rows": rows, "done": done}
        if self._send({**part, "total": self._total}) and not done:
            self._reactor.call_later(PAUSE_S, self._next)

    def _look(
        self,
        rows: list[dict[str, Any]],
        evidence: Evidence,
        state: str,
        counts: Callable[[], tuple[int, int]],
    ) -> None:
        if not _wanted(self._asked, evidence):
            return
        self._total += 1
        if self._left > 0:
            self._left -= 1
            rows.append(_row(evidence, state, *counts()))


def hits(what: Mapping[str, Any], evidence: Evidence) -> bool:
    """Whether a `cut` is for this flow."""
    subject, decision = evidence.subject, evidence.decision
    return bool(
        what.get("all")
        or (what.get("job") and what["job"] == subject.job)
        or (what.get("project") and what["project"] == subject.project)
        or (what.get("lease") and decision is not None and what["lease"] == decision.lease)
        or (what.get("flow") and what["flow"] == evidence.flow.hex())
    )


def _wanted(asked: Mapping[str, Any], evidence: Evidence) -> bool:
    prefix = asked.get("prefix")
    if isinstance(prefix, str):
        return evidence.flow.hex().startswith(prefix)
    return hits(asked, evidence)


def _row(evidence: Evidence, state: str, out: int, back: int) -> dict[str, Any]:
    subject, decision, host = evidence.subject, evidence.decision, evidence.host
    return {
        "flow": evidence.flow.hex(),
        "project": subject.project,
        "agent": subject.agent,
        "job": subject.job,
        "dest": place_text(host, evidence.port) if isinstance(host, Address) else f"{host}:{evidence.port}",
        "proto": evidence.protocol,
        "state": state,
        "verdict": str(decision.verdict) if decision is not None else "",
        "reason": decision.reason if decision is not None else "",
        "rule": decision.rule if decision is not None else "",
        "lease": decision.lease if decision is not None else "",
        "bytes_out": out,
        "bytes_in": back,
        "started_ns": evidence.started,
    }


def _none() -> tuple[int, int]:
    return 0, 0
