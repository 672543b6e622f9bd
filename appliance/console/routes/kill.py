"""The kill switch: what is stopped, stopping it, letting it again."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from exeat.appliance.console.models import Body, Out, Project, Words
from exeat.appliance.console.problems import Problem
from exeat.appliance.console.routes.passkeys import Assertion, Challenge, challenge
from exeat.appliance.console.routes.status import Stopped
from exeat.appliance.console.routing import Call, Routes

routes = Routes("kill")


class Switch(Body):
    """`node` and `all` are the same while this is the only node. `jobs` false: running jobs may go on
    without a network. Letting it again takes a passkey where there are any."""

    scope: Literal["project", "node", "all"]
    project: Project | None = None
    on: bool
    reason: Words
    jobs: bool = True
    assertion: Assertion | None = None

    @model_validator(mode="after")
    def _one_scope(self) -> Switch:
        if (self.scope == "project") != (self.project is not None):
            raise ValueError("a project with scope `project`, and with no other")
        return self


class KillOut(Out):
    """What is stopped; `ended` are the jobs that this call has ended."""

    stopped: list[Stopped]
    ended: int = 0


@routes.get("/kill", "kill.read", out=KillOut, errors=(503,))
async def show(call: Call) -> KillOut:
    """What is stopped now."""
    return _out(call, await call.control("kill.ls"))


@routes.post("/kill", "kill.write", body=Switch, out=KillOut, errors=(404, 409, 503))
async def turn(call: Call) -> KillOut:
    """Stop a project or everything at once, or let it again."""
    body = call.body
    signed = body.assertion.model_dump() if body.assertion is not None else None
    verb = "kill.on" if body.on else "kill.off"
    return _out(call, await call.control(verb, assertion=signed, **_what(call)))


@routes.post("/kill/challenge", "kill.write", body=Switch, out=Challenge, errors=(404, 503))
async def challenge_of(call: Call) -> Challenge:
    """What a passkey has to sign before letting it again (`on` false)."""
    return await challenge(call, "kill.on" if call.body.on else "kill.off", **_what(call))


def _what(call: Call) -> dict[str, Any]:
    """As control takes it. Raises Problem for what is not theirs."""
    body = call.body
    if not body.on and not call.who.may("kill.off"):
        raise Problem(403, "auth.role", f"{call.who.name} may stop things: only an admin lets them go on")
    if body.project is not None:
        call.who.need(body.project)
    elif call.who.projects:
        raise Problem(403, "auth.projects", "everything is more than the projects that are yours")
    what: dict[str, Any] = {"project": body.project} if body.project is not None else {"all": True}
    if body.on and not body.jobs:
        what["network_only"] = True
    return {"reason": body.reason, **what}


def _out(call: Call, reply: dict[str, Any]) -> KillOut:
    rows = [row for row in reply["stopped"] if row["project"] is None or call.who.sees(row["project"])]
    return KillOut(stopped=[Stopped(**row) for row in rows], ended=reply.get("ended", 0))
