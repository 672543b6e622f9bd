"""Policies: what is in force, what another text would change, and changing it.

What would let more out takes a second person: the text waits as a proposal until one agrees. A policy that
stands in a file of the node's folder is changed there.
"""

from __future__ import annotations

import time
from typing import Any, Final, Literal

from exeat.appliance.console import explored
from exeat.appliance.console.models import Empty
from exeat.appliance.console.problems import Problem
from exeat.appliance.console.routes.passkeys import Challenge, challenge
from exeat.appliance.console.routes.policy_models import (
    Agree,
    Checked,
    Diff,
    Draft,
    Finding,
    Named,
    Policies,
    Policy,
    PolicyRow,
    PostureBody,
    PostureOut,
    Proposal,
    Put,
    Revert,
    Set,
    Trial,
    TrialRow,
    Tried,
    Version,
    Versions,
)
from exeat.appliance.console.routing import Call, Routes
from exeat.policy.postures import Posture

routes = Routes("policies")
READ: Final = "policies.read"
WRITE: Final = "policies.write"
_WEEK_MS: Final = 7 * 86_400_000


@routes.get("/policies", READ, out=Policies, errors=(503,))
async def ls(call: Call) -> Policies:
    """The policies in force, and what waits for a second person."""
    said = await call.control("policy.ls")
    return Policies(
        items=[_row(row) for row in said["policies"] if call.who.sees(row["project"])],
        proposals=[_proposal(each) for each in said["proposals"] if call.who.sees(each["project"])],
        error=said["error"],
    )


def _row(row: dict[str, Any]) -> PolicyRow:
    return PolicyRow(source=_source(row), editable=not row["file"], **row)


def _source(row: dict[str, Any]) -> Literal["file", "console"]:
    return "file" if row["file"] else "console"


def _proposal(version: dict[str, Any]) -> Proposal:
    named = {name: version[name] for name in Proposal.model_fields if name != "current"}
    return Proposal(current=False, **named)


@routes.post("/policies/check", READ, body=Draft, out=Checked, errors=(404, 503))
async def check(call: Call) -> Checked:
    """Does this text load, and does it mean what it says?"""
    found = await explored.ask(call, "policy.check", text=call.body.text, baseline=await _baseline(call))
    problem = found.get("problem")
    return Checked(
        ok=found["ok"],
        problems=[Finding(**problem)] if problem else [],
        warnings=[Finding(**each) for each in found.get("warnings", ())],
        **{name: found.get(name, "") for name in ("project", "digest", "posture")},
        rules=found.get("rules", 0),
    )


@routes.post("/policies/diff", READ, body=Draft, out=Diff, errors=(404, 503))
async def diff(call: Call) -> Diff:
    """Would this text let out anything that the policy in force does not?"""
    project = await _project_of(call)
    now = await _in_force(call, project)
    found = await explored.ask(
        call,
        "policy.diff",
        text=call.body.text,
        before=now.get("canonical", ""),
        old_text=now.get("text", ""),
        baseline=now.get("baseline", ""),
    )
    return Diff(
        widens=found["widens"],
        witness=[witness["text"] for witness in found["witnesses"]] + [found["files"]] * bool(found["files"]),
        more=found["more"],
        changes=found["lines"],
    )


@routes.post("/policies/trial", READ, body=Trial, out=Tried, errors=(404, 503))
async def trial(call: Call) -> Tried:
    """What was recorded, judged again by this text."""
    since = call.body.since if call.body.since is not None else time.time_ns() // 1_000_000 - _WEEK_MS
    await _project_of(call)
    found = await explored.ask(
        call,
        "policy.trial",
        text=call.body.text,
        since=since,
        baseline=await _baseline(call),
        treat_as_public=list(call.console.config.lab.treat_as_public),
    )
    changed = [_change(row) for row in found["changes"]]
    counts = {"decided": found["replayed"], "skipped": found["skipped"], "more": found["more"]}
    return Tried(since_ms=since, changed=changed, **counts)


_KEPT: Final = ("kind", "project", "agent", "host", "port", "proto", "breaking", "first")


def _change(row: dict[str, Any]) -> TrialRow:
    return TrialRow(
        **{
            name: row[name]
            for name in ("kind", "project", "agent", "host", "port", "proto", "breaking", "first")
        },
        before=row["was"],
        before_reason=row["was_reason"],
        after=row["now"],
        after_reason=row["now_reason"],
        after_rule=row["now_rule"],
        flows=row["count"],
    )


_SHOWN: Final = ("project", "digest", "posture", "rules", "file", "text", "changed")


@routes.get("/policies/{project}", READ, out=Policy, errors=(404, 503), etag=True)
async def show(call: Call) -> Policy:
    """The policy in force, as it was written. Its ETag is its digest."""
    policy = (await call.control("policy.show", project=project_of(call)))["policy"]
    proposal = policy["proposal"]
    return Policy(
        **{
            name: policy[name]
            for name in ("project", "digest", "posture", "rules", "file", "text", "changed")
        },
        version=policy["digest"],
        source=_source(policy),
        editable=not policy["file"],
        proposal=None if proposal is None else _proposal(proposal),
    )


@routes.put("/policies/{project}", WRITE, body=Put, out=Set, errors=(404, 409, 412, 428, 503))
async def put(call: Call) -> Set:
    """Put a text in force. If-Match names the one it was made from, If-None-Match: * says there is none."""
    said = await call.control(
        "policy.set", project=project_of(call), text=call.body.text, note=call.body.note, base=base_of(call)
    )
    return _set(said)


def _set(said: dict[str, Any]) -> Set:
    version = said["version"]
    return Set(
        state=said["state"], version=version["digest"], digest=version["digest"], widens=version["widens"]
    )


@routes.delete("/policies/{project}", WRITE, out=Set, errors=(404, 409, 412, 428, 503))
async def remove(call: Call) -> Set:
    """Take the policy away: nothing of the project passes any more. Its versions stay."""
    return _set(await call.control("policy.remove", project=project_of(call), base=base_of(call)))


@routes.get("/policies/{project}/versions", READ, out=Versions, errors=(404, 503))
async def versions(call: Call) -> Versions:
    """What was in force, newest first, as far as it was set through the console."""
    found = (await call.control("policy.versions", project=project_of(call)))["versions"]
    named = [name for name in Version.model_fields if name != "current"]
    return Versions(
        items=[
            Version(current=number == 0, **{name: each[name] for name in named})
            for number, each in enumerate(found)
        ]
    )


@routes.post("/policies/{project}/revert", WRITE, body=Revert, out=Set, errors=(404, 409, 412, 428, 503))
async def revert(call: Call) -> Set:
    """Put a text of before in force again. If-Match names the policy that is."""
    body = call.body
    said = await call.control(
        "policy.revert", project=project_of(call), digest=body.digest, note=body.note, base=base_of(call)
    )
    return _set(said)


@routes.post("/policies/{project}/agree", WRITE, body=Agree, out=Set, errors=(404, 409, 412, 503))
async def agree(call: Call) -> Set:
    """The second person's yes to the proposal with this digest."""
    body = call.body
    signed = body.assertion.model_dump() if body.assertion is not None else None
    return _set(
        await call.control("policy.agree", project=project_of(call), digest=body.digest, assertion=signed)
    )


@routes.post("/policies/{project}/challenge", WRITE, body=Named, out=Challenge, errors=(404, 503))
async def challenge_of(call: Call) -> Challenge:
    """What a passkey has to sign before the second person's yes."""
    return await challenge(call, "policy.agree", project=project_of(call), digest=call.body.digest)


@routes.post("/policies/{project}/withdraw", WRITE, body=Named, out=Empty, errors=(404, 503))
async def withdraw(call: Call) -> Empty:
    """Forget the proposal with this digest."""
    await call.control("policy.withdraw", project=project_of(call), digest=call.body.digest)
    return Empty()


@routes.get("/projects/{project}/posture", READ, out=PostureOut, errors=(404, 503), etag=True)
async def posture(call: Call) -> PostureOut:
    """What holds where no rule speaks, and whether that is enforced."""
    project = project_of(call)
    policy = (await call.control("policy.show", project=project))["policy"]
    enforced, label = _enforced(call, project, policy["posture"], await call.control("status"))
    return PostureOut(
        project=project,
        version=policy["digest"],
        posture=policy["posture"],
        choices=[str(each) for each in Posture],
        editable=not policy["file"],
        enforced=enforced,
        label=label,
    )


@routes.put("/projects/{project}/posture", WRITE, body=PostureBody, out=Set, errors=(404, 409, 412, 428, 503))
async def switch(call: Call) -> Set:
    """Another posture in the same text. If-Match names the policy that is in force."""
    body = call.body
    said = await call.control(
        "policy.posture", project=project_of(call), posture=body.posture, note=body.note, base=base_of(call)
    )
    return _set(said)


_SAYS: Final = {
    "public": "any public name on the usual ports may be reached; rules only take away",
    "allowlist": "only what the rules allow, and what a person approves",
    "custom": "what no rule names is treated as `default` says",
    "off": "NOTHING IS ENFORCED: everything is let out until the policy expires",
}


def _enforced(call: Call, project: str, posture: str, status: dict[str, Any]) -> tuple[bool, str]:
    """What exeat knows of the ways past the policy: clients outside jails that nothing confines."""
    said = _SAYS[posture]
    if any(row["project"] in (None, project) for row in status["killed"]):
        return True, "the kill switch is on: nothing passes, whatever the policy says"
    if set(status["gateway"]) != {"guard", "proxy"}:
        return True, f"{said}. The gateway is not whole just now: nothing passes"
    if posture == "off":
        return False, said
    outside = [each.source for each in call.console.config.identity if each.project == project]
    confined = {each.label for each in call.console.config.routing.members}
    loose = [
        each.source
        for each in call.console.config.identity
        if each.project == project and f"{project}/{each.agent}" not in confined
    ]
    if loose:
        named = ", ".join(loose[:3]) + (" and more" if len(loose) > 3 else "")
        return False, f"{said}. NOT ENFORCED for {named}: these clients are free to go round the proxy"
    return True, f"{said}. Enforced in jails{' and for routed clients' if outside else ''}"


def project_of(call: Call) -> str:
    """From the path. Raises Problem for what the person may not see."""
    project = call.path("project")
    call.who.need(project)
    return project


def base_of(call: Call) -> str:
    """The digest that the caller has looked at; "" where there was no policy. Raises Problem."""
    known, none = call.request.if_match, call.request.if_none_match
    if known and len(known) == 1 and known[0].value != "*":
        return known[0].value
    if none and none[0].value == "*":
        return ""
    raise Problem(
        428, "http.428", "send If-Match with the ETag of the policy (If-None-Match: * where there is none)"
    )


async def _project_of(call: Call) -> str:
    """The project a text is for, which the person may see. Raises RefusedError, Problem."""
    found = await explored.ask(call, "policy.check", text=call.body.text)
    if not found["ok"]:
        raise Problem(422, "policy.invalid", found["problem"]["message"], errors=[found["problem"]])
    project: str = found["project"]
    call.who.need(project)
    return project


async def _in_force(call: Call, project: str) -> dict[str, Any]:
    """Nothing for a project without a policy."""
    rows = (await call.control("policy.ls"))["policies"]
    if all(row["project"] != project for row in rows):
        return {"baseline": await _baseline(call)}
    found: dict[str, Any] = (await call.control("policy.show", project=project))["policy"]
    return found


async def _baseline(call: Call) -> str:
    """The organisation's baseline, as canonical JSON; "" for none."""
    rows = (await call.control("policy.ls"))["policies"]
    if all(row["project"] != "baseline" for row in rows):
        return ""
    shown = await call.control("policy.show", project="baseline")
    return str(shown["policy"]["canonical"])
