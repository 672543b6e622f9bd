"""The list of flows: whole, in order, bounded, a slice at a time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from exeat.policy.addresses import parse_address
from exeat.policy.model import Decision, Subject, Verdict
from exeat.proxy import live
from exeat.proxy.evidence import Evidence
from exeat.proxy.live import Listing

if TYPE_CHECKING:
    from collections.abc import Callable

YES = Decision(Verdict.ALLOW, "lease.active", lease="L")
ASK = Decision(Verdict.ASK, "rule.ask", "r")


class Loop:
    """The reactor, as far as a listing knows it: `turns` counts how often it waited its turn."""

    def __init__(self) -> None:
        self.turns = 0

    def call_later(self, _seconds: float, then: Callable[[], None]) -> None:
        self.turns += 1
        then()


def evidence(number: int, decision: Decision | None = YES, project: str = "p") -> Evidence:
    subject = Subject(project, "a", f"j{number % 2}")
    flow = number.to_bytes(16, "big")
    return Evidence(flow, subject, "", host="x.org", port=443, decision=decision, started=number)


def tunnel(number: int, ended: str = "", **fields: Any) -> Any:
    flow = SimpleNamespace(evidence=evidence(number, **fields), closed=False)
    return SimpleNamespace(flow=flow, ended=ended, counts=lambda: (number, 2 * number))


def waiting(number: int, decision: Decision | None = ASK, *, closed: bool = False) -> Any:
    return SimpleNamespace(evidence=evidence(number, decision), closed=closed)


def listed(
    asked: dict[str, Any], tunnels: list[Any], flows: list[Any]
) -> tuple[list[dict[str, Any]], int, int]:
    """(rows, total, turns)"""
    parts: list[dict[str, Any]] = []
    loop: Any = Loop()

    def send(part: dict[str, Any]) -> bool:
        parts.append(part)
        return True

    Listing(loop, send, {"t": "flows.list", "request": 5, **asked}, tunnels, flows)
    assert [part["done"] for part in parts] == [False] * (len(parts) - 1) + [True]
    assert {part["request"] for part in parts} == {5}
    assert max(len(part["rows"]) for part in parts) <= live.SLICE
    return [row for part in parts for row in part["rows"]], parts[-1]["total"], loop.turns


@pytest.mark.parametrize("count", [0, 1, live.SLICE, live.SLICE + 1, 3 * live.SLICE])
def test_all_are_listed_a_slice_at_a_time(count: int) -> None:
    rows, total, turns = listed({"all": True}, [tunnel(n) for n in range(count)], [waiting(9000)])
    assert [row["started_ns"] for row in rows] == [*range(count), 9000]
    assert (total, turns) == (count + 1, count // live.SLICE)


def test_a_row_says_what_is_known() -> None:
    rows, _, _ = listed({"all": True}, [tunnel(3)], [waiting(4)])
    assert rows[0] == {
        "flow": f"{3:032x}",
        "project": "p",
        "agent": "a",
        "job": "j1",
        "dest": "x.org:443",
        "proto": "tcp",
        "state": "live",
        "verdict": "allow",
        "reason": "lease.active",
        "rule": "",
        "lease": "L",
        "bytes_out": 3,
        "bytes_in": 6,
        "started_ns": 3,
    }
    assert (rows[1]["state"], rows[1]["verdict"], rows[1]["rule"], rows[1]["bytes_in"]) == (
        "waiting",
        "ask",
        "r",
        0,
    )
    by_address = tunnel(1)
    by_address.flow.evidence.host = parse_address("2001:db8::1")
    assert listed({"all": True}, [by_address], [])[0][0]["dest"] == "[2001:db8::1]:443"


def test_what_has_ended_or_asked_nothing_yet_is_not_there() -> None:
    flows = [waiting(1, None), waiting(2, closed=True)]
    assert listed({"all": True}, [tunnel(3, ended="eof")], flows) == ([], 0, 0)


@pytest.mark.parametrize("limit", [0, 3, live.MAX_ROWS + 5])
def test_more_than_the_limit_is_only_counted(limit: int) -> None:
    rows, total, _ = listed({"all": True, "limit": limit}, [tunnel(n) for n in range(live.MAX_ROWS + 9)], [])
    assert (len(rows), total) == (min(limit, live.MAX_ROWS), live.MAX_ROWS + 9)


@pytest.mark.parametrize(
    ("asked", "numbers"),
    [
        ({}, []),
        ({"project": "q"}, [4]),
        ({"job": "j1"}, [1, 3]),
        ({"lease": "L"}, [1, 2, 4]),
        ({"flow": f"{2:032x}"}, [2]),
        ({"flow": "0"}, []),
        ({"prefix": "0" * 30}, [1, 2, 3, 4]),
        ({"prefix": f"{3:032x}"}, [3]),
        ({"prefix": "f"}, []),
        ({"project": ""}, []),
        ({"all": True}, [1, 2, 3, 4]),
    ],
)
def test_only_what_was_asked_for(asked: dict[str, Any], numbers: list[int]) -> None:
    tunnels = [tunnel(1), tunnel(2), tunnel(3, decision=ASK), tunnel(4, project="q")]
    assert [row["bytes_out"] for row in listed(asked, tunnels, [])[0]] == numbers


def test_nobody_is_told_once_control_has_gone() -> None:
    loop: Any = Loop()
    Listing(loop, lambda _: False, {"all": True}, [tunnel(n) for n in range(1000)], [])
    assert loop.turns == 0
