"""What happens, as it happens (server-sent events)."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Annotated, Final

from aiohttp import web
from pydantic import Field, field_validator

from exeat.appliance.console.auth.principal import identify
from exeat.appliance.console.dispatch import too_often
from exeat.appliance.console.journal import BUSY, TOPICS
from exeat.appliance.console.models import Query
from exeat.appliance.console.problems import Problem
from exeat.appliance.console.routing import Call, Routes
from exeat.appliance.console.sse import PING, RETRY, messages

if TYPE_CHECKING:
    from exeat.appliance.console.journal import Page

routes = Routes("events")

PING_S: Final = 15.0
BATCH_S: Final = 0.25  # flows that happen within this go together
SEND_S: Final = 10.0  # who takes longer is cut off: it comes back with the id of what it had
MOST: Final = 32  # streams of one person
MOST_OF_ALL: Final = 512


class EventQuery(Query):
    """`after`: the id of the last event one has; Last-Event-ID says the same and comes first."""

    topics: Annotated[str, Field(max_length=200, description=f"some of {','.join(TOPICS)}")] = ""
    after: Annotated[int, Field(ge=0, le=2**60)] | None = None

    @field_validator("topics")
    @classmethod
    def _known(cls, value: str) -> str:
        if unknown := {*value.split(",")} - {*TOPICS, ""}:
            raise ValueError(f"no such topic: {', '.join(sorted(unknown))}")
        return value

    def wanted(self) -> frozenset[str]:
        return frozenset(self.topics.split(",")) - {""} or frozenset(TOPICS)


@routes.get("/events", "events.read", query=EventQuery, media="text/event-stream", errors=(400,))
async def events(call: Call) -> web.StreamResponse:
    """The events that the caller may see, from the one after Last-Event-ID on, or from now on."""
    after = _after(call)
    streams = call.console.streams
    if streams[call.who.name] >= MOST or streams.total() >= MOST_OF_ALL:
        raise too_often(PING_S)
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"})
    streams[call.who.name] += 1
    try:
        await response.prepare(call.request)
        await _stream(call, response, after)
    finally:
        streams[call.who.name] -= 1
    return response


def _after(call: Call) -> int:
    said = call.request.headers.get("Last-Event-ID")
    if said is None:
        after: int | None = call.query.after
        return call.console.journal.last if after is None else after
    if not said.isascii() or not said.isdigit() or len(said) > 18:
        raise Problem(400, "events.id", "Last-Event-ID is not the number of an event")
    return int(said)


async def _stream(call: Call, response: web.StreamResponse, after: int) -> None:
    """Until they go, or may not see it any more. What waits for a slow reader is a number, not memory."""
    journal, topics = call.console.journal, call.query.wanted()
    heard = time.monotonic()
    if not await _send(call, response, RETRY):
        return
    while True:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(journal.wait(after), max(0.0, heard + PING_S - time.monotonic()))
        page = journal.since(after, topics)
        if page.events and _busy(page):
            await asyncio.sleep(BATCH_S)
            page = journal.since(after, topics)
        after = page.next
        data = b"".join(messages(page.events, call.who))
        if time.monotonic() - heard >= PING_S:
            if not _still(call):
                return
            data, heard = data + PING, time.monotonic()
        if data and not await _send(call, response, data):
            return


def _busy(page: Page) -> bool:
    """Only such as come many times a second: worth waiting for more of them."""
    return all(event.topic in BUSY for event in page.events)


def _still(call: Call) -> bool:
    """Whether the session or token that opened the stream still opens anything, in the same role."""
    try:
        who = identify(call.console, call.request)
    except Problem:
        return False
    return who is not None and (who.name, who.role, who.projects) == (
        call.who.name,
        call.who.role,
        call.who.projects,
    )


async def _send(call: Call, response: web.StreamResponse, data: bytes) -> bool:
    """False for a reader that has gone, or that takes too long: its connection is over."""
    try:
        async with asyncio.timeout(SEND_S):
            await response.write(data)
    except (ConnectionError, TimeoutError):
        if call.request.transport is not None:
            call.request.transport.abort()
        return False
    return True
