"""The machines there are: this one."""

from __future__ import annotations

from importlib.metadata import version
from typing import Final

from exeat.appliance.console.models import Out
from exeat.appliance.console.routes.status import whole
from exeat.appliance.console.routing import Call, Routes

routes = Routes("nodes")
_LIVE: Final = ("active", "revoking")


class NodeRow(Out):
    """`state` is whole, or impaired: then `wrong` says what does not run or does not hold."""

    name: str
    state: str
    version: str
    wrong: list[str]
    last_seen_ms: int
    projects: int
    jobs: int
    leases: int
    pending: int


class Nodes(Out):
    items: list[NodeRow]


@routes.get("/nodes", "nodes.read", out=Nodes, errors=(503,))
async def ls(call: Call) -> Nodes:
    """The nodes and how they are. This version of exeat is one node."""
    said = await call.control("status")
    missing = sorted({"guard", "proxy"} - set(said["gateway"]))
    wrong = [
        *(f"{name} does not answer" for name in (*missing, *said["down"])),
        *([] if said["clock_trusted"] else ["the clock cannot be trusted: no lease is in force"]),
        *([said["policy_error"]] if said["policy_error"] else []),
        *([f"routing: {failed}"] if (failed := said["routing"].get("failed")) else []),
    ]
    leases = said["leases"]
    row = NodeRow(
        name=said["node"],
        state="whole" if whole(said) else "impaired",
        version=version("exeat"),
        wrong=wrong,
        last_seen_ms=call.console.now_ms(),
        projects=len(said["projects"]),
        jobs=said["jobs"],
        leases=sum(leases.get(state, 0) for state in _LIVE),
        pending=leases.get("requested", 0),
    )
    return Nodes(items=[row])
