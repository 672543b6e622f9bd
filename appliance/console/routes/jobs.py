"""Work that waits, runs or ran: the queue's tasks, and what they wrote."""

from __future__ import annotations

import base64
import shlex
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from exeat.appliance.console.lease_view import visible
from exeat.appliance.console.models import Body, Empty, Out, Paging, Project, Query, page
from exeat.appliance.console.problems import Problem
from exeat.appliance.console.routing import Call, Routes

routes = Routes("jobs")
READ: Final = "jobs.read"
WRITE: Final = "jobs.write"
_Word = Annotated[str, Field(max_length=4096, pattern=r"^[^\x00]*$")]
_Id = Annotated[str, Field(min_length=1, max_length=64)]
_Place = Annotated[str, Field(max_length=300)]
_MOST_COMMAND: Final = 500  # characters of a command that are shown


class JobQuery(Paging):
    state: Literal["live", "all"] = "live"
    project: Project | None = None


class JobRow(Out):
    """`id` is the task's, `job` the name of what runs or ran last. `waits`: why it does not run now.
    `command` is the requester's text. Times in ms since 1970, 0 for what has not happened."""

    id: str
    job: str
    project: str
    agent: str
    by: str
    state: str
    command: str
    profile: str
    group: str
    priority: int
    attempts: int
    queued_ms: int
    started_ms: int
    ended_ms: int
    code: int | None
    reason: str
    waits: str
    needs: list[str]
    after: list[str]
    edits: bool


class JobPage(Out):
    """`slots`: so many run at once."""

    items: list[JobRow]
    next: str | None
    slots: int


class Submit(Body):
    """A command for later. Folders, users and roots of its own are for `exeat job submit` on the node."""

    project: Project
    argv: Annotated[list[_Word], Field(min_length=1, max_length=256)]
    profile: Annotated[str, Field(max_length=64)] | None = None
    agent: Annotated[str, Field(max_length=64)] | None = None
    env: Annotated[dict[str, _Word], Field(max_length=64)] | None = None
    limits: Annotated[dict[str, int], Field(max_length=16)] | None = None
    time_ms: Annotated[int, Field(ge=1000, le=7 * 86_400_000)] | None = None
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    group: Annotated[str, Field(max_length=63)] = ""
    after: Annotated[list[_Id], Field(max_length=64)] = Field(default_factory=list)
    needs: Annotated[list[Annotated[str, Field(max_length=300)]], Field(max_length=32)] = Field(
        default_factory=list
    )
    retries: Annotated[int, Field(ge=0, le=20)] = 0
    dry_run: bool = False


class LogQuery(Query):
    """From `offset` on; negative: so many bytes from the end."""

    stream: Literal["out", "err"] = "out"
    offset: Annotated[int, Field(ge=-(2**40), le=2**40)] = -65_536


class Log(Out):
    """A piece of at most 256 KiB: `text` for people, with what is no text and what is not seen replaced;
    `data` in base64 as it is. Go on from `next`; `size` is how much there is so far."""

    text: str
    data: str
    next: int
    size: int
    truncated: bool


@routes.get("/jobs", READ, query=JobQuery, out=JobPage, errors=(404, 503))
async def ls(call: Call) -> JobPage:
    """The queue, in the order of submission; `live` leaves out what is over."""
    query = call.query
    said = await call.control(
        "task.ls", project=call.who.one_project(query.project), all=query.state == "all"
    )
    rows = [row for row in said["tasks"] if call.who.sees(row["project"])]
    shown, following = page(rows, query)
    return JobPage(items=[_row(row) for row in shown], next=following, slots=said["slots"])


@routes.post("/jobs", WRITE, body=Submit, out=JobRow, status=201, errors=(404, 429, 503))
async def submit(call: Call) -> JobRow:
    """Put a command into the queue; `dry_run` only says what would become of it."""
    body = call.body
    call.who.need(body.project)
    said = await call.control("task.submit", **body.model_dump(exclude_none=True))
    return _row(said["task"])


@routes.get("/jobs/{id}", READ, out=JobRow, errors=(404, 503), etag=True)
async def show(call: Call) -> JobRow:
    """One task."""
    return _row(await _task(call))


@routes.post("/jobs/{id}/cancel", WRITE, out=Empty, errors=(404, 409, 503))
async def cancel(call: Call) -> Empty:
    """Take it out of the queue, or end what runs."""
    task = await _task(call)
    await call.control("task.cancel", task=task["id"])
    return Empty()


@routes.get("/jobs/{id}/logs", READ, query=LogQuery, out=Log, errors=(404, 503))
async def logs(call: Call) -> Log:
    """What it wrote. A job's output is the job's own words: nothing in it is exeat's."""
    task, query = await _task(call), call.query
    said = await call.control("task.output", task=task["id"], stream=query.stream, offset=query.offset)
    data, size = base64.b64decode(said["data"]), int(said["size"])
    start = max(0, size + query.offset) if query.offset < 0 else min(query.offset, size)
    return Log(
        text=_readable(data),
        data=said["data"],
        next=start + len(data),
        size=size,
        truncated=start > 0 or start + len(data) < size,
    )


def _readable(data: bytes) -> str:
    """Text with its lines and tabs, and no other character that is not seen."""
    lines = data.decode("utf-8", "replace").replace("\r\n", "\n").split("\n")
    return "\n".join(visible(line.replace("\t", "    "), len(line) * 4) for line in lines)


async def _task(call: Call) -> dict[str, Any]:
    """The task of the path. Raises Problem, the same for one that is not there and one of others."""
    row: dict[str, Any] = (await call.control("task.show", task=call.path("id")))["task"]
    if not call.who.sees(row["project"]):
        raise Problem(404, "task.unknown", f"no task `{row['id']}`")
    return row


def _row(row: dict[str, Any]) -> JobRow:
    request = row["request"]
    return JobRow(
        **{name: row[name] for name in _SAME},
        agent=str(request.get("agent") or "run"),
        command=visible(shlex.join(str(word) for word in request["argv"]), _MOST_COMMAND),
        profile=str(request.get("profile") or ""),
        queued_ms=row["submitted_ms"],
        waits=row["waits"]["text"] if row["waits"] else "",
        edits=any(mount.get("mode") == "edit" for mount in request.get("mounts") or ()),
    )


_SAME: Final = (
    *("id", "job", "project", "by", "state", "group", "priority", "attempts", "started_ms", "ended_ms"),
    *("code", "reason", "needs", "after"),
)
