"""What the ledger adds up to: lookups, charts of egress, daily reviews, who decided what."""

from __future__ import annotations

import re
import time
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from exeat.appliance.console import explored
from exeat.appliance.console.explored import FilteredPage, Filters, Moment, Page
from exeat.appliance.console.models import Out, Project, Query
from exeat.appliance.console.routing import Call, Routes

routes = Routes("views")
_DAY_MS: Final = 86_400_000
_SCORE: Final = re.compile(r"score ([0-9.]+)")


class LookupRow(Out):
    """`count` lookups of one name with one verdict, the last at `at_ms`."""

    seq: int
    at_ms: int
    project: str
    agent: str
    job: str
    name: str
    verdict: str
    reason: str
    rule: str
    count: int


class LookupPage(Out):
    items: list[LookupRow]
    next: str | None
    as_of_ms: int


class AnomalyRow(Out):
    """A domain below which data seemed to leave in names that were looked up; `detail` says by what signs."""

    at_ms: int
    project: str
    agent: str
    domain: str
    verdict: str
    reason: str
    score: float | None
    times: int
    detail: str


class Anomalies(Out):
    items: list[AnomalyRow]


class ChartQuery(Query):
    """Without `since` the last day; without `step_s` some hundred steps."""

    by: Literal["project", "host"] = "project"
    since: Moment | None = None
    until: Moment | None = None
    step_s: Annotated[int, Field(ge=1, le=7 * 86_400)] | None = None
    project: Project | None = None


class Series(Out):
    """`other` sums up what is not shown by name."""

    key: str
    other: bool
    bytes_out: list[int]
    bytes_in: list[int]
    flows: list[int]


class Edge(Out):
    project: str
    host: str
    bytes_out: int
    bytes_in: int
    flows: int


class Chart(Out):
    """Bytes of flows by the step in which they ended; `times` are seconds since 1970. `edges` are who sent
    how much where in all that time, most bytes first."""

    by: str
    since_ms: int
    until_ms: int
    step_s: int
    times: list[int]
    series: list[Series]
    edges: list[Edge]
    as_of_ms: int


class DayRow(Out):
    """A day of UTC. `other` counts what is no flow: lookups, refusals and so on."""

    day: str
    state: Literal["open", "over"]
    flows: int
    bytes_out: int
    bytes_in: int
    other: int
    cost_nano_usd: int


class Days(Out):
    items: list[DayRow]


class Review(Out):
    """`exeat ledger review`: as text, and as its figures."""

    day: str
    text: str
    figures: dict[str, Any]


class AuditRow(Out):
    """`who` decided `action` about `target`. `record` is the ledger's, with all it says."""

    seq: int
    at_ms: int
    who: str
    kind: str
    action: str
    target: str
    project: str
    detail: str
    record: dict[str, Any]


class AuditPage(Out):
    items: list[AuditRow]
    next: str | None


@routes.get("/dns", "dns.read", query=FilteredPage, out=LookupPage, errors=(404, 503))
async def dns(call: Call) -> LookupPage:
    """Lookups, newest first."""
    query = call.query
    found = await explored.ask(call, "entries", kinds=["dns"], **query.asked(), **query.paged())
    named = ("seq", "project", "agent", "job", "verdict", "reason", "rule", "count")
    items = [
        LookupRow(at_ms=row["time"], name=row["host"], **{name: row[name] for name in named})
        for row in found["items"]
    ]
    following = None if found["next"] is None else str(found["next"])
    return LookupPage(items=items, next=following, as_of_ms=found["as_of"]["t"])


@routes.get("/dns/anomalies", "dns.read", query=Filters, out=Anomalies, errors=(404, 503))
async def anomalies(call: Call) -> Anomalies:
    """Where data seemed to leave in the names of lookups, the latest first."""
    found = await explored.ask(call, "dns.anomalies", **call.query.asked())
    return Anomalies(items=[_anomaly(row) for row in found["items"]])


def _anomaly(row: dict[str, Any]) -> AnomalyRow:
    score = _SCORE.search(row["detail"])
    named = {name: row[name] for name in ("project", "agent", "verdict", "reason", "times", "detail")}
    return AnomalyRow(
        at_ms=row["last_ms"], domain=row["host"], score=float(score[1]) if score else None, **named
    )


@routes.get("/charts/egress", "charts.read", query=ChartQuery, out=Chart, errors=(404, 503))
async def egress(call: Call) -> Chart:
    """How much left, over time and to where."""
    query = call.query
    until = query.until if query.until is not None else time.time_ns() // 1_000_000
    since = query.since if query.since is not None else until - _DAY_MS
    step_s = query.step_s or _step_s(until - since)
    more = {} if query.project is None else {"project": query.project}
    found = await explored.ask(
        call, "egress", by=query.by, since=since, until=until, step_ms=step_s * 1000, **more
    )
    return Chart(
        by=query.by,
        since_ms=since,
        until_ms=until,
        step_s=step_s,
        times=[at // 1000 for at in found["times"]],
        series=[Series(key=each.pop("name"), **each) for each in found["series"]],
        edges=[Edge(**{name: each[name] for name in Edge.model_fields}) for each in found["edges"]],
        as_of_ms=found["as_of"]["t"],
    )


def _step_s(span_ms: int) -> int:
    """Minutes, hours or days: at most some three hundred steps. Whole hours are quick to sum."""
    for step in (60, 300, 900, 3600, 6 * 3600):
        if span_ms <= step * 300_000:
            return step
    return 86_400


@routes.get("/reviews", "reviews.read", out=Days, errors=(403, 503))
async def reviews(call: Call) -> Days:
    """The days there is something to say of, newest first."""
    explored.need_all(call)
    found = await explored.ask(call, "days")
    today = time.strftime("%Y-%m-%d", time.gmtime())
    return Days(
        items=[DayRow(state="open" if row["day"] == today else "over", **row) for row in found["items"]]
    )


@routes.get("/reviews/{day}", "reviews.read", out=Review, errors=(403, 503))
async def review(call: Call) -> Review:
    """One day: destinations, what is new, refusals, leases, costs."""
    explored.need_all(call)
    found = await explored.ask(call, "review", day=call.path("day"))
    return Review(day=found["figures"]["day"], **found)


@routes.get("/audit", "audit.read", query=Page, out=AuditPage, errors=(503,))
async def audit(call: Call) -> AuditPage:
    """Who did what: leases, policies, the kill switch, keys, merges, accounts, and what is an anomaly."""
    found = await explored.ask(call, "audit", **call.query.paged())
    following = None if found["next"] is None else str(found["next"])
    return AuditPage(items=[_act(record) for record in found["items"]], next=following)


def _act(record: dict[str, Any]) -> AuditRow:
    return AuditRow(
        seq=record["seq"],
        at_ms=record["t_real_ns"] // 1_000_000,
        who=record.get("actor", ""),
        kind=record["kind"],
        action=record.get("decision", ""),
        target=record.get("lease_id") or record.get("job") or record.get("project", ""),
        project=record.get("project", ""),
        detail=record.get("detail", ""),
        record=record,
    )
