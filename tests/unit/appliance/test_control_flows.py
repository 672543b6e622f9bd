"""Control's view of the flows, with a proxy that says what the test wants."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from exeat.appliance.control import flows
from exeat.appliance.control.evidence import Evidence
from exeat.appliance.control.flows import MAX_RECENT, Flows
from exeat.appliance.control.store import Store
from exeat.appliance.control.verbs import from_root
from exeat.appliance.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from exeat.appliance.control.hub import Hub

EVENT = {"ev": "open", "flow": "ab", "project": "p", "bytes_in": 1}


class Proxy:
    """In the place of the hub: answers each question with the parts that `answer` makes of it."""

    def __init__(self, answer: Callable[[dict[str, Any]], list[dict[str, Any]]]) -> None:
        self.answer = answer
        self.cuts: list[tuple[str, dict[str, str]]] = []
        self.view: Flows

    def tell(self, role: str, message: dict[str, Any]) -> bool:
        assert (role, message["t"]) == ("proxy", "flows.list")
        for part in self.answer(message):
            self.view.heard({"t": "flows.part", "request": message["request"], **part})
        return True

    def cut(self, reason: str, **what: str) -> None:
        self.cuts.append((reason, what))


def no_lease(name: str) -> str:
    raise RefusedError("lease.unknown", name)


def made(tmp_path: Path, *parts: dict[str, Any]) -> tuple[Flows, Proxy]:
    proxy = Proxy(lambda _: list(parts))
    hub: Any = proxy
    proxy.view = view_of(hub, tmp_path)
    return proxy.view, proxy


class Beside:
    """In the place of the direct flows, which the proxy does not know."""

    def __init__(self) -> None:
        self.flows: list[dict[str, Any]] = []
        self.cuts: list[str] = []

    def rows(self) -> list[dict[str, Any]]:
        return self.flows

    def cut(self, _reason: str, hit: Callable[[dict[str, Any]], bool]) -> None:
        self.cuts += [row["flow"] for row in self.flows if hit(row)]


def view_of(hub: Hub, tmp_path: Path, direct: Any = None) -> Flows:
    evidence = Evidence(tmp_path / "no-ledger.sock", "n1", Store(tmp_path / "control.sqlite"))
    return Flows(hub, evidence, direct or Beside(), no_lease)


def test_flows_past_the_proxy_stand_beside_its_own_and_are_cut_like_them(tmp_path: Path) -> None:
    proxy = Proxy(lambda _: [{"rows": [{"flow": "ab12", "project": "p"}], "total": 1, "done": True}])
    hub: Any = proxy
    beside = Beside()
    who = {"project": "q", "job": "", "lease": "q/ann/1"}
    beside.flows = [{"flow": "cd34", "started_ns": 5, **who}, {"flow": "ab99", **who}]
    proxy.view = view_of(hub, tmp_path, beside)
    found = call(proxy.view, "flow.ls")
    assert (found["total"], [row["flow"] for row in found["flows"]]) == (3, ["ab12", "cd34", "ab99"])
    with pytest.raises(RefusedError, match="2 live flows begin with `ab`"):
        call(proxy.view, "flow.cut", flow="ab")
    assert beside.cuts == []
    assert call(proxy.view, "flow.cut", project="q")["total"] == 3
    assert beside.cuts == ["cd34", "ab99"]
    proxy.answer = lambda _: [{"rows": [], "total": 0, "done": True}]
    assert call(proxy.view, "flow.cut", flow="cd3")["flows"][0]["flow"] == "cd34"
    assert beside.cuts == ["cd34", "ab99", "cd34"]
    assert [what for _, what in proxy.cuts] == [{"project": "q"}, {"flow": "cd34"}]


def call(view: Flows, verb: str, **message: Any) -> dict[str, Any]:
    async def ask() -> dict[str, Any]:
        return await view.verbs()[verb](from_root(message), [])

    return asyncio.run(ask())


def refusal(view: Flows, verb: str, **message: Any) -> str:
    with pytest.raises(RefusedError) as caught:
        call(view, verb, **message)
    return caught.value.code


def row(flow: str) -> dict[str, Any]:
    return {"flow": flow, "project": "p", "dest": "x:1", "bytes_in": 5, "started_ns": 0}


def test_parts_are_joined_and_the_rest_is_counted(tmp_path: Path) -> None:
    parts = [{"rows": [row("a1")], "total": 1}, {"rows": [row("b1")], "total": 7, "done": True}]
    view, _ = made(tmp_path, *parts)
    found = call(view, "flow.ls")
    assert ([r["flow"] for r in found["flows"]], found["total"]) == (["a1", "b1"], 7)
    assert found["flows"][0]["since_ms"] > 0


def test_what_a_proxy_says_is_no_more_than_text_and_numbers(tmp_path: Path) -> None:
    bad = {"flow": "a\x1b[2J", "dest": ["x"], "bytes_in": True, "other": 1, "rule": "r" * 999}
    view, _ = made(tmp_path, {"rows": [bad, 5, None], "total": "many", "done": 1})
    found = call(view, "flow.ls")
    [clean] = found["flows"]
    assert clean.keys() == {"flow", "rule", "since_ms"}
    assert (clean["flow"], len(clean["rule"]), found["total"]) == ("a\\u001b[2J", 300, 1)


def test_a_proxy_that_says_too_much_is_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows, "MAX_ROWS", 3)
    view, _ = made(tmp_path, *[{"rows": [row("a")] * 2, "total": 8}] * 4, {"rows": [], "total": 8, "done": 1})
    assert len(call(view, "flow.ls")["flows"]) == 3


def test_without_an_answer_nothing_is_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows, "LIST_S", 0.01)
    view, proxy = made(tmp_path, {"rows": [row("a1")], "total": 1})
    assert refusal(view, "flow.ls") == "gateway.unavailable"
    monkeypatch.setattr(proxy, "tell", lambda *_: False)
    assert refusal(view, "flow.ls") == "gateway.unavailable"
    assert refusal(view, "flow.cut", project="p") == "gateway.unavailable"
    assert proxy.cuts == []
    view.heard({"t": "flows.part", "request": 1, "rows": [row("late")]})  # nobody waits for it any more
    view.heard({"t": "flows.part", "request": {}, "rows": 5} | {"request": 99})


def test_one_flow_is_cut_by_its_whole_id_and_only_if_it_is_one(tmp_path: Path) -> None:
    view, proxy = made(tmp_path, {"rows": [row("a1ff")], "total": 1, "done": True})
    assert call(view, "flow.cut", flow="a1")["total"] == 1
    assert proxy.cuts == [("cut", {"flow": "a1ff"})]
    for total, code in ((0, "flow.unknown"), (2, "flow.ambiguous")):
        view, proxy = made(tmp_path, {"rows": [row("a1ff")] * total, "total": total, "done": True})
        assert refusal(view, "flow.cut", flow="a1") == code
        assert proxy.cuts == []
    for what in ({}, {"flow": ""}, {"flow": 5}, {"flow": "a", "job": "j"}):
        assert refusal(view, "flow.cut", **what) == "flow.what"
    assert refusal(view, "flow.cut", lease="x") == "lease.unknown"
    assert call(view, "flow.cut", job="j")["total"] == 2
    assert proxy.cuts == [("cut", {"job": "j"})]


def test_events_are_numbered_and_the_oldest_are_lost_and_counted(tmp_path: Path) -> None:
    view, _ = made(tmp_path)
    assert call(view, "flow.tail") == {"events": [], "next": 0, "lost": 0}
    view.heard({"t": "flows", "events": [EVENT, "x", EVENT | {"dest": "\n"}], "lost": 0})
    found = call(view, "flow.tail", after=1)
    assert found == {"events": [EVENT | {"dest": "\\u000a"}], "next": 2, "lost": 0}
    view.heard({"t": "flows", "events": [], "lost": 9})
    assert call(view, "flow.tail", after=2)["events"] == [{"ev": "lost", "count": 9}]
    view.heard({"t": "flows", "events": [EVENT] * (MAX_RECENT + 10)})
    found = call(view, "flow.tail", after=0)
    assert (len(found["events"]), found["next"], found["lost"]) == (MAX_RECENT, MAX_RECENT + 13, 13)


def test_a_watcher_waits_for_news_and_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    view, _ = made(tmp_path)

    async def watch() -> dict[str, Any]:
        waiting = asyncio.ensure_future(view.verbs()["flow.tail"]({"after": 0}, []))
        await asyncio.sleep(0)
        view.heard({"t": "flows", "events": [EVENT]})
        return await waiting

    assert asyncio.run(watch()) == {"events": [EVENT], "next": 1, "lost": 0}
    monkeypatch.setattr(flows, "WATCH_S", 0.01)
    assert call(view, "flow.tail", after=1) == {"events": [], "next": 1, "lost": 0}
