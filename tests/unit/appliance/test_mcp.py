"""The tool server of the agents' desk: two revisions of the protocol, and whatever else a client may send."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exeat.appliance.control.mcp import HANDSHAKE, STATELESS, Server, Tool, ToolError

VERSION = "io.modelcontextprotocol/protocolVersion"
ENVELOPE = {"_meta": {VERSION: STATELESS[0], "io.modelcontextprotocol/clientCapabilities": {}}}


async def _double(arguments: dict[str, Any]) -> dict[str, Any]:
    if arguments["number"] < 0:
        raise ToolError("no negative numbers")
    return {"twice": 2 * arguments["number"]}


SCHEMA = {
    "type": "object",
    "properties": {"number": {"type": "integer"}, "note": {"type": "string"}},
    "required": ["number"],
}
SERVER = Server([Tool("double", "Twice a number", SCHEMA, _double, False)], version="1", instructions="Ask.")


def ask(message: object) -> Any:
    return asyncio.run(SERVER.answer(message if isinstance(message, str) else json.dumps(message)))


def call(method: str, **params: Any) -> Any:
    return ask({"jsonrpc": "2.0", "id": 7, "method": method, "params": params})


def test_the_handshake_takes_the_clients_revision_or_offers_the_newest() -> None:
    for wanted in HANDSHAKE:
        assert call("initialize", protocolVersion=wanted)["result"]["protocolVersion"] == wanted
    answer = call("initialize", protocolVersion="1999-01-01")
    assert answer["id"] == 7
    assert answer["result"]["protocolVersion"] == HANDSHAKE[0]
    assert answer["result"]["capabilities"] == {"tools": {}}
    assert call("ping")["result"] == {}


def test_a_notification_has_no_answer() -> None:
    assert ask({"jsonrpc": "2.0", "method": "notifications/initialized"}) is None


def test_the_stateless_revision_is_discovered_and_marks_its_results() -> None:
    found = call("server/discover", **ENVELOPE)["result"]
    assert found["supportedVersions"] == list(STATELESS)
    assert (found["resultType"], found["cacheScope"]) == ("complete", "private")
    listed = call("tools/list", **ENVELOPE)["result"]
    assert [tool["name"] for tool in listed["tools"]] == ["double"]
    assert listed["resultType"] == "complete"
    assert "resultType" not in call("tools/list")["result"]


def test_an_unknown_revision_is_told_which_there_are() -> None:
    error = call("tools/list", _meta={VERSION: "2099-01-01"})["error"]
    assert error["code"] == -32022
    assert error["data"] == {"supported": list(STATELESS), "requested": "2099-01-01"}


def test_a_tool_answers_as_text_and_as_structure() -> None:
    result = call("tools/call", name="double", arguments={"number": 21})["result"]
    assert result["structuredContent"] == {"twice": 42}
    assert json.loads(result["content"][0]["text"]) == {"twice": 42}
    assert not result["isError"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"number": -1}, "no negative numbers"),
        ({}, "`number` is missing"),
        ({"number": "2"}, "`number` is of type integer"),
        ({"number": True}, "`number` is of type integer"),
        ({"number": 2, "other": 1}, "no argument `other`: there are number, note"),
        ([2], "the arguments are an object"),
    ],
)
def test_what_does_not_fit_is_told_to_the_model(arguments: object, problem: str) -> None:
    result = call("tools/call", name="double", arguments=arguments)["result"]
    assert result["isError"]
    assert result["content"][0]["text"] == problem


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("{", -32700),
        ("[" * 100_000, -32700),
        ([], -32600),
        ({"id": 1, "method": "ping"}, -32600),
        ({"jsonrpc": "2.0", "id": None, "method": "ping"}, -32600),
        ({"jsonrpc": "2.0", "id": True, "method": "ping"}, -32600),
        ({"jsonrpc": "2.0", "id": 1, "method": "ping", "params": 3}, -32602),
        ({"jsonrpc": "2.0", "id": 1, "method": "resources/list"}, -32601),
        ({"jsonrpc": "2.0", "id": 1}, -32601),
        ({"jsonrpc": "2.0", "id": 1, "method": "server/discover"}, -32601),
        ({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "approve"}}, -32602),
    ],
)
def test_what_is_no_request_is_a_protocol_error(message: object, code: int) -> None:
    assert ask(message)["error"]["code"] == code


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)


@given(
    st.dictionaries(st.sampled_from(["jsonrpc", "id", "method", "params", "x"]), _JSON)
    | st.fixed_dictionaries(
        {
            "jsonrpc": st.just("2.0"),
            "id": _JSON,
            "method": st.sampled_from(["initialize", "ping", "tools/list", "tools/call", "server/discover"]),
            "params": st.dictionaries(st.sampled_from(["_meta", "name", "arguments"]), _JSON) | _JSON,
        }
    )
)
def test_whatever_comes_is_answered_or_needs_no_answer(message: dict[str, Any]) -> None:
    answer = ask(message)
    assert answer is None or ("result" in answer) != ("error" in answer)
