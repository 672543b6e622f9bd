"""What a job reached and did not, one line per destination, out of the ledger's records."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from exeat.ledger.reader import read_records
from exeat.ledger.records import Kind, Record
from exeat.policy.model import Decision, Verdict
from exeat.policy.reasons import advise, short_text

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_UNITS = ("B", "kB", "MB", "GB", "TB")


@dataclass
class Line:
    """One destination: how often it was let through and refused, and the bytes."""

    host: str
    port: int
    allowed: int = 0
    refused: Counter[str] = field(default_factory=Counter)  # by reason code
    bytes_out: int = 0
    bytes_in: int = 0
    lease: str = ""
    rule: str = ""
    ended: Counter[str] = field(default_factory=Counter)  # close reasons other than a normal end
    next_step: str = ""

    @property
    def name(self) -> str:
        if not self.host:
            return "(no valid destination)"
        return f"{self.host}:{self.port}" if self.port else self.host

    @property
    def verdict(self) -> str:
        if self.allowed and self.refused:
            return "mixed"
        if self.allowed:
            return "allowed"
        return (
            "asked"
            if set(self.refused) <= {"rule.ask", "posture.ask", "posture.ask_ip", "budget.ask"}
            else "refused"
        )


def of_job(ledger: Path, job: str) -> list[Line]:
    """The lines of `job`, in order of first sight."""
    return summarise(record for _, record in read_records(ledger) if record.job == job)


def summarise(records: Iterable[Record]) -> list[Line]:
    """Fold one job's records into lines."""
    lines: dict[tuple[str, int], Line] = {}
    flows: dict[bytes, Line] = {}
    for record in records:
        if record.kind is Kind.DNS:
            _lookup(lines, record)
        elif record.dest is not None or record.flow in flows:
            _flow(lines, flows, record)
    return list(lines.values())


def _line(lines: dict[tuple[str, int], Line], host: str, port: int) -> Line:
    return lines.setdefault((host, port), Line(host, port))


def _lookup(lines: dict[tuple[str, int], Line], record: Record) -> None:
    """A refused lookup is a line of its own only if no flow speaks for the name."""
    if record.decision == "allow" or record.dest is None:
        return
    if any(host == record.dest.host for host, _ in lines):
        return
    line = _line(lines, record.dest.host, 0)
    line.refused[record.reason_code] += max(1, record.count)
    line.next_step = _advice(record, record.dest.host, 443)


def _flow(lines: dict[tuple[str, int], Line], flows: dict[bytes, Line], record: Record) -> None:
    line = flows.get(record.flow) if record.flow else None
    if line is None and record.dest is not None:
        lines.pop((record.dest.host, 0), None)
        line = _line(lines, record.dest.host, record.dest.port)
    if line is None:
        return
    if record.kind is Kind.OPEN:
        flows[record.flow] = line
        line.allowed += 1
        line.lease, line.rule = record.lease_id or line.lease, record.rule_id or line.rule
    elif record.kind is Kind.DENY:
        line.refused[record.reason_code] += max(1, record.count)
        line.next_step = _advice(record, line.host, line.port)
    elif record.kind in (Kind.CLOSE, Kind.ORPHAN):
        line.bytes_out += record.bytes_out
        line.bytes_in += record.bytes_in
        if record.close_reason not in ("", "eof", "done"):
            line.ended[record.close_reason] += 1


def _advice(record: Record, host: str, port: int) -> str:
    """Why, and the next command; a request that is already there is named."""
    if record.corr_id:
        return f"{short_text(record.reason_code)}; run: exeat lease approve {record.corr_id}"
    verdict = Verdict.ASK if record.decision == "ask" else Verdict.DENY
    return advise(Decision(verdict, record.reason_code, rule=record.rule_id), host, port, record.project)


def human(count: int) -> str:
    """Bytes for people: three significant digits, SI units."""
    value = float(count)
    for unit in _UNITS:
        if value < 1000 or unit == _UNITS[-1]:
            return f"{count} B" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    raise AssertionError("unreachable")


def as_text(lines: list[Line]) -> str:
    """A table, one line per destination; refusals carry the reason and the next command."""
    if not lines:
        return "exeat: the ledger holds no flow or lookup of this job"
    width = min(48, max(len(line.name) for line in lines))
    out = ["exeat: what the job reached"]
    for line in lines:
        bytes_ = f"{human(line.bytes_out):>9} out {human(line.bytes_in):>9} in" if line.allowed else ""
        out.append(f"  {line.verdict:<8} {line.name:<{width}}  {bytes_}{_why(line)}")
    return "\n".join(out)


def _why(line: Line) -> str:
    parts = [f"lease {line.lease}"] if line.lease else []
    parts += [f"ended: {reason}" for reason in line.ended]
    if line.refused:
        reason, _ = line.refused.most_common(1)[0]
        times = f" ({line.refused.total()}x)" if line.refused.total() > 1 else ""
        parts.append(f"{line.next_step}{times} [{reason}]")
    text = " · ".join(parts)
    return f"  {text}" if text and line.allowed else text


def as_json(job: str, lines: list[Line]) -> str:
    return json.dumps(
        {
            "job": job,
            "destinations": [
                {
                    "host": line.host,
                    "port": line.port,
                    "verdict": line.verdict,
                    "allowed": line.allowed,
                    "refused": dict(line.refused),
                    "bytes_out": line.bytes_out,
                    "bytes_in": line.bytes_in,
                    "lease_id": line.lease,
                    "rule_id": line.rule,
                    "ended": dict(line.ended),
                    "next": line.next_step,
                }
                for line in lines
            ],
        }
    )
