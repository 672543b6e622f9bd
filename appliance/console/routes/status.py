"""How the appliance does, for people and for what watches processes."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from exeat.appliance.console.models import Out
from exeat.appliance.console.permissions import PUBLIC
from exeat.appliance.console.problems import Problem
from exeat.appliance.console.pump import WATCHER
from exeat.appliance.console.routing import Call, Routes

routes = Routes("status")
probes = Routes("status", prefix="")  # for what watches processes: they say nothing but yes or no


class Stopped(Out):
    """One kill switch that is on; project None is everything."""

    project: str | None
    by: str
    reason: str
    at_ms: int
    jobs: bool


class Status(BaseModel):
    """Control's own words, some of them; `whole` is false while something is not as it should be."""

    model_config = ConfigDict(extra="allow")
    node: str
    whole: bool
    gateway: list[str]
    projects: list[str]
    jobs: int
    leases: dict[str, int]
    killed: list[Stopped]
    down: list[str]
    clock_trusted: bool
    policy_error: str
    console: str


@routes.get("/status", "status.read", out=Status, errors=(503,))
async def show(call: Call) -> Status:
    """What runs, and with what; projects are those the caller sees."""
    said = await call.control("status")
    sees = call.who.sees
    shown: dict[str, Any] = {key: value for key, value in said.items() if key not in ("id", "ok")}
    shown["projects"] = [name for name in said["projects"] if sees(name)]
    shown["shadows"] = [name for name in said["shadows"] if sees(name)]
    shown["killed"] = [row for row in said["killed"] if row["project"] is None or sees(row["project"])]
    return Status(whole=whole(said), **shown)


class Health(Out):
    """`ok`, or what is not."""

    status: str


@probes.get("/live", PUBLIC, out=Health)
async def live(_call: Call) -> Health:
    """The process answers."""
    return Health(status="ok")


@probes.get("/ready", PUBLIC, out=Health, errors=(503,))
async def ready(call: Call) -> Health:
    """It can serve people: control answers it."""
    await call.console.control(WATCHER, "kill.ls")
    return Health(status="ok")


@probes.get("/health", PUBLIC, out=Health, errors=(503,))
async def health(call: Call) -> Health:
    """The appliance is whole: as `exeat status` judges it. What is wrong is said to who signs in."""
    if not whole(await call.console.control(WATCHER, "status")):
        raise Problem(503, "health.not_whole", "something is not as it should be: `exeat status` says what")
    return Health(status="ok")


def whole(said: dict[str, Any]) -> bool:
    """Whether all that should run does, by control's `status`."""
    gateway = set(said["gateway"]) == {"guard", "proxy"}
    routing = said["routing"].get("failed")
    return gateway and said["clock_trusted"] and not (said["policy_error"] or said["down"] or routing)
