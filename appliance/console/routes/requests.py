"""What waits for a person: listing it, asking ahead of time, deciding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from exeat.appliance.console import explored
from exeat.appliance.console.lease_view import RequestRow
from exeat.appliance.console.models import Body, Out, Paging, Project, Text, Words, page
from exeat.appliance.console.previews import shown, with_witness
from exeat.appliance.console.problems import Problem
from exeat.appliance.console.routes.passkeys import Assertion, Challenge, challenge
from exeat.appliance.console.routing import Call, Routes
from exeat.appliance.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Mapping

routes = Routes("requests")

_Ttl = Annotated[int, Field(ge=1, le=30 * 86_400, description="seconds")]
_Bytes = Annotated[int, Field(ge=1, le=2**53)]
_Version = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$", description="of the request as it was looked at")]
PENDING = "requested"


class RequestQuery(Paging):
    state: Literal["pending", "all"] = "pending"
    project: Project | None = None


class RequestPage(Out):
    items: list[RequestRow]
    next: str | None


class Shown(Body):
    """What is going to be sent, for who decides: it is looked through for secrets and forgotten."""

    name: Text = ""
    content: Annotated[str, Field(max_length=900_000, description="in base64; the beginning, if it is long")]


class Ask(Body):
    """`to` is HOST[:PORT] or a scope as policies have it."""

    project: Project
    to: Annotated[str, Field(min_length=1, max_length=300)]
    ttl_s: _Ttl = 1800
    bytes: _Bytes | None = None
    reason: Words
    payload: Shown | None = None


class Approve(Body):
    """Each of these may only narrow what was asked for; the time begins with the last yes."""

    version: _Version
    scope: Annotated[str, Field(min_length=1, max_length=300)] | None = None
    ttl_s: _Ttl | None = None
    bytes: _Bytes | None = None
    uses: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    note: Text = ""
    assertion: Assertion | None = None


class Deny(Body):
    version: _Version
    note: Text = ""


class Chosen(Body):
    id: Annotated[str, Field(min_length=1, max_length=200)]
    version: _Version


class Batch(Body):
    ids: Annotated[list[Chosen], Field(min_length=1, max_length=100)]
    decision: Literal["approve", "deny"]
    ttl_s: _Ttl | None = None


class BatchRow(Out):
    """`done`, or why not: `flagged`, or the reason code."""

    id: str
    done: bool
    reason_code: str
    detail: str


class BatchOut(Out):
    items: list[BatchRow]


@routes.get("/requests", "requests.read", query=RequestQuery, out=RequestPage, errors=(404, 503))
async def ls(call: Call) -> RequestPage:
    """The requests, oldest first; `pending` are those that a person may decide."""
    query = call.query
    rows = await leases_of(call, query.project, everything=query.state == "all")
    wanted = [row for row in rows if query.state == "all" or row["state"] == PENDING]
    rows, following = page(sorted(wanted, key=lambda row: (row["requested"], row["id"])), query)
    flows = await held_flows(call) if any(row["state"] == PENDING for row in rows) else []
    return RequestPage(items=[shown(call, row, flows) for row in rows], next=following)


@routes.get("/requests/{id}", "requests.read", out=RequestRow, errors=(404, 503), etag=True)
async def show(call: Call) -> RequestRow:
    """One request; its ETag is its version."""
    row = await lease_of(call)
    return await with_witness(call, row, shown(call, row, await held_flows(call)))


@routes.post("/requests", "requests.ask", body=Ask, out=RequestRow, status=201, errors=(404, 503))
async def ask(call: Call) -> RequestRow:
    """Ask ahead of time. Who asks cannot approve it."""
    body = call.body
    call.who.need(body.project)
    given = body.payload
    looked = await explored.ask(call, "payload", **given.model_dump()) if given is not None else None
    reply = await call.control(
        "lease.request",
        project=body.project,
        to=body.to,
        ttl_ms=body.ttl_s * 1000,
        max_bytes=body.bytes,
        reason=body.reason,
    )
    row = reply["lease"]
    if looked is not None:
        call.console.payloads.keep(row["id"], looked, call.console.now_ms())
    return shown(call, row)


@routes.post(
    "/requests/{id}/approve", "requests.decide", body=Approve, out=RequestRow, errors=(404, 409, 412, 503)
)
async def approve(call: Call) -> RequestRow:
    """Say yes, to all of it or to less. Where two are needed, it opens with the second person's."""
    row, assertion = await lease_of(call), call.body.assertion
    signed = assertion.model_dump() if assertion is not None else None
    reply = await call.control("lease.approve", assertion=signed, **_approval(call.body, row))
    return shown(call, reply["lease"])


@routes.post("/requests/{id}/challenge", "requests.decide", body=Approve, out=Challenge, errors=(404, 503))
async def challenge_of(call: Call) -> Challenge:
    """What a passkey has to sign before this very approval."""
    return await challenge(call, "lease.approve", **_approval(call.body, await lease_of(call)))


def _approval(body: Approve, row: Mapping[str, Any]) -> dict[str, Any]:
    """As control takes it."""
    return {
        "lease": row["id"],
        "version": body.version,
        "to": [body.scope] if body.scope is not None else None,
        "ttl_ms": body.ttl_s * 1000 if body.ttl_s is not None else None,
        "max_bytes": body.bytes,
        "max_uses": body.uses,
        "why": body.note,
    }


@routes.post("/requests/{id}/deny", "requests.decide", body=Deny, out=RequestRow, errors=(404, 409, 412, 503))
async def deny(call: Call) -> RequestRow:
    """Say no: it is final, whoever said yes before."""
    row = await lease_of(call)
    reply = await call.control("lease.deny", lease=row["id"], version=call.body.version, why=call.body.note)
    return shown(call, reply["lease"])


@routes.post("/requests/batch", "requests.decide", body=Batch, out=BatchOut, errors=(503,))
async def batch(call: Call) -> BatchOut:
    """Decide several alike. Those with flags are left alone, and said to be."""
    rows = {row["id"]: row for row in await leases_of(call, None, everything=True)}
    return BatchOut(items=[await _one_of_batch(call, chosen, rows) for chosen in call.body.ids])


async def _one_of_batch(call: Call, chosen: Chosen, rows: dict[str, dict[str, Any]]) -> BatchRow:
    row = rows.get(chosen.id)
    if row is None:
        return BatchRow(id=chosen.id, done=False, reason_code="lease.unknown", detail="no such request")
    flags = shown(call, row).flags
    if flags:
        detail = f"look at it by itself: {', '.join(flags)}"
        return BatchRow(id=chosen.id, done=False, reason_code="flagged", detail=detail)
    ttl = call.body.ttl_s
    # A shorter time than was asked for narrows; a longer one cannot be given, so it is what was asked for.
    ttl_ms = min(ttl * 1000, row["ttl_ms"]) if ttl is not None and call.body.decision == "approve" else None
    try:
        verb = f"lease.{call.body.decision}"
        await call.control(verb, lease=row["id"], version=chosen.version, ttl_ms=ttl_ms, why="batch")
    except RefusedError as error:
        return BatchRow(id=chosen.id, done=False, reason_code=error.code, detail=str(error))
    return BatchRow(id=chosen.id, done=True, reason_code="ok", detail="")


async def leases_of(call: Call, project: str | None, *, everything: bool) -> list[dict[str, Any]]:
    """Control's rows that the caller may see."""
    if project is not None:
        call.who.need(project)
    reply = await call.control("lease.ls", project=project, all=everything)
    rows: list[dict[str, Any]] = reply["leases"]
    return [row for row in rows if call.who.sees(row["project"])]


async def lease_of(call: Call) -> dict[str, Any]:
    """Control's row of the id in the path. Raises Problem for one that the caller may not see."""
    name = call.path("id")
    row: dict[str, Any] = (await call.control("lease.show", lease=name, brief=True))["lease"]
    if not call.who.sees(row["project"]):
        raise Problem(404, "lease.unknown", f"no request or lease `{name}`")
    return row


async def held_flows(call: Call) -> list[dict[str, Any]]:
    """The flows that wait; none while the proxy does not say."""
    try:
        flows: list[dict[str, Any]] = (await call.control("flow.ls"))["flows"]
    except RefusedError:
        return []
    return flows
