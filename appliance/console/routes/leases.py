"""Leases in force and ended: revoking, renewing, undoing an approval of just now."""

from __future__ import annotations

from typing import Any, Literal

from exeat.appliance.console.lease_view import UNDO_MS, LeaseRow, lease_row, undoable
from exeat.appliance.console.models import Body, Out, Paging, Project, Text, page
from exeat.appliance.console.problems import Problem
from exeat.appliance.console.routes.requests import lease_of, leases_of
from exeat.appliance.console.routing import Call, Routes
from exeat.appliance.errors import RefusedError

routes = Routes("leases")

ACTIVE = ("active", "revoking")
NEVER = ("requested", "denied", "lapsed")  # these are requests


class LeaseQuery(Paging):
    state: Literal["active", "ended", "all"] = "active"
    project: Project | None = None


class LeasePage(Out):
    items: list[LeaseRow]
    next: str | None


class Note(Body):
    note: Text = ""


@routes.get("/leases", "leases.read", query=LeaseQuery, out=LeasePage, errors=(404, 503))
async def ls(call: Call) -> LeasePage:
    """The leases, newest first. Ended ones are kept for a week; the ledger has all of them."""
    query = call.query
    rows = await leases_of(call, query.project, everything=query.state != "active")
    wanted = [row for row in rows if _is(query.state, row)]
    shown, following = page(sorted(wanted, key=_newest_first), query)
    flows = await _flows(call) if shown else []
    now_ms = call.console.now_ms()
    return LeasePage(items=[lease_row(row, call.who, now_ms, flows) for row in shown], next=following)


@routes.get("/leases/{id}", "leases.read", out=LeaseRow, errors=(404, 503), etag=True)
async def show(call: Call) -> LeaseRow:
    """One lease; its ETag is its version."""
    return lease_row(await _lease(call), call.who, call.console.now_ms(), await _flows(call))


@routes.post("/leases/{id}/revoke", "leases.keep", body=Note, out=LeaseRow, errors=(404, 409, 503))
async def revoke(call: Call) -> LeaseRow:
    """End it, and cut what lives by it. One's own, or as a reviewer."""
    row = await _lease(call)
    return await _ended(call, row, call.body.note)


@routes.post("/leases/{id}/renew", "leases.keep", body=Note, out=LeaseRow, errors=(404, 409, 503))
async def renew(call: Call) -> LeaseRow:
    """Count its time again from now, at most up to its longest. One's own, or as a reviewer."""
    row = await _lease(call)
    reply = await call.control("lease.renew", lease=row["id"], why=call.body.note)
    return lease_row(reply["lease"], call.who, call.console.now_ms())


@routes.post("/leases/{id}/undo", "requests.decide", body=Note, out=LeaseRow, errors=(404, 409, 503))
async def undo(call: Call) -> LeaseRow:
    """Take back one's own yes within a minute: the lease ends as if revoked."""
    row = await _lease(call)
    if not undoable(row, call.who.name, call.console.now_ms()):
        detail = f"only who said the last yes, within {UNDO_MS // 1000} s, can undo it: revoke it instead"
        raise Problem(409, "lease.undo", detail)
    return await _ended(call, row, call.body.note or "undone")


async def _ended(call: Call, row: dict[str, Any], why: str) -> LeaseRow:
    reply = await call.control("lease.revoke", lease=row["id"], why=why)
    return lease_row(reply["leases"][0], call.who, call.console.now_ms())


async def _lease(call: Call) -> dict[str, Any]:
    row = await lease_of(call)
    if row["state"] in NEVER:
        raise Problem(404, "lease.unknown", f"{row['id']} is a request ({row['state']}): see /requests")
    return row


async def _flows(call: Call) -> list[dict[str, Any]] | None:
    """What lives; None while the proxy does not say."""
    try:
        flows: list[dict[str, Any]] = (await call.control("flow.ls"))["flows"]
    except RefusedError:
        return None
    return flows


def _is(state: str, row: dict[str, Any]) -> bool:
    if row["state"] in NEVER:
        return False
    return state == "all" or (row["state"] in ACTIVE) == (state == "active")


def _newest_first(row: dict[str, Any]) -> tuple[int, str]:
    return -row["activated"], row["id"]
