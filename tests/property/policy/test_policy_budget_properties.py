"""Budgets: peeked at before, charged after, never handed out twice, however flows interleave."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from exeat.policy.decide import compile_policy, decide
from exeat.policy.document import Document
from exeat.policy.leases import Lease
from exeat.policy.model import Decision, Request, Subject
from exeat.policy.postures import Posture
from exeat.policy.rules import Budget, Limit
from exeat.policy.scopes import parse_scope
from exeat.policy.snapshot import Snapshot
from exeat.policy.usage import Overlay, Usage

NOW = 1_767_614_400_000
MINUTE, HOUR = 60_000, 3_600_000
WHO = Subject("p", "a1", job="j1")
ASKED = Request(WHO, "x.org", 443)


def document(**budgets: Budget) -> Document:
    return Document(project="p", posture=Posture.PUBLIC, budgets=budgets)


def default(*limits: Limit) -> Document:
    return document(default=Budget("default", limits))


amounts = st.integers(0, 30)
times = st.integers(0, 3 * HOUR).map(lambda ms: NOW + ms)
charges = st.lists(st.tuples(times, amounts, amounts, amounts), max_size=12)


@given(charges, st.lists(st.tuples(amounts, st.sampled_from([MINUTE, HOUR])), min_size=1, max_size=3), times)
def test_the_quick_look_and_the_long_one_agree(
    spent: list[tuple[int, int, int, int]], limits: list[tuple[int, int]], now_ms: int
) -> None:
    counters = ("connections", "bytes_up", "bytes")
    policy = default(*(Limit(c, *limit) for c, limit in zip(counters, limits, strict=False)))
    usage = Usage()
    usage.define("p", policy.budgets)
    for at, opened, up, down in spent:
        usage.charge("p", ["default"], now_ms=at, connections=opened, bytes_up=up, bytes_down=down)
    exhausted = any(
        usage.used("p", "default", limit.counter, limit.window_ms, now_ms) >= limit.amount
        for limit in policy.budgets["default"].limits
    )
    got = decide(compile_policy(policy), ASKED, now_ms, Overlay.of((), usage=usage))
    assert got.reason == ("budget.exceeded" if exhausted else "posture.public")


@given(charges, times)
def test_time_alone_never_refills_a_window_that_goes_on(
    spent: list[tuple[int, int, int, int]], now_ms: int
) -> None:
    usage = Usage()
    usage.define("p", default(Limit("bytes", 1, HOUR)).budgets)
    last = NOW
    for at, _, up, down in spent:
        usage.charge("p", ["default"], now_ms=at, bytes_up=up, bytes_down=down)
        last = max(last, at)
    newest = last - last % HOUR
    least = sum(up + down for at, _, up, down in spent if at - at % HOUR == newest)
    if any(up + down for at, _, up, down in spent if at - at % HOUR == newest):
        assert usage.used("p", "default", "bytes", HOUR, min(now_ms, last)) >= least


@settings(max_examples=60)
@given(
    st.integers(0, 8),
    st.integers(0, 5),
    st.lists(st.tuples(st.sampled_from(("x.org", "y.org")), st.integers(0, 4)), min_size=1, max_size=40),
)
def test_parallel_flows_never_open_more_than_there_is(
    connections: int, uses: int, flows: list[tuple[str, int]]
) -> None:
    """Tasks that stop at random places on one loop, as flows of the gateway do: between the decision
    and the charge nothing may come."""
    policy = default(Limit("connections", connections, HOUR))
    lease = Lease("L", "p", (parse_scope("y.org"),), exp_ms=NOW + HOUR, max_uses=uses)
    message = Snapshot.message(
        generation=1, fresh_ms=1, documents=[policy], projects={"p": policy.digest}, leases=[lease]
    )
    snapshot, usage = Snapshot.load(message), Usage()
    opened: list[Decision] = []

    async def flow(host: str, pauses: int) -> None:
        for _ in range(pauses):
            await asyncio.sleep(0)
        decision = snapshot.decide(Request(WHO, host, 443), NOW, usage)
        if decision.allowed:
            usage.charge("p", decision.budgets, now_ms=NOW, connections=1)
            if decision.lease:
                usage.charge_lease(decision.lease, uses=1)
            opened.append(decision)

    async def run() -> None:
        await asyncio.gather(*(flow(*one) for one in flows))

    asyncio.run(run())
    assert len(opened) == min(len(flows), connections)
    assert sum(decision.lease == "L" for decision in opened) <= uses


def test_an_unknown_budget_of_a_lease_opens_nothing() -> None:
    lease = Lease("L", "p", (parse_scope("x.org"),), exp_ms=NOW + HOUR, budget="gone")
    got = decide(compile_policy(document()), ASKED, NOW, Overlay.of([lease]))
    assert (str(got.verdict), got.reason, got.rule) == ("deny", "budget.state", "gone")


def test_every_budget_that_applies_is_named_for_the_charge() -> None:
    policy = document(
        default=Budget("default", (Limit("bytes", 9, HOUR),)), llm=Budget("llm", (Limit("usd", 9, HOUR),))
    )
    lease = Lease("L", "p", (parse_scope("x.org"),), exp_ms=NOW + HOUR, budget="llm")
    compiled = compile_policy(policy)
    assert decide(compiled, ASKED, NOW, Overlay.of([lease])).budgets == ("default", "llm")
    assert decide(compiled, ASKED, NOW, Overlay()).budgets == ("default",)
