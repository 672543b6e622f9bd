"""Direct leases piece by piece: which places they open, and what is said to a proxy that is away."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from exeat.appliance.control.direct import Direct
from exeat.appliance.control.direct_flow import DirectFlow, Terms
from exeat.appliance.control.direct_judge import SILENT, DirectJudge
from exeat.appliance.control.direct_places import MAX_PLACES, places
from exeat.appliance.errors import RefusedError
from exeat.policy.leases import Lease
from exeat.policy.model import Address
from exeat.policy.scopes import parse_ports, parse_scope

if TYPE_CHECKING:
    from pathlib import Path

LABELS = ("p/host", "p/box", "q/host")


def lease(*to: str, **fields: Any) -> Lease:
    return Lease("p/ann/1", "p", tuple(map(parse_scope, to)), direct=True, **fields)


def test_each_member_port_and_protocol_is_a_place_of_its_own() -> None:
    found = places(lease("a.org:22", "192.0.2.7:23", protocols=("tcp", "udp")), LABELS)
    assert {(place.member, place.text) for place in found} == {
        (member, f"{where}/{proto}")
        for member in ("p/host", "p/box")
        for where in ("a.org:22", "192.0.2.7:23")
        for proto in ("tcp", "udp")
    }
    (one,) = places(lease("[2001:db8::7]:22", agents=frozenset({"box"})), LABELS)
    assert (one.agent, one.host, one.text) == (
        "box",
        Address(6, 0x20010DB8 << 96 | 7),
        "[2001:db8::7]:22/tcp",
    )


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        (lease("*.a.org:22"), "direct.scope"),
        (lease(".a.org:22"), "direct.scope"),
        (lease("192.0.2.0/24:22"), "direct.scope"),
        (lease("a.org:53"), "direct.scope"),
        (lease("a.org", ports=parse_ports(["any"])), "direct.scope"),
        (lease("a.org:22", except_=(parse_scope("a.org"),)), "direct.scope"),
        (lease("a.org", ports=parse_ports([f"1000-{1000 + MAX_PLACES // 2}"])), "direct.places"),
        (lease("a.org:22", agents=frozenset({"run"})), "direct.member"),
        (lease("a.org:22", job="j"), "direct.member"),
    ],
)
def test_what_is_no_exact_place_of_a_member_is_refused(asked: Lease, code: str) -> None:
    with pytest.raises(RefusedError) as refused:
        places(asked, LABELS)
    assert refused.value.code == code


def flow(number: int) -> DirectFlow:
    line: Any = None
    terms = Terms(number, f"{number:032x}", "p/ann/1", "p/host", "a.org", 22, "tcp", 4096, "c0000207", 1)
    return DirectFlow(terms, "n1", line)


def test_an_end_is_said_before_anything_else_once_the_proxy_is_there() -> None:
    said: list[tuple[str, bool]] = []
    away = True

    def tell(message: dict[str, Any]) -> bool:
        if not away:
            said.append((message["flow"][-1], bool(message.get("over"))))
            if not message.get("over"):
                answer = {"t": "direct.said", "request": message["request"], "reason": "", "reserved": 9}
                judge.heard({**answer, "generation": 1, "policy": "", "posture": "allowlist", "spent": ""})
        return not away

    async def body() -> None:
        nonlocal away
        judge.over(flow(1))
        judge.over(flow(2))
        assert (await judge.begin(flow(3), 1)).reason == SILENT
        away = False
        assert await judge.begin(flow(3), 1) == await judge.ask(flow(3))

    judge = DirectJudge(tell)
    asyncio.run(body())
    assert said == [("1", True), ("2", True), ("3", False), ("3", False)]


def test_what_is_kept_of_a_flow_is_all_that_settling_it_needs() -> None:
    terms = flow(7).terms
    assert Terms.load(terms.dump()) == terms
    assert terms.place.text == "a.org:22/tcp"


def test_a_bug_in_one_turn_does_not_end_all_turns(tmp_path: Path) -> None:
    async def body() -> None:
        turns, again = 0, asyncio.Event()

        def for_gateway() -> list[Lease]:
            nonlocal turns
            turns += 1
            if turns == 1:
                direct.changed()
                raise KeyError("a bug")
            again.set()
            return []

        async def call(*_: Any, **__: Any) -> Any:
            return {"pinholes": []}, []

        routing = SimpleNamespace(members=[SimpleNamespace(label="p/host")])
        node = SimpleNamespace(name="n1")
        config: Any = SimpleNamespace(node=node, routing=routing, run_dir=tmp_path, prices=())
        store: Any = SimpleNamespace(last_direct=0, load_direct=list)
        leases: Any = SimpleNamespace(for_gateway=for_gateway)
        warden: Any = SimpleNamespace(call=call)
        nothing: Any = lambda *_: None  # noqa: E731
        direct = Direct(
            config, store, nothing, leases, warden,
            tell=nothing, stops=nothing, announce=nothing, spawn=nothing,
        )  # fmt: skip
        direct.changed()
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            running = group.create_task(direct.run())
            await again.wait()
            running.cancel()

    asyncio.run(body())
