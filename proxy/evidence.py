"""The ledger records of one flow, built in one place so that no field is forgotten in another."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from exeat.ledger.records import Dest, Kind, Record, encode, printable
from exeat.policy.model import Address, Decision, Sni
from exeat.proxy.refusal import host_text

if TYPE_CHECKING:
    from exeat.policy.model import Subject
    from exeat.proxy.tcpinfo import KernelCount


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
    request_id: str = ""
    started: int = field(default_factory=lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME))

    def record(self, kind: Kind) -> Record:
        """A record that says who, where and why; counts are the caller's to add."""
        decision = self.decision
        return Record(
            kind,
            t_real_ns=time.time_ns(),
            t_boot_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME),
            flow=self.flow,
            job=self.subject.job,
            project=self.subject.project,
            agent=self.subject.agent,
            dest=self._dest(),
            decision=decision.verdict.value if decision else "",
            reason_code=decision.reason if decision else "",
            rule_id=decision.rule if decision else "",
            lease_id=decision.lease if decision else "",
            generation=self.generation,
            policy_digest=self.policy_digest,
            posture=self.posture,
            name_source=self.name_source,
            src=self.src,
            episode=self.subject.episode,
            node=self.subject.node,
            corr_id=self.request_id,
        )

    def _dest(self) -> Dest:
        sni = "" if isinstance(self.sni, Sni) else self.sni
        ip = self.address.packed() if self.address else b""
        return Dest(host_text(self.host), self.port, "tcp", ip, sni)

    def brief(self, kind: Kind) -> Record:
        """A record of a flow whose `open` says the rest."""
        return Record(
            kind,
            t_real_ns=time.time_ns(),
            t_boot_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME),
            flow=self.flow,
        )

    def opening(self, ceiling: int, cookie: int) -> list[bytes]:
        """The open record and the first reservation, for one request to the ledger."""
        opened = dataclasses.replace(self.record(Kind.OPEN), cookie=cookie)
        return [encode(opened), self.reserve(ceiling, 0, 0)]

    def reserve(self, ceiling: int, bytes_out: int, bytes_in: int) -> bytes:
        record = self.brief(Kind.RESERVE)
        return encode(dataclasses.replace(record, reserved=ceiling, bytes_out=bytes_out, bytes_in=bytes_in))

    def progress(self, kind: Kind, ceiling: int, bytes_out: int, bytes_in: int) -> bytes:
        """PROGRESS, or RESUME after a ledger restart."""
        record = self.record(kind) if kind is Kind.RESUME else self.brief(kind)
        return encode(dataclasses.replace(record, reserved=ceiling, bytes_out=bytes_out, bytes_in=bytes_in))

    def close(
        self,
        reason: str,
        ceiling: int,
        counts: tuple[int, int],
        upstream: KernelCount | None,
        client: KernelCount | None,
    ) -> bytes:
        """`counts` are (out, in) of our own book; the kernel's are already payload bytes."""
        record = self.record(Kind.CLOSE)
        record = dataclasses.replace(
            record,
            bytes_out=counts[0],
            bytes_in=counts[1],
            reserved=ceiling,
            close_reason=reason,
            duration_ms=(record.t_boot_ns - self.started) // 1_000_000,
        )
        if upstream is not None:
            record = dataclasses.replace(
                record,
                kernel_out=upstream.sent,
                kernel_in=upstream.received,
                segs_out=upstream.segs_out,
                segs_in=upstream.segs_in,
                retrans=upstream.retrans,
                detail=f"unacked {upstream.unacked}" if upstream.unacked else "",
            )
        if client is not None:
            record = dataclasses.replace(
                record, client_kernel_out=client.received, client_kernel_in=client.sent
            )
        return encode(record)

    def deny(self, reason: str, detail: str = "") -> bytes:
        """A refusal, which may come after an allow (a wrong server name, a failed dial)."""
        record = self.record(Kind.DENY)
        verdict = record.decision if record.decision in ("deny", "ask") else "deny"
        return encode(
            dataclasses.replace(record, decision=verdict, reason_code=reason, detail=printable(detail))
        )
