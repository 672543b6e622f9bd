"""Devices that are lent to jobs. A grant is a lease: another person says yes to it, and `/leases` ends it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from exeat.appliance.console.lease_view import LIVE, RequestRow
from exeat.appliance.console.models import Body, Out, Paging, Project, Text, page
from exeat.appliance.console.previews import shown
from exeat.appliance.console.routing import Call, Routes

routes = Routes("devices")


class GrantRow(Out):
    """A lease of the device. `state` is requested, granted (the job has not begun, or the device does not
    open) or open; `until_ms` is 0 until it is approved."""

    id: str
    state: str
    project: str
    job: str
    by: str
    until_ms: int


class DeviceRow(Out):
    """`mode` from the job's side: it reads a microphone and writes a loudspeaker. `grants`: those of
    projects that the caller may see."""

    name: str
    path: str
    mode: str
    grants: list[GrantRow]


class DevicePage(Out):
    items: list[DeviceRow]
    next: str | None


class Lend(Body):
    """For a job that runs, by the name that /jobs has as `job`. `ttl_s` has the usual length of a lease."""

    project: Project
    job: Annotated[str, Field(min_length=1, max_length=64)]
    ttl_s: Annotated[int, Field(ge=1, le=7 * 86_400)] | None = None
    reason: Text = ""


@routes.get("/devices", "devices.read", query=Paging, out=DevicePage, errors=(503,))
async def ls(call: Call) -> DevicePage:
    """What the node can lend, to which jobs it is lent, and for which it is asked."""
    said = await call.control("device.ls")
    shown_rows, following = page(said["devices"], call.query)
    return DevicePage(items=[_row(call, row) for row in shown_rows], next=following)


@routes.post(
    "/devices/{name}/grant", "requests.ask", body=Lend, out=RequestRow, status=201, errors=(404, 409, 503)
)
async def grant(call: Call) -> RequestRow:
    """Ask for it on behalf of a job. Who asks cannot approve it."""
    body = call.body
    call.who.need(body.project)
    said = await call.control(
        "device.grant",
        device=call.path("name"),
        project=body.project,
        job=body.job,
        ttl_ms=body.ttl_s * 1000 if body.ttl_s is not None else None,
        reason=body.reason,
    )
    return shown(call, said["lease"])


def _row(call: Call, row: dict[str, Any]) -> DeviceRow:
    return DeviceRow(
        name=row["device"],
        path=row["path"],
        mode=row["mode"],
        grants=[_grant(each) for each in row["grants"] if call.who.sees(each["project"])],
    )


def _grant(lease: dict[str, Any]) -> GrantRow:
    granted = lease["state"] in LIVE
    return GrantRow(
        id=lease["id"],
        state="open" if lease["open"] else "granted" if granted else lease["state"],
        project=lease["project"],
        job=lease["job"],
        by=lease["requester"],
        until_ms=lease["exp"] if granted else 0,
    )
