"""A record as other systems want it: JSON lines, syslog messages, OTLP logs. Pure."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from exeat.appliance.ledger_text import as_json
from exeat.ledger.records import Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exeat.ledger.records import Record

_FACILITY: Final = 13  # log audit (RFC 5424 section 6.2.1)
_ERROR, _WARNING, _NOTICE, _INFO = 3, 4, 5, 6
_SEVERITY: Final = {
    Kind.ANOMALY: _ERROR,
    Kind.GAP: _ERROR,
    Kind.DENY: _WARNING,
    Kind.ORPHAN: _WARNING,
    Kind.LEASE: _NOTICE,
    Kind.POLICY: _NOTICE,
    Kind.KEY: _NOTICE,
    Kind.ADMIN: _NOTICE,
}
# OpenTelemetry's numbers (logs data model, "Severity fields") for those of syslog.
_OTLP: Final = {_ERROR: (17, "ERROR"), _WARNING: (13, "WARN"), _NOTICE: (10, "INFO2"), _INFO: (9, "INFO")}
_SPANS: Final = frozenset({Kind.CLOSE, Kind.ORPHAN, Kind.DENY})
_NODE_CAP: Final = 255  # HOSTNAME of RFC 5424


class Missed(NamedTuple):
    """Records `first` to `last` were dropped unsent; `proof` is that the record beside it is the ledger's."""

    first: int
    last: int
    proof: str


class Event(NamedTuple):
    """A record with its place: `ledger` is the SHA-256 of the origin in hex.

    With `missed` it stands in the place of others (`stream.missed`), and may come again in its own.
    """

    ledger: str
    seq: int
    record: Record
    missed: Missed | None = None

    def fields(self) -> dict[str, Any]:
        """`seq` and `ledger` are unique together: who gets an event twice sees it by them."""
        found = {"ledger": self.ledger, **as_json(self.seq, self.record)}
        return found if self.missed is None else {**found, "missed": self.missed._asdict()}

    @property
    def severity(self) -> int:
        """Of RFC 5424."""
        refused = self.record.kind is Kind.DNS and self.record.decision == "deny"
        return _WARNING if refused else _SEVERITY.get(self.record.kind, _INFO)


def json_line(event: Event) -> bytes:
    return json.dumps(event.fields(), separators=(",", ":")).encode() + b"\n"


def syslog(event: Event, node: str) -> bytes:
    """One message of RFC 5424; its text is the event as JSON, in ASCII, so that no name can break a line."""
    at = datetime.fromtimestamp(event.record.t_real_ns / 1e9, tz=UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    head = f"<{_FACILITY * 8 + event.severity}>1 {at} {node[:_NODE_CAP] or '-'} exeat - "
    text = json.dumps(event.fields(), separators=(",", ":"))
    return f"{head}{event.record.kind.label} - {text}".encode("ascii")


def otlp(events: Sequence[Event], node: str, now_ns: int) -> bytes:
    """The body of an OTLP/HTTP request in JSON (OTLP 1.x, ExportLogsServiceRequest)."""
    logs = [_log(event, now_ns) for event in events]
    scope = {"scope": {"name": "exeat.ledger"}, "logRecords": logs}
    resource = {"attributes": [_attribute("service.name", "exeat"), _attribute("host.name", node)]}
    return json.dumps({"resourceLogs": [{"resource": resource, "scopeLogs": [scope]}]}).encode()


def otlp_spans(events: Sequence[Event], node: str, _now_ns: int) -> bytes:
    """The same of spans (ExportTraceServiceRequest): one for each end of a flow; b"" if there is none.

    The flow's id is the trace's, so that whoever has the one finds the other. Sums of refusals are no flow.
    """
    spans = [_span(event) for event in events if event.record.kind in _SPANS and event.record.flow]
    if not spans:
        return b""
    scope = {"scope": {"name": "exeat.flows"}, "spans": spans}
    resource = {"attributes": [_attribute("service.name", "exeat"), _attribute("host.name", node)]}
    return json.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": [scope]}]}).encode()


def _span(event: Event) -> dict[str, Any]:
    """Of a `close`, `orphan` or `deny`: their time is the end, and how long it took says the rest."""
    record, fields = event.record, event.fields()
    dest = record.dest
    failed = record.kind is not Kind.CLOSE or record.close_reason != "eof"
    said = record.reason_code if record.kind is Kind.DENY else record.close_reason
    return {
        "traceId": record.flow.hex(),
        "spanId": hashlib.sha256(record.flow + bytes([record.kind])).hexdigest()[:16],
        "name": f"{dest.host}:{dest.port}" if dest is not None else record.kind.label,
        "kind": 3,  # SPAN_KIND_CLIENT
        "startTimeUnixNano": str(record.t_real_ns - record.duration_ms * 1_000_000),
        "endTimeUnixNano": str(record.t_real_ns),
        "attributes": [_attribute(f"exeat.{key}", value) for key, value in _flat(fields)],
        "status": {"code": 2, "message": said} if failed else {"code": 1},
    }


def _log(event: Event, now_ns: int) -> dict[str, Any]:
    number, name = _OTLP[event.severity]
    fields = event.fields()
    return {
        "timeUnixNano": str(event.record.t_real_ns),
        "observedTimeUnixNano": str(now_ns),
        "severityNumber": number,
        "severityText": name,
        "body": {"stringValue": str(fields["kind"])},
        "attributes": [_attribute(f"exeat.{key}", value) for key, value in _flat(fields)],
    }


def _flat(fields: dict[str, Any]) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in fields.items():
        if isinstance(value, dict):
            found += [(f"{key}.{name}", inner) for name, inner in value.items() if inner not in ("", 0)]
        else:
            found.append((key, value))
    return found


def _attribute(key: str, value: Any) -> dict[str, Any]:
    # 64 bits without a sign do not fit into an intValue; those that do go as strings, as proto3 JSON has it.
    if isinstance(value, int) and value < 1 << 63:
        return {"key": key, "value": {"intValue": str(value)}}
    return {"key": key, "value": {"stringValue": str(value)}}
