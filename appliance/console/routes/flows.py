"""What lives and waits now, and cutting it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from exeat.appliance.console.models import Body, Out, Project, Query, Words
from exeat.appliance.console.problems import Problem
from exeat.appliance.console.routing import Call, Routes

routes = Routes("flows")

_Name = Annotated[str, Field(min_length=1, max_length=200)]


class FlowQuery(Query):
    project: Project | None = None
    job: _Name | None = None
    lease: _Name | None = None
    limit: Annotated[int, Field(ge=1, le=2000)] = 500


class FlowRow(Out):
    """`dest` is HOST:PORT; a flow that waits has moved nothing."""

    flow: str
    project: str
    agent: str
    job: str
    dest: str
    proto: str
    state: str
    verdict: str
    reason: str
    rule: str
    lease: str
    bytes_out: int
    bytes_in: int
    started_ms: int


class FlowPage(Out):
    """`total` are those found, `items` at most `limit` of them, oldest first."""

    items: list[FlowRow]
    total: int


class Cut(Body):
    reason: Words


class CutOut(Out):
    """How many it was."""

    cut: int


@routes.get("/flows", "flows.read", query=FlowQuery, out=FlowPage, errors=(404, 503))
async def ls(call: Call) -> FlowPage:
    """The flows of this node that live or wait. What has ended is the ledger's."""
    query = call.query
    if query.project is not None:
        call.who.need(query.project)
    reply = await call.control("flow.ls", project=query.project)
    wanted = {key: value for key in ("job", "lease") if (value := getattr(query, key)) is not None}
    rows = [
        row
        for row in reply["flows"]
        if call.who.sees(row["project"]) and all(row[key] == value for key, value in wanted.items())
    ]
    narrowed = bool(wanted or call.who.projects)
    total = len(rows) if narrowed else reply["total"]
    return FlowPage(items=[_row(row) for row in rows[: query.limit]], total=total)


@routes.post("/flows/{id}/cut", "flows.cut", body=Cut, out=CutOut, errors=(404, 409, 503))
async def cut(call: Call) -> CutOut:
    """End one flow at once; it is on the ledger who did, and why."""
    name = call.path("id")
    rows = (await call.control("flow.ls"))["flows"]
    found = [row for row in rows if row["flow"] == name]
    if not found or not call.who.sees(found[0]["project"]):
        raise Problem(404, "flow.unknown", f"no live flow `{name}`")
    reply = await call.control("flow.cut", flow=name, reason=call.body.reason)
    return CutOut(cut=reply["total"])


def _row(row: dict[str, Any]) -> FlowRow:
    return FlowRow(
        **{key: row.get(key, "") for key in FlowRow.model_fields if key not in _NUMBERS},
        bytes_out=row["bytes_out"],
        bytes_in=row["bytes_in"],
        started_ms=row["since_ms"],
    )


_NUMBERS = frozenset({"bytes_out", "bytes_in", "started_ms"})
