"""One direct flow: a pinhole, what it may move, and its records.

Its bytes are those that nftables counted: of IP packets, headers included.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from exeat.appliance.control.direct_places import Place
from exeat.ledger.client import stamps
from exeat.ledger.records import Dest, Kind, Record, encode
from exeat.policy.addresses import from_packed
from exeat.policy.names import parse_host
from exeat.policy.tariff import Wire

if TYPE_CHECKING:
    from exeat.appliance.control.ledger_line import LedgerLine
    from exeat.policy.model import Address
    from exeat.policy.tariff import Tariff

NAME_SOURCE: Final = "direct"
EXHAUSTED: Final = "lease.exhausted"
MAX_TARGETS: Final = 64  # as the warden takes
PROGRESS_S: Final = 60.0


@dataclass(frozen=True)
class Terms:
    """What is kept of a flow until its close is durable: enough to settle it after a crash."""

    number: int
    flow: str  # hex
    lease: str
    member: str
    host: str
    port: int
    proto: str
    quota: int  # bytes, which is what the flow has reserved
    target: str  # hex of an address it began with
    started_ns: int  # CLOCK_BOOTTIME
    generation: int = 0
    policy: str = ""
    posture: str = ""
    spent: str = EXHAUSTED  # the reason code once `quota` has passed: what bounded it, a lease or a budget

    @classmethod
    def load(cls, body: str) -> Terms:
        return cls(**json.loads(body))

    def dump(self) -> str:
        return json.dumps(asdict(self))

    @property
    def place(self) -> Place:
        return Place(self.lease, self.member, parse_host(self.host), self.port, self.proto)


@dataclass(eq=False)
class DirectFlow:
    """`end` is when its lease ends, seconds of CLOCK_BOOTTIME; `ended` the reason code once it is over."""

    terms: Terms
    node: str
    line: LedgerLine
    end: int = 0
    addresses: dict[Address, float] = field(default_factory=dict)  # until when, of the loop's clock
    out: int = 0
    into: int = 0
    ended: str = ""
    applied: bool = False  # the warden has it
    final: bool = False  # its counts will not change any more
    progressed: float = 0.0
    retold: float = 0.0  # when its name was looked up last
    tariff: Tariff | None = None

    @property
    def place(self) -> Place:
        return self.terms.place

    @property
    def subject(self) -> dict[str, str]:
        project, _, agent = self.terms.member.partition("/")
        return {"project": project, "agent": agent, "job": "", "episode": "", "node": self.node}

    def pinhole(self) -> dict[str, Any]:
        """As `routing.set` takes it. An ended one stays, shut, until its last count is read."""
        packed = sorted(address.packed().hex() for address in self.addresses)[:MAX_TARGETS]
        terms = self.terms
        return {
            "number": terms.number,
            "member": terms.member,
            "targets": [[text, terms.proto, terms.port] for text in packed or [terms.target]],
            "quota": terms.quota,
            "end": 0 if self.ended else self.end,
        }

    def row(self) -> dict[str, Any]:
        """As the proxy tells of its flows (`flows.part`)."""
        terms, subject = self.terms, self.subject
        return {
            "flow": terms.flow,
            "project": subject["project"],
            "agent": subject["agent"],
            "job": "",
            "dest": f"{terms.host}:{terms.port}",
            "proto": terms.proto,
            "state": "live",
            "verdict": "allow",
            "reason": "lease.active",
            "rule": terms.lease,
            "lease": terms.lease,
            "bytes_out": self.out,
            "bytes_in": self.into,
            "started_ns": terms.started_ns,
        }

    def event(self, what: str) -> dict[str, Any]:
        row = {**self.row(), "ev": what, "reason": self.ended or "lease.active"}
        return {key: row[key] for key in EVENT}

    # -- records

    def opening(self) -> bytes:
        """The `open` record: all that the pinhole may ever move is reserved by it."""
        return self._full(Kind.OPEN)

    def progress(self) -> bytes:
        counts = (self.out, self.into, self.terms.quota)
        return encode(Record(Kind.PROGRESS, *stamps(), bytes.fromhex(self.terms.flow), *counts))

    def resume(self) -> bytes:
        """After a ledger restart: this flow still has an owner."""
        return self._full(Kind.RESUME)

    def close(self) -> bytes:
        took_ms = (time.clock_gettime_ns(time.CLOCK_BOOTTIME) - self.terms.started_ns) // 1_000_000
        return self._full(Kind.CLOSE, close_reason=self.ended, duration_ms=max(0, took_ms), **self._cost())

    def _cost(self) -> dict[str, Any]:
        """Headers are in its bytes; there are no segments to add."""
        if self.tariff is None:
            return {}
        place, target = self.place, from_packed(bytes.fromhex(self.terms.target))
        cost = self.tariff.cost(place.host, target, place.port, Wire(self.out, self.into))
        return {} if cost is None else {"cost_nano_usd": cost, "tariff": self.tariff.digest}

    def _full(self, kind: Kind, **more: Any) -> bytes:
        terms, subject = self.terms, self.subject
        real, boot = stamps()
        return encode(
            Record(
                kind,
                real,
                boot,
                bytes.fromhex(terms.flow),
                self.out,
                self.into,
                terms.quota,
                project=subject["project"],
                agent=subject["agent"],
                dest=Dest(terms.host.strip("[]"), terms.port, terms.proto, bytes.fromhex(terms.target)),
                decision="allow",
                reason_code="lease.active",
                rule_id=terms.lease,
                lease_id=terms.lease,
                generation=terms.generation,
                policy_digest=bytes.fromhex(terms.policy),
                posture=terms.posture,
                name_source=NAME_SOURCE,
                src=f"pinhole {terms.number}",
                node=self.node,
                **more,
            )
        )


EVENT: Final = ("ev", "flow", "project", "job", "dest", "verdict", "reason", "bytes_in", "bytes_out")
