"""A review as text, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any

from exeat.appliance.ledger_text import as_json, cell, human, line, usd

if TYPE_CHECKING:
    from exeat.ledger.review import Place, Review, Traffic

_TOP = 10
_COLUMNS = (
    *("day", "project", "host", "port", "verdict", "reason", "rule", "new"),
    *("flows", "times", "bytes_out", "bytes_in", "cost_nano_usd"),
)


def top(found: Review, project: str) -> list[tuple[Place, Traffic]]:
    """The destinations of a project, most bytes first."""
    mine = ((place, traffic) for place, traffic in found.places.items() if place.project == project)
    return sorted(mine, key=lambda item: (-item[1].bytes_out - item[1].bytes_in, item[0]))


def rows(found: Review) -> list[tuple[Any, ...]]:
    """One for each destination, then one for each sort of refusal, in `_COLUMNS`."""
    passed = [
        (
            *(found.day, place.project, place.host, place.port, "allow", "", ""),
            (place.project, place.host) in found.new,
            *(traffic.flows, 0, traffic.bytes_out, traffic.bytes_in, traffic.cost_nano_usd),
        )
        for project in found.projects()
        for place, traffic in top(found, project)
    ]
    refused = [
        (
            *(found.day, refusal.project, refusal.host, refusal.port, "deny", refusal.reason, refusal.rule),
            *(False, 0, times, 0, 0, 0),
        )
        for refusal, times in sorted(found.refusals.items(), key=lambda item: (-item[1], item[0]))
    ]
    return passed + refused


def as_csv(found: Review) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows([cell(value) for value in row] for row in rows(found))
    return out.getvalue()


def as_object(found: Review) -> dict[str, Any]:
    """The review for programs."""
    total = found.total
    return {
        "day": found.day,
        "records": found.records,
        "flows": total.flows,
        "bytes_out": total.bytes_out,
        "bytes_in": total.bytes_in,
        "cost_nano_usd": total.cost_nano_usd,
        "refused": found.refused,
        "jobs": len(found.jobs),
        "orphaned": found.orphaned,
        "open": found.open,
        "more": found.more,
        "dropped": found.dropped,
        "hours": [dict(zip(("bytes_out", "bytes_in", "refused"), hour, strict=True)) for hour in found.hours],
        "rows": [dict(zip(_COLUMNS, row, strict=True)) for row in rows(found)],
        "leases": [as_json(*entry) for entry in found.leases],
        "events": [as_json(*entry) for entry in found.events],
        "drifts": [as_json(*entry) for entry in found.drifts],
    }


def as_text(found: Review) -> str:
    total = found.total
    lines = [
        f"{found.day}: {total.flows} flows, out {human(total.bytes_out)}, in {human(total.bytes_in)},"
        f" {found.refused} refusals, {len(found.jobs)} jobs{_cost(total)}"
    ]
    for project in found.projects():
        lines += ["", f"project {project or '-'}", *_project(found, project)]
    for title, entries in (
        ("leases", found.leases),
        ("events", found.events),
        ("books that differ from the kernel's", found.drifts),
    ):
        lines += ["", title, *(f"  {line(*entry)}" for entry in entries)] if entries else []
    left = [
        (found.orphaned, "orphaned"),
        (found.open, "still open"),
        (found.more, "more, not shown one by one"),
        (found.dropped, "records were dropped by age or size: THIS DAY IS NOT COMPLETE"),
    ]
    lines += ["", *(f"{count} {what}" for count, what in left if count)] if any(c for c, _ in left) else []
    return "\n".join(lines)


def _project(found: Review, project: str) -> list[str]:
    lines = []
    places = top(found, project)
    for place, traffic in places[:_TOP]:
        mark = "NEW" if (project, place.host) in found.new else ""
        moved = f"{human(traffic.bytes_out):>8} out {human(traffic.bytes_in):>8} in {traffic.flows:>7} flows"
        lines.append(f"  {moved}  {place.host}:{place.port}  {mark}{_cost(traffic)}".rstrip())
    lines += [f"  ... and {len(places) - _TOP} more"] if len(places) > _TOP else []
    refused = [item for item in found.refusals.most_common() if item[0].project == project]
    for refusal, times in refused[:_TOP]:
        where = refusal.host if refusal.lookup else f"{refusal.host}:{refusal.port}"
        rule = f" by {refusal.rule}" if refusal.rule else ""
        lines.append(f"  refused {times:>6} x  {where}  {refusal.reason}{rule}")
    lines += [f"  ... and {len(refused) - _TOP} more"] if len(refused) > _TOP else []
    return lines


def _cost(traffic: Traffic) -> str:
    return f"  about {usd(traffic.cost_nano_usd)} USD" if traffic.cost_nano_usd else ""


def dumps(found: Review) -> str:
    return json.dumps(as_object(found))
