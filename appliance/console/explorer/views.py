"""Charts of egress, lookups that look like data, daily reviews. Runs in a worker."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, Final

from exeat.appliance.console.explorer.asked import AskError, Place, question_of
from exeat.appliance.console.explorer.ledger import newest
from exeat.appliance.review.tables import as_object, as_text
from exeat.ledger.index import HOUR_MS
from exeat.ledger.questions import SUMS, Question, flows_by_step, sums
from exeat.ledger.review import review as review_day

if TYPE_CHECKING:
    from exeat.ledger.index import Index

DAY_MS: Final = 86_400_000
MOST_STEPS: Final = 1500
_TUNNELS: Final = ("dns.tunnel", "dns.tunnel_suspected")
_KNOWN_DAYS: Final = 30
_SERIES: Final = 12  # shown by name; the rest is summed as ""
_EDGES: Final = 200


def egress(place: Place, args: dict[str, Any]) -> dict[str, Any]:
    """Bytes of flows that ended in each step of `step_ms`, by project or host; the largest by name."""
    by, step, since, until = args["by"], int(args["step_ms"]), int(args["since"]), int(args["until"])
    first, steps = since // step, -(-until // step) - since // step
    if not 0 < steps <= MOST_STEPS:
        raise AskError("query.steps", f"{steps} steps: choose a longer one, at most {MOST_STEPS} are shown")
    with place.index() as index:
        span = {"since": first * step, "until": (first + steps) * step}
        rows = _rows(index, by, step, question_of({**args, **span}))
        edges = sums(index, question_of(args), ["project", "host"])
        fresh = index.fresh()
    total: dict[str, int] = defaultdict(int)
    for _, name, out, into, _ in rows:
        total[name] += out + into
    shown = sorted(total, key=lambda name: (-total[name], name))[:_SERIES]
    series = {name: {what: [0] * steps for what in ("bytes_out", "bytes_in", "flows")} for name in shown}
    rest = {what: [0] * steps for what in ("bytes_out", "bytes_in", "flows")}
    for at, name, *values in rows:
        for what, value in zip(("bytes_out", "bytes_in", "flows"), values, strict=True):
            series.get(name, rest)[what][at - first] += value
    named = [{"name": name, "other": False, **series[name]} for name in shown]
    others = [{"name": "", "other": True, **rest}] if len(total) > len(shown) else []
    times = [(first + number) * step for number in range(steps)]
    named_edges = ("project", "host", *SUMS)
    return {
        "step_ms": step,
        "times": times,
        "series": named + others,
        "edges": [dict(zip(named_edges, row, strict=True)) for row in edges if row[4]][:_EDGES],
        "as_of": fresh._asdict(),
    }


def _rows(index: Index, by: str, step: int, question: Question) -> list[tuple[Any, ...]]:
    """Steps that are whole hours come from the sums per hour."""
    if step % HOUR_MS == 0:
        found = sums(index, question, [by, "hour"])
        return [
            (int(datetime.fromisoformat(hour).timestamp() * 1000) // step, name, out, into, flows)
            for name, hour, out, into, flows, *_ in found
        ]
    return flows_by_step(index, question, step, by)


def dns_anomalies(place: Place, args: dict[str, Any]) -> dict[str, Any]:
    """Domains below which data seemed to leave, with what the newest record says of each."""
    items = []
    with place.index() as index:
        for reason in _TUNNELS:
            asked = {**args, "reason": reason}
            for project, agent, host, verdict, *_, times, _cost in sums(
                index, question_of(asked), ["project", "agent", "host", "verdict"]
            ):
                about = {"project": project, "agent": agent, "host": host, "verdict": verdict}
                last = newest(index, place, {**asked, **about})
                items.append(
                    {
                        **about,
                        "reason": reason,
                        "times": times,
                        "last_ms": last.t_real_ns // 1_000_000 if last else 0,
                        "detail": last.detail if last else "",
                    }
                )
    return {"items": sorted(items, key=lambda item: -item["last_ms"])}


def days(place: Place, _args: dict[str, Any]) -> dict[str, Any]:
    """The days of UTC there is anything about, newest first."""
    with place.index() as index:
        rows = sums(index, Question(), ["day"])
    named = ("day", *SUMS)
    return {"items": [dict(zip(named, row, strict=True)) for row in sorted(rows, reverse=True)]}


def review(place: Place, args: dict[str, Any]) -> dict[str, Any]:
    """One day, as `exeat ledger review` gives it; new is what the 30 days before did not have."""
    try:
        day = date.fromisoformat(args["day"])
    except ValueError:
        raise AskError("query.day", "a day is written like 2026-01-31") from None
    start_ms = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000)
    with place.index() as index:
        rows = sums(index, Question({}, start_ms - _KNOWN_DAYS * DAY_MS, start_ms), ["project", "host"])
    known = [(project, host) for project, host, _, _, flows, *_ in rows if flows]
    found = review_day(place.directory, day.isoformat(), start_ms * 1_000_000, known)
    return {"text": as_text(found), "figures": as_object(found)}
