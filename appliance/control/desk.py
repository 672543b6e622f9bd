"""What agents may ask of control, by the proxy's desk: why, which leases, and requests for more.

An agent sees its own leases and requests, asks, waits and gives up; it never decides. Who it is the
proxy says, by the socket the question came by. Every answer is JSON and short; the same five things
are tools of the Model Context Protocol (`mcp.py`).
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, urlsplit

from exeat.appliance.control.mcp import Server, Tool, ToolError
from exeat.appliance.errors import RefusedError
from exeat.policy.admin import Actor
from exeat.policy.errors import UnitError
from exeat.policy.leases import State
from exeat.policy.units import parse_duration, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from exeat.appliance.control.leases import Leases
    from exeat.ledger.ipc import Message

MAX_ROWS: Final = 20
MAX_PENDING: Final = 8  # requests of one agent that nobody has answered yet
MAX_REASON: Final = 500  # characters
MAX_WAIT_S: Final = 50  # below the proxy's own limit of a question
LOOK_S: Final = 0.25
ROLE: Final = "agent"

_HELP: Final = """\
This is exeat, which decides what may leave this machine. You are agent {agent} of project {project}.

GET    /why?to=HOST[:PORT]        what would happen to a connection, and what would change it
GET    /leases                    your leases and requests
GET    /leases/ID?wait=SECONDS    one of them, once it is decided or the time is over (at most 50 s)
POST   /leases                    ask a person for a lease, with Content-Type: application/json:
                                  {{"to": "HOST[:PORT]", "reason": "why", "ttl": "30m", "bytes": "10MB"}}
DELETE /leases/ID                 give up a request or a lease
POST   /mcp                       the same as tools of the Model Context Protocol

What is refused stays refused by every other way out: ask here.
"""
_INSTRUCTIONS: Final = (
    "exeat decides what may leave this machine. When a connection is refused, call why_blocked; when a "
    "lease could open it, call request_lease with an honest reason and wait with lease_status. A person "
    "decides. Do not look for another way out."
)
_STATUS: Final = {"lease.unknown": 404, "limit.asks": 429, "ask.limit": 429, "desk.path": 404}


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    type: str
    body: str


@dataclass(frozen=True, slots=True)
class _Agent:
    project: str
    agent: str
    job: str


class AgentDesk:
    """`verdict(project, agent, text)` is what would happen to a flow, as `exeat why` says it."""

    def __init__(self, leases: Leases, verdict: Callable[[str, str, str], dict[str, Any]]) -> None:
        self._leases = leases
        self._verdict = verdict

    async def answer(self, message: Message) -> Answer:
        """One question of the proxy's; what is wrong with it is its answer."""
        try:
            subject, method = message["subject"], str(message["method"])
            who = _Agent(*(str(subject[key]) for key in ("project", "agent", "job")))
            place = urlsplit(str(message["path"]))
            query = {name: values[-1] for name, values in parse_qs(place.query).items()}
            return await self._route(who, method, place.path, query, str(message["body"]))
        except RefusedError as error:
            status = _STATUS.get(error.code, 400 if error.code.startswith("malformed.") else 403)
            return _json(status, {"error": error.code, "message": str(error)})
        except (TypeError, KeyError, ValueError, RecursionError):
            return _json(400, {"error": "desk.malformed", "message": "not a question; GET / says what is"})

    async def _route(self, who: _Agent, method: str, path: str, query: dict[str, str], body: str) -> Answer:
        lease = path.removeprefix("/leases/") if path.startswith("/leases/") else ""
        match (method, "/leases/" if lease else path):
            case ("GET", "/"):
                return Answer(
                    200, "text/plain; charset=utf-8", _HELP.format(agent=who.agent, project=who.project)
                )
            case ("GET", "/why"):
                return _json(200, self._why(who, {"to": query["to"]}))
            case ("GET", "/leases"):
                return _json(200, self._mine(who))
            case ("GET", "/leases/"):
                return _json(200, await self._status(who, lease, int(query.get("wait", "0"))))
            case ("POST", "/leases"):
                return _json(201, await self._request(who, json.loads(body)))
            case ("DELETE", "/leases/"):
                return _json(200, await self._give_up(who, lease))
            case ("POST", "/mcp"):
                reply = await self._mcp(who).answer(body)
                return Answer(202, "application/json", "") if reply is None else _json(200, reply)
        known = path in ("/", "/why", "/leases", "/mcp") or lease
        code, status = ("desk.method", 405) if known else ("desk.path", 404)
        return _json(status, {"error": code, "message": "GET / says what can be asked here"})

    # -- the five things

    def _why(self, who: _Agent, given: dict[str, Any]) -> dict[str, Any]:
        row = self._verdict(who.project, who.agent, str(given["to"]))
        ask = "POST /leases, or the tool request_lease, asks a person" if row["leasable"] else ""
        return {key: row[key] for key in ("to", "verdict", "reason", "text", "leasable")} | {"next": ask}

    def _mine(self, who: _Agent) -> dict[str, Any]:
        mine = self._leases.of_agent(who.project, who.agent)
        rows = [self._leases.row(lease.id) for lease in mine[-MAX_ROWS:]]
        return {"leases": [_short(row) for row in rows], "more": max(0, len(mine) - MAX_ROWS)}

    async def _status(self, who: _Agent, lease: str, wait_s: int) -> dict[str, Any]:
        """One lease; while it is only requested, for at most `wait_s` seconds until it is decided."""
        until = time.monotonic() + min(max(wait_s, 0), MAX_WAIT_S)
        row = self._one(who, lease)
        while row["state"] == "requested" and time.monotonic() < until:
            await asyncio.sleep(LOOK_S)
            row = self._one(who, row["id"])
        return _short(row)

    async def _request(self, who: _Agent, given: dict[str, Any]) -> dict[str, Any]:
        message = {
            "project": who.project,
            "agent": who.agent,
            "to": str(given["to"]),
            "reason": str(given.get("reason", ""))[:MAX_REASON],
            "ttl_ms": _unit(parse_duration, given, "ttl"),
            "max_bytes": _unit(parse_size, given, "bytes"),
        }
        mine = self._leases.of_agent(who.project, who.agent)
        if sum(lease.state is State.REQUESTED for lease in mine) >= MAX_PENDING:
            raise RefusedError("limit.asks", f"{MAX_PENDING} of your requests wait already: give one up")
        return _short(await self._leases.request(message, requester=who.agent, job=who.job))

    async def _give_up(self, who: _Agent, lease: str) -> dict[str, Any]:
        message = {"lease": self._one(who, lease)["id"], "why": "given up"}
        (ended,) = await self._leases.revoke(message, Actor(who.agent, ROLE))  # one's own only
        return _short(ended)

    def _one(self, who: _Agent, lease: str) -> dict[str, Any]:
        """By its id, or the last part of it."""
        for mine in self._leases.of_agent(who.project, who.agent):
            if lease in (mine.id, mine.id.rpartition("/")[2]):
                return self._leases.row(mine.id)  # one row: who waits asks often, and there may be thousands
        raise RefusedError("lease.unknown", "you have no such lease; GET /leases lists those you have")

    # -- as tools

    def _mcp(self, who: _Agent) -> Server:
        async def why_blocked(given: dict[str, Any]) -> dict[str, Any]:
            return self._why(who, given)

        async def list_my_leases(_given: dict[str, Any]) -> dict[str, Any]:
            return self._mine(who)

        async def lease_status(given: dict[str, Any]) -> dict[str, Any]:
            return await self._status(who, given["lease"], given.get("wait", 0))

        async def request_lease(given: dict[str, Any]) -> dict[str, Any]:
            return await self._request(who, given)

        async def cancel_request(given: dict[str, Any]) -> dict[str, Any]:
            return await self._give_up(who, given["lease"])

        to = {"to": _text("HOST or HOST:PORT (443 where none is given)")}
        lease = {"lease": _text("id of a lease or request")}
        asked = {
            **to,
            "reason": _text("why the task needs it, for the person who decides"),
            "ttl": _text("how long, for example 30m"),
            "bytes": _text("how much it may move, for example 10MB"),
        }
        wait = {"wait": {"type": "integer", "description": "seconds to wait for a decision, at most 50"}}
        tools = [
            Tool(
                "why_blocked",
                "What would happen to a connection, and why",
                _object(to, "to"),
                why_blocked,
                False,
            ),
            Tool(
                "request_lease",
                "Ask a person for a lease to a host",
                _object(asked, "to", "reason"),
                request_lease,
                True,
            ),
            Tool(
                "lease_status",
                "The state of a lease or request",
                _object({**lease, **wait}, "lease"),
                lease_status,
                False,
            ),
            Tool("list_my_leases", "Your leases and requests", _object({}), list_my_leases, False),
            Tool(
                "cancel_request",
                "Give up a request or a lease",
                _object(lease, "lease"),
                cancel_request,
                True,
            ),
        ]
        guarded = [Tool(t.name, t.description, t.schema, _guarded(t), t.changes) for t in tools]
        return Server(guarded, version=version("exeat"), instructions=_INSTRUCTIONS)


def _guarded(tool: Tool) -> Callable[[dict[str, Any]], Any]:
    async def call(given: dict[str, Any]) -> dict[str, Any]:
        try:
            return await tool.call(given)
        except RefusedError as error:
            raise ToolError(f"{error} [{error.code}]") from None

    return call


def _text(description: str) -> dict[str, Any]:
    return {"type": "string", "description": description}


def _object(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _unit(parse: Callable[[str], int], given: dict[str, Any], name: str) -> int | None:
    if name not in given:
        return None
    try:
        return parse(str(given[name]))
    except UnitError as error:
        raise RefusedError("desk.malformed", f"`{name}`: {error}") from None


def _short(row: dict[str, Any]) -> dict[str, Any]:
    keys = ("id", "state", "to", "ports", "reason", "exp", "lapses", "max_bytes")
    return {key: row[key] for key in keys}


def _json(status: int, body: dict[str, Any]) -> Answer:
    return Answer(status, "application/json", json.dumps(body, separators=(",", ":")) + "\n")
