"""The ledger records of one flow, built in one place so that no field is forgotten in another."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from exeat.ledger.records import Dest, Kind, Record, encode
from exeat.policy.model import Address, Decision, Sni, Verdict
from exeat.proxy.refusal import host_text
from exeat.proxy.tcpinfo import KernelCount

if TYPE_CHECKING:
    from exeat.policy.model import Subject

_NOTHING: Final = KernelCount()


@dataclass(slots=True)
class Evidence:
    """What is known of a flow so far. `started` is boot time in nanoseconds."""

    flow: bytes
    subject: Subject
    src: str
    name_source: str = ""
    host: str | Address = ""
    port: int = 0
    address: Address | None = None
    sni: str | Sni = Sni.UNSEEN
    generation: int = 0
    policy_digest: bytes = b""
    posture: str = ""
    decision: Decision | None = None
    shadow: str = ""  # what the shadow policy says instead of `decision`
    request_id: str = ""
    started: int = field(default_factory=lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME))

    def _full(self, kind: Kind, **more: Any) -> Record:
        """A record that says who, where and why; `more` are the fields of its kind."""
        decision = self.decision
        said: dict[str, Any] = {
            "t_real_ns": time.time_ns(),
            "t_boot_ns": time.clock_gettime_ns(time.CLOCK_BOOTTIME),
            "flow": self.flow,
            "job": self.subject.job,
            "project": self.subject.project,
            "agent": self.subject.agent,
            "dest": self._dest(),
            "decision": decision.verdict.value if decision else "",
            "reason_code": decision.reason if decision else "",
            "rule_id": decision.rule if decision else "",
            "lease_id": decision.lease if decision else "",
            "generation": self.generation,
            "policy_digest": self.policy_digest,
            "posture": self.posture,
            "name_source": self.name_source,
            "src": self.src,
            "episode": self.subject.episode,
            "node": self.subject.node,
            "corr_id": self.request_id,
        }
        said.update(more)
        return Record(kind, **said)

    def _dest(self) -> Dest:
        sni = "" if isinstance(self.sni, Sni) else self.sni
        ip = self.address.packed() if self.address else b""
        return Dest(host_text(self.host), self.port, "tcp", ip, sni)

    def _brief(self, kind: Kind, ceiling: int, bytes_out: int, bytes_in: int) -> bytes:
        """A record of a flow whose `open` says the rest."""
        return encode(
            Record(
                kind,
                t_real_ns=time.time_ns(),
                t_boot_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME),
                flow=self.flow,
                bytes_out=bytes_out,
                bytes_in=bytes_in,
                reserved=ceiling,
            )
        )

    def opening(self, ceiling: int, cookie: int) -> list[bytes]:
        """The open record and the first reservation, for one request to the ledger."""
        return [
            encode(self._full(Kind.OPEN, cookie=cookie, detail=self.shadow)),
            self._brief(Kind.RESERVE, ceiling, 0, 0),
        ]

    def reserve(self, ceiling: int, bytes_out: int, bytes_in: int) -> bytes:
        return self._brief(Kind.RESERVE, ceiling, bytes_out, bytes_in)

    def progress(self, ceiling: int, bytes_out: int, bytes_in: int) -> bytes:
        return self._brief(Kind.PROGRESS, ceiling, bytes_out, bytes_in)

    def resume(self, ceiling: int, bytes_out: int, bytes_in: int) -> bytes:
        """After a ledger restart: this flow still has an owner."""
        return encode(self._full(Kind.RESUME, reserved=ceiling, bytes_out=bytes_out, bytes_in=bytes_in))

    def close(
        self,
        reason: str,
        ceiling: int,
        counts: tuple[int, int],
        upstream: KernelCount | None,
        client: KernelCount | None,
    ) -> bytes:
        """`counts` are (out, in) of our own book; the kernel's are already payload bytes."""
        up, near = upstream or _NOTHING, client or _NOTHING
        ended = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        return encode(
            self._full(
                Kind.CLOSE,
                bytes_out=counts[0],
                bytes_in=counts[1],
                reserved=ceiling,
                close_reason=reason,
                duration_ms=(ended - self.started) // 1_000_000,
                kernel_out=up.sent,
                kernel_in=up.received,
                client_kernel_out=near.received,
                client_kernel_in=near.sent,
                segs_out=up.segs_out,
                segs_in=up.segs_in,
                retrans=up.retrans,
                detail=f"unacked {up.unacked}" if up.unacked else "",
            )
        )

    def deny(self, reason: str) -> bytes:
        """A refusal, which may come after an allow (a wrong server name, a failed dial)."""
        asked = self.decision is not None and self.decision.verdict is Verdict.ASK
        return encode(
            self._full(Kind.DENY, decision="ask" if asked else "deny", reason_code=reason, detail=self.shadow)
        )
