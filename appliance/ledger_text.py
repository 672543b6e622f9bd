"""Records as JSON for programs and as lines for people."""

from __future__ import annotations

import ipaddress
from dataclasses import fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from exeat.ledger.records import Kind

if TYPE_CHECKING:
    from exeat.ledger.records import Record

_HEX = {"flow", "policy_digest", "answer", "boot_id", "data"}
_COUNTED = {Kind.PROGRESS, Kind.CLOSE, Kind.ORPHAN}


def as_json(seq: int, record: Record) -> dict[str, Any]:
    """A record for programs: fields that hold their default are left out."""
    out: dict[str, Any] = {"seq": seq, "kind": record.kind.label}
    for field in fields(record)[1:]:
        value = getattr(record, field.name)
        if value != field.default:
            out[field.name] = value.hex() if field.name in _HEX else value
    if record.dest is not None:
        out["dest"] = {**record.dest._asdict(), "ip": _address(record.dest.ip)}
    return out


def line(seq: int, record: Record) -> str:
    """A record for people, on one line."""
    at = datetime.fromtimestamp(record.t_real_ns / 1e9, tz=UTC).strftime("%H:%M:%S.%f")[:-3]
    return f"{seq:>8}  {at}  {record.kind.label:<9}  {record.job or '-':<16}  {_what(record)}".rstrip()


def _what(record: Record) -> str:
    parts = [record.decision, _place(record)]
    if record.kind in _COUNTED:
        parts.append(f"out {human(record.bytes_out)} in {human(record.bytes_in)}")
    if record.reserved:
        parts.append(f"up to {human(record.reserved)}")
    if record.count > 1:
        parts.append(f"x{record.count}")
    parts.append(record.close_reason or record.reason_code)
    parts += [record.rule_id and f"by {record.rule_id}", record.lease_id and f"lease {record.lease_id}"]
    parts += [record.actor and f"({record.actor})", record.detail]
    if record.dest is None and record.flow:
        parts.append(f"flow {record.flow.hex()[:8]}")
    return "  ".join(part for part in parts if part)


def _place(record: Record) -> str:
    dest = record.dest
    if dest is None:
        return ""
    host = f"[{dest.host}]" if ":" in dest.host else dest.host
    return f"{host}:{dest.port}" if dest.port else host


def _address(packed: bytes) -> str:
    return str(ipaddress.ip_address(packed)) if packed else ""


def human(count: int) -> str:
    """Bytes for people, SI units."""
    value, unit = float(count), 0
    while value >= 999.5 and unit < 4:
        value, unit = value / 1000, unit + 1
    name = ("B", "kB", "MB", "GB", "TB")[unit]
    return f"{count} B" if unit == 0 else f"{value:.3g} {name}"


def cell(value: Any) -> Any:
    """A spreadsheet must not take a text from the ledger for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value


def usd(nano: int) -> str:
    """A sum in dollars, exact: at least cents, at most nine places."""
    whole, rest = divmod(nano, 1_000_000_000)
    places = f"{rest:09d}".rstrip("0")
    return f"{whole}.{places:0<2}"
