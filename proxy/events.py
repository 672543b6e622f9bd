"""What happened to flows, for live views: told a few times a second, and not kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from exeat.proxy.refusal import host_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from exeat.ledger.ipc import Message
    from exeat.proxy.flow import Flow
    from exeat.proxy.udp import UdpFlow

MAX_EVENTS: Final = 250  # between two tellings: nobody reads more; all of it is on the ledger


class Events:
    """`tell` what was announced since the last time; control may be away."""

    def __init__(self, send: Callable[[Message], bool]) -> None:
        self._send = send
        self._events: list[dict[str, Any]] = []
        self._untold = 0  # beyond MAX_EVENTS

    def announce(
        self, event: str, flow: Flow | UdpFlow, verdict: str, reason: str, out: int, back: int
    ) -> None:
        if len(self._events) >= MAX_EVENTS:
            self._untold += 1
            return
        evidence = flow.evidence
        self._events.append(
            {
                "ev": event,
                "flow": evidence.flow.hex(),
                "project": evidence.subject.project,
                "job": evidence.subject.job,
                "dest": f"{host_text(evidence.host)}:{evidence.port}",
                "verdict": verdict,
                "reason": reason,
                "bytes_in": back,
                "bytes_out": out,
            }
        )

    def tell(self) -> None:
        if self._events:
            events, self._events = self._events, []
            untold, self._untold = self._untold, 0
            self._send({"t": "flows", "events": events, "lost": untold})
