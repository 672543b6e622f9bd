"""The ledger records of one flow, built in one place so that no field is forgotten in another."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from exeat.ledger.client import stamps
from exeat.ledger.records import Dest, Kind, Record, compose, encode, heading
from exeat.policy.model import Address, Decision, Sni, Speech, Verdict
from exeat.policy.tariff import Wire, header_bytes
from exeat.proxy.refusal import host_text
from exeat.proxy.tcpinfo import KernelCount

if TYPE_CHECKING:
    from exeat.policy.model import Subject
    from exeat.policy.tariff import Price, Tariff

Counts = tuple[int, int, int]  # bytes_out, bytes_in, reserved

_NOTHING: Final = KernelCount()
_NO_HEADING: Final[tuple[tuple[object, ...], bytes | None]] = ((), None)
_NOT_ENDED: Final = (0,) * 8  # duration_ms and the kernel's counts
_UNPRICED: Final = (0, "", "", b"")  # cost_nano_usd to boot_id
_UNDECIDED: Final = Decision(Verdict.DENY, "")


@dataclass(slots=True)
class Evidence:
    """What is known of a flow so far. `started` is boot time in nanoseconds."""

    flow: bytes
    subject: Subject
    src: str
    name_source: str = ""
    host: str | Address = ""
    port: int = 0
    protocol: str = "tcp"
    address: Address | None = None
    sni: str | Sni = Sni.UNSEEN
    generation: int = 0
    policy_digest: bytes = b""
    posture: str = ""
    decision: Decision | None = None
    shadow: str = ""  # what the shadow policy says instead of `decision`
    speech: Speech = Speech.JUDGED  # what the flow was let out as: it goes on while that is permitted
    request_id: str = ""
    tariff: Tariff | None = None
    started: int = field(default_factory=lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME))

    _heading: tuple[tuple[object, ...], bytes | None] = _NO_HEADING  # what it was made of, and it

    def begin(self) -> None:
        """The client's next request is here: what it did not say before took no time of this flow."""
        self.started = time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def _who(self, refused: str = "") -> tuple[Any, ...]:
        """The fields of a record that say who, where and why: from `job` to `node`.

        `refused` is the reason of a refusal that is not the decision's own.
        """
        subject, decision = self.subject, self.decision or _UNDECIDED
        verdict, reason = str(decision.verdict) if self.decision else "", decision.reason
        if refused:
            verdict, reason = "ask" if verdict == "ask" else "deny", refused
        return (
            subject.job,
            subject.project,
            subject.agent,
            self.dest(),
            verdict,
            reason,
            decision.rule,
            decision.lease,
            self.generation,
            self.policy_digest,
            self.posture,
            self.name_source,
            self.src,
            subject.episode,
            subject.node,
        )

    def dest(self) -> Dest:
        sni = "" if isinstance(self.sni, Sni) else self.sni
        ip = self.address.packed() if self.address else b""
        return Dest(host_text(self.host), self.port, self.protocol, ip, sni)

    def _full(self, kind: Kind, counts: Counts, *tail: Any) -> bytes:
        """A record that says who, where and why; `tail` are its fields from `count` on."""
        front = (*stamps(), self.flow, *counts)
        made_of = (self.decision, self.generation, self.address, self.sni)
        if made_of != self._heading[0]:
            self._heading = (made_of, heading(self._who()))
        known = self._heading[1]
        composed = compose(kind, front, known, tail) if known is not None else None
        return composed or encode(Record(kind, *front, *self._who(), *tail))

    def rest(self) -> None:
        """Give up what is kept to write the next record fast: the flow lasts, and there are many."""
        self._heading = _NO_HEADING

    def _brief(self, kind: Kind, counts: Counts) -> bytes:
        """A record of a flow whose `open` says the rest."""
        return encode(Record(kind, *stamps(), self.flow, *counts))

    def opening(self, ceiling: int, cookie: int) -> bytes:
        """The open record, which is also the first reservation: up to `ceiling` bytes may pass."""
        said = (*_UNPRICED, self.shadow) if self.shadow else ()
        return self._full(Kind.OPEN, (0, 0, ceiling), 0, b"", self.request_id, "", *_NOT_ENDED, cookie, *said)

    def reserve(self, ceiling: int, bytes_out: int, bytes_in: int) -> bytes:
        return self._brief(Kind.RESERVE, (bytes_out, bytes_in, ceiling))

    def progress(self, ceiling: int, bytes_out: int, bytes_in: int) -> bytes:
        return self._brief(Kind.PROGRESS, (bytes_out, bytes_in, ceiling))

    def resume(self, ceiling: int, bytes_out: int, bytes_in: int) -> bytes:
        """After a ledger restart: this flow still has an owner."""
        return self._full(Kind.RESUME, (bytes_out, bytes_in, ceiling), 0, b"", self.request_id)

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
        took_ms = (time.clock_gettime_ns(time.CLOCK_BOOTTIME) - self.started) // 1_000_000
        kernel = (up.sent, up.received, near.received, near.sent, up.segs_out, up.segs_in, up.retrans)
        cost = self.cost(Wire(*counts, up.segs_out, up.segs_in)) if self.tariff is not None else None
        price = (cost, self.tariff.digest, "", b"") if cost is not None and self.tariff else None
        unacked = f"unacked {up.unacked}" if up.unacked else ""
        # Fields at the end that hold their default are left out.
        said = (0, *(price or _UNPRICED), unacked) if unacked else (0, *price[:2]) if price else ()
        return self._full(
            Kind.CLOSE, (*counts, ceiling), 0, b"", self.request_id, reason, took_ms, *kernel, *said
        )

    @property
    def price(self) -> Price | None:
        """What the flow's bytes cost; None where nothing says so."""
        return None if self.tariff is None else self.tariff.price(self.host, self.address, self.port)

    def cost(self, wire: Wire) -> int | None:
        """Nano-USD, as the `close` record says it; None without a price."""
        price = self.price
        return None if price is None else price.of(wire, header_bytes(self.address))

    def deny(self, reason: str) -> bytes:
        """A refusal, which may come after an allow (a wrong server name, a failed dial)."""
        front = (*stamps(), self.flow, 0, 0, 0)
        tail: tuple[Any, ...] = (0, b"", self.request_id, "", *_NOT_ENDED, 0, *_UNPRICED, self.shadow)
        return encode(Record(Kind.DENY, *front, *self._who(reason), *tail))
