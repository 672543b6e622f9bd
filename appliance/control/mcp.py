"""A server of the Model Context Protocol that has nothing but tools (JSON-RPC 2.0, sans-I/O).

Protocol revisions 2025-11-25 (a handshake by `initialize`, over streamable HTTP with plain JSON
answers) and 2026-07-28 (each request carries its own `_meta`; `server/discover`). No session is
kept: each request is answered by itself.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

HANDSHAKE: Final = ("2025-11-25", "2025-06-18", "2025-03-26")
STATELESS: Final = ("2026-07-28",)
CACHE_MS: Final = 3_600_000

_VERSION_KEY: Final = "io.modelcontextprotocol/protocolVersion"
_SERVER_KEY: Final = "io.modelcontextprotocol/serverInfo"
_PARSE, _INVALID, _NO_METHOD, _BAD_PARAMS, _VERSION = -32700, -32600, -32601, -32602, -32022


class ToolError(Exception):
    """What the model is told when a tool says no."""


@dataclass(frozen=True, slots=True)
class Tool:
    """`call` gets the arguments, an object that has the required ones; raises ToolError."""

    name: str
    description: str
    schema: dict[str, Any]
    call: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
    changes: bool  # something; else it only looks


class _ProtocolError(Exception):
    def __init__(self, code: int, message: str, data: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.error = {"code": code, "message": message, **({"data": data} if data else {})}


class Server:
    """Answers one message at a time with `tools`."""

    def __init__(self, tools: list[Tool], *, version: str, instructions: str) -> None:
        self._tools = {tool.name: tool for tool in tools}
        self._info = {"name": "exeat", "version": version}
        self._instructions = instructions

    async def answer(self, text: str) -> dict[str, Any] | None:
        """The reply to a message; None to a notification."""
        try:
            message = json.loads(text)
        except (ValueError, RecursionError):
            return _failed(None, _ProtocolError(_PARSE, "not JSON"))
        if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
            return _failed(None, _ProtocolError(_INVALID, "not one JSON-RPC 2.0 message"))
        if "id" not in message:
            return None
        number = message["id"]
        try:
            if not isinstance(number, str | int) or isinstance(number, bool):
                raise _ProtocolError(_INVALID, "`id` is a string or a whole number")
            result = await self._result(message)
        except _ProtocolError as error:
            return _failed(number if isinstance(number, str | int) else None, error)
        return {"jsonrpc": "2.0", "id": number, "result": result}

    async def _result(self, message: dict[str, Any]) -> dict[str, Any]:
        params = message.get("params", {})
        if not isinstance(params, dict):
            raise _ProtocolError(_BAD_PARAMS, "`params` is an object")
        stateless = self._is_stateless(params)
        method = message.get("method")
        if method == "initialize" and not stateless:
            return self._initialized(params)
        if method == "ping" and not stateless:
            return {}
        if method == "server/discover" and stateless:
            result = {"supportedVersions": list(STATELESS), **self._about(), **_CACHED}
        elif method == "tools/list":
            result = {"tools": [_shown(tool) for tool in self._tools.values()]}
            result |= _CACHED if stateless else {}
        elif method == "tools/call":
            result = await self._called(params)
        else:
            raise _ProtocolError(_NO_METHOD, f"no method {str(method)[:64]!r} here")
        if stateless:
            result |= {"resultType": "complete", "_meta": {_SERVER_KEY: self._info}}
        return result

    @staticmethod
    def _is_stateless(params: dict[str, Any]) -> bool:
        """Whether the request carries its own envelope. Raises if that is of a revision unknown here."""
        meta = params.get("_meta")
        if not isinstance(meta, dict) or _VERSION_KEY not in meta:
            return False
        if meta[_VERSION_KEY] not in STATELESS:
            said = {"supported": list(STATELESS), "requested": str(meta[_VERSION_KEY])[:64]}
            raise _ProtocolError(_VERSION, "this protocol version is not spoken here", said)
        return True

    def _initialized(self, params: dict[str, Any]) -> dict[str, Any]:
        wanted = params.get("protocolVersion")
        version = wanted if wanted in HANDSHAKE else HANDSHAKE[0]
        return {"protocolVersion": version, "serverInfo": self._info, **self._about()}

    def _about(self) -> dict[str, Any]:
        return {"capabilities": {"tools": {}}, "instructions": self._instructions}

    async def _called(self, params: dict[str, Any]) -> dict[str, Any]:
        tool, given = self._tools.get(str(params.get("name"))), params.get("arguments", {})
        if tool is None:
            raise _ProtocolError(_BAD_PARAMS, f"no tool {str(params.get('name'))[:64]!r} here")
        problem = _misfit(tool.schema, given)
        try:
            if problem:
                raise ToolError(problem)
            said = await tool.call(given)
        except ToolError as error:
            return {"content": [{"type": "text", "text": str(error)}], "isError": True}
        text = json.dumps(said, separators=(",", ":"))
        return {"content": [{"type": "text", "text": text}], "structuredContent": said, "isError": False}


_CACHED: Final = {"ttlMs": CACHE_MS, "cacheScope": "private"}
_TYPES: Final[dict[str, type]] = {"string": str, "integer": int}


def _misfit(schema: dict[str, Any], given: object) -> str:
    """What is wrong with the arguments, "" if nothing is: names, presence and plain types."""
    if not isinstance(given, dict):
        return "the arguments are an object"
    known = schema["properties"]
    for name in schema.get("required", ()):
        if name not in given:
            return f"`{name}` is missing"
    for name, value in given.items():
        if name not in known:
            return f"no argument `{str(name)[:64]}`: there are {', '.join(known)}"
        kind = known[name]["type"]
        if not isinstance(value, _TYPES[kind]) or isinstance(value, bool):
            return f"`{name}` is of type {kind}"
    return ""


def _shown(tool: Tool) -> dict[str, Any]:
    return {
        "name": tool.name,
        "description": tool.description,
        "inputSchema": tool.schema,
        "annotations": {"readOnlyHint": not tool.changes, "openWorldHint": False},
    }


def _failed(number: str | int | None, problem: _ProtocolError) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "error": problem.error}
