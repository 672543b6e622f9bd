"""What happened to flows: counted, and told a few times a second for live views, where it is not kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from exeat.proxy.refusal import host_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from exeat.ledger.ipc import Message
    from exeat.ledger.tally import Tally
    from exeat.proxy.evidence import Evidence
    from exeat.proxy.flow import Flow
    from exeat.proxy.udp import UdpFlow

# Reason codes of a flow that would go around what judges names.
BYPASS: Final = {
    "ip_literal.denied": "ip_literal",
    "posture.ask_ip": "ip_literal",
    "meta.dns_bypass": "udp53",
    "dns.encrypted_resolver": "doh",
    "tls.not_tls": "raw",
    "quic.not_quic": "raw",
    "quic.version": "quic",
    "quic.malformed": "quic",
    "quic.second_connection": "quic",
}
DOT_PORT: Final = 853  # RFC 7858
WRONG_PASSWORD: Final = frozenset({"auth.failed", "auth.rate"})
MAX_EVENTS: Final = 250  # between two tellings: nobody reads more; all of it is on the ledger


class Events:
    """`tell` what was announced since the last time; control may be away."""

    def __init__(self, send: Callable[[Message], bool], tally: Tally) -> None:
        self._send = send
        self._tally = tally
        self._events: list[dict[str, Any]] = []
        self._untold = 0  # beyond MAX_EVENTS

    def announce(
        self, event: str, flow: Flow | UdpFlow, verdict: str, reason: str, out: int, back: int
    ) -> None:
        if event != "close":
            self._count(flow.evidence, verdict, reason)
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

    def _count(self, evidence: Evidence, verdict: str, reason: str) -> None:
        """An `open` or `deny` is what was decided of a flow in the end, or of what it then said."""
        project = evidence.subject.project
        self._tally.count("decisions_total", project, verdict, reason)
        if verdict == "allow":
            return
        if (kind := BYPASS.get(reason)) is not None:
            kind = "dot" if kind == "udp53" and evidence.port == DOT_PORT else kind
            self._tally.count("bypass_attempts_total", project, kind)
        if reason in WRONG_PASSWORD:
            self._tally.add("auth_failures_total", "proxy")

    def tell(self) -> None:
        if self._events:
            events, self._events = self._events, []
            untold, self._untold = self._untold, 0
            self._send({"t": "flows", "events": events, "lost": untold})
