"""Work and budgets of a fleet in a real Redis, with TLS and a user for each node."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from redis.exceptions import NoPermissionError
from tests.support.redis_server import Authority, RedisServer, redis_server

from exeat.appliance.errors import RefusedError
from exeat.appliance.fleet.acl import events, stream
from exeat.appliance.fleet.budgets import Budgets, Pot, reservation
from exeat.appliance.fleet.bus import START, Bus
from exeat.appliance.fleet.engine import PREFIX, connect
from exeat.appliance.fleet.work import ALL, QUEUE, Held, Work

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from redis.asyncio import Redis

HOUR = 3_600_000
POT = Pot("p", "default", "bytes_up", 0, HOUR, 1000)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server("w1", "w2") as made:
        yield made


def with_redis(server: RedisServer, node: str, body: Callable[[Redis], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        redis = connect(server.access(node))
        try:
            return await body(redis)
        finally:
            await redis.aclose()

    return asyncio.run(run())


def clean(server: RedisServer) -> None:
    async def body(redis: Redis) -> None:
        async for key in redis.scan_iter(f"{PREFIX}:*"):
            await redis.delete(key)

    with_redis(server, "home", body)


@pytest.fixture(autouse=True)
def empty(server: RedisServer) -> None:
    clean(server)


def work(server: RedisServer, body: Callable[[Work], Awaitable[Any]]) -> Any:
    """`body` with Home's view of the queue."""
    return with_redis(server, "home", lambda redis: body(Work(redis)))


def test_a_task_is_held_by_one_until_it_is_over(server: RedisServer) -> None:
    async def body(queue: Work) -> None:
        assert await queue.submit("t1", "p", b"\x00body")
        assert not await queue.submit("t1", "p", b"other")
        turn = await queue.lease("w1", 60_000)
        assert turn is not None
        assert (turn.id, turn.body) == ("t1", b"\x00body")
        assert await queue.lease("w2", 60_000) is None
        assert await queue.renew(turn, 60_000) is Held.HELD
        assert await queue.finish(turn, "done")
        assert not await queue.finish(turn, "done")
        assert await queue.state("t1") == "done"
        assert await queue.forget("t1")
        assert await queue.state("t1") == ""

    work(server, body)


def test_who_does_not_renew_has_lost_it_whatever_it_says(server: RedisServer) -> None:
    async def body(queue: Work) -> None:
        await queue.submit("t1", "p", b"", tries=3)
        late = await queue.lease("w1", 0)  # over at once
        again = await queue.lease("w2", 60_000)
        assert late is not None
        assert again is not None
        assert again.fence > late.fence
        assert not await queue.finish(late, "done")
        assert await queue.renew(late, 60_000) is Held.LOST
        assert await queue.give_back(late) == "lost"
        assert not await queue.finish(late._replace(fence=0), "done")
        assert await queue.finish(again, "done")

    work(server, body)


def test_it_is_dead_after_its_last_try_and_not_counted_any_more(server: RedisServer) -> None:
    async def body(queue: Work) -> None:
        await queue.shape({"p:p": 1}, {})
        await queue.submit("t1", "p", b"", tries=2)
        said = []
        for _ in range(2):
            turn = await queue.lease("w1", 60_000)
            assert turn is not None
            said.append(await queue.give_back(turn))
        assert said == ["waiting", "dead"]
        await queue.submit("t2", "p", b"")
        assert (await queue.lease("w1", 60_000)) is not None  # the one place is free again

    work(server, body)


def test_limits_hold_and_others_go_on(server: RedisServer) -> None:
    async def body(queue: Work) -> None:
        await queue.shape({"p:a": 1, "g:db": 1}, {})
        for number in range(3):
            await queue.submit(f"a{number}", "a", b"")
            await queue.submit(f"b{number}", "b", b"", group="db")
        await queue.submit("b9", "b", b"")
        taken = [turn.id for _ in range(6) if (turn := await queue.lease("w1", 60_000))]
        assert sorted(taken) == ["a0", "b0", "b9"]

    work(server, body)


def test_shares_follow_the_weights_and_priority_the_project(server: RedisServer) -> None:
    async def body(queue: Work) -> None:
        await queue.shape({}, {"heavy": 3})
        for number in range(40):
            await queue.submit(f"h{number}", "heavy", b"")
            await queue.submit(f"l{number}", "light", b"")
        await queue.submit("urgent", "light", b"", priority=5)
        taken = [turn.id for _ in range(40) if (turn := await queue.lease("w1", 60_000))]
        assert Counter(name[0] for name in taken) == {"h": 30, "l": 9, "u": 1}
        light = [name for name in taken if name[0] != "h"]
        assert light[0] == "urgent"
        assert light[1:] == [f"l{number}" for number in range(9)]

    work(server, body)


def test_the_kill_switch_stops_what_waits_and_tells_who_holds(server: RedisServer) -> None:
    async def body(queue: Work) -> None:
        await queue.submit("t1", "p", b"")
        await queue.submit("t2", "p", b"")
        turn = await queue.lease("w1", 60_000)
        assert turn is not None
        for project in ("p", ALL):
            await queue.halt(project, on=True)
            assert await queue.lease("w1", 60_000) is None
            assert await queue.renew(turn, 60_000) is Held.HALT
            await queue.halt(project, on=False)
        assert await queue.renew(turn, 60_000) is Held.HELD
        assert await queue.lease("w1", 60_000) is not None

    work(server, body)


def test_cancelling_ends_what_waits_and_is_told_to_who_holds(server: RedisServer) -> None:
    async def body(queue: Work) -> None:
        for name in ("t1", "t2"):
            await queue.submit(name, "p", b"", tries=9)
        turn = await queue.lease("w1", 60_000)
        assert turn is not None
        assert await queue.cancel("t2") == "cancelled"
        assert await queue.lease("w2", 60_000) is None
        assert await queue.preempt("t1")
        assert await queue.renew(turn, 60_000) is Held.PREEMPT
        assert await queue.cancel("t1") == "told"
        assert await queue.renew(turn, 60_000) is Held.CANCEL
        assert await queue.give_back(turn) == "cancelled"
        assert await queue.cancel("t1") == "no"

    work(server, body)


def test_a_task_given_back_for_later_waits(server: RedisServer) -> None:
    async def body(queue: Work) -> None:
        await queue.submit("t1", "p", b"", tries=9)
        turn = await queue.lease("w1", 60_000)
        assert turn is not None
        assert await queue.give_back(turn, HOUR) == "waiting"
        assert await queue.lease("w1", 60_000) is None
        assert await queue.cancel("t1") == "cancelled"

    work(server, body)


def test_many_workers_never_hold_the_same(server: RedisServer) -> None:
    async def body(queue: Work) -> None:
        for number in range(200):
            await queue.submit(f"t{number}", f"p{number % 7}", b"")

        async def worker(name: str) -> list[str]:
            done = []
            while (turn := await queue.lease(name, 60_000)) is not None:
                assert await queue.finish(turn, "done")
                done.append(turn.id)
            return done

        parts = await asyncio.gather(*(worker(f"w{n}") for n in range(6)))
        done = [name for part in parts for name in part]
        assert len(done) == len(set(done)) == 200

    work(server, body)


def test_a_budget_is_never_overspent_and_asking_again_charges_once(server: RedisServer) -> None:
    async def body(redis: Redis) -> None:
        budgets = Budgets(redis)
        once = reservation("w1", POT, 300)
        assert await budgets.reserve(once) == (300, 300)
        assert await budgets.reserve(once) == (300, 300)
        answers = await asyncio.gather(*(budgets.reserve(reservation("w1", POT, 30)) for _ in range(60)))
        assert sum(granted for granted, _ in answers) == 700
        assert (await budgets.reserve(reservation("w1", POT._replace(window_start_ms=HOUR), 5)))[0] == 5

    with_redis(server, "w1", body)


def test_a_worker_may_do_its_own_and_nothing_else(server: RedisServer) -> None:
    async def body(redis: Redis) -> None:
        await redis.xadd(events("w1"), {"e": b"x"})
        assert await redis.xrange(stream("policy")) == []
        assert await Work(redis).lease("w1", 1000) is None
        for forbidden in (
            redis.xadd(stream("policy"), {"e": b"x"}),
            redis.xadd(events("w2"), {"e": b"x"}),
            redis.set(f"{PREFIX}:other", 1),
            redis.eval("return redis.call('SET', KEYS[1], 1)", 1, stream("policy")),
            redis.eval("return redis.call('XADD', KEYS[1], '*', 'e', 'x')", 1, stream("policy")),
            redis.delete(stream("policy")),
            redis.keys("*"),
            redis.config_get("*"),
            redis.flushall(),
            redis.acl_list(),
            redis.client_list(),
        ):
            with pytest.raises(NoPermissionError):
                await forbidden

    with_redis(server, "w1", body)


def test_without_the_fleets_certificate_there_is_no_way_in(server: RedisServer) -> None:
    rogue = Authority(server.folder, "rogue CA")
    certificate, key = rogue.issue("stranger")
    good = server.access("w1")

    async def ping(access: Any) -> bool:
        redis = connect(access)
        try:
            return await Work(redis).state("x") == ""
        finally:
            await redis.aclose()

    assert asyncio.run(ping(good))
    for wrong in (
        replace(good, certificate=certificate, key=key),
        replace(good, ca=rogue.ca),
        replace(good, host="127.0.0.1"),  # a name that the server's certificate does not have
        replace(good, password="guess"),
    ):
        with pytest.raises(RefusedError) as error:
            asyncio.run(ping(wrong))
        assert error.value.code == "fleet.unavailable"


def test_what_was_acknowledged_outlives_a_kill(server: RedisServer) -> None:
    async def fill(queue: Work) -> None:
        for number in range(20):
            await queue.submit(f"t{number}", "p", b"body")
        turn = await queue.lease("w1", 60_000)
        assert turn is not None
        assert await queue.finish(turn, "done")

    async def count(queue: Work) -> tuple[int, str]:
        taken = 0
        while await queue.lease("w1", 60_000) is not None:
            taken += 1
        return taken, await queue.state("t0")

    work(server, fill)
    server.kill()
    server.start()
    assert work(server, count) == (19, "done")


def test_a_frozen_server_is_an_answer_in_bounded_time_and_charges_once(server: RedisServer) -> None:
    """redis-py would ask again by itself, and the frozen server answer both."""

    async def body(redis: Redis) -> None:
        budgets, asked = Budgets(redis), reservation("w1", POT, 400)
        assert (await budgets.reserve(reservation("w1", POT, 100)))[1] == 100
        server.freeze(on=True)
        with pytest.raises(RefusedError):
            await budgets.reserve(asked)
        server.freeze(on=False)
        assert await budgets.reserve(asked) == (400, 500)

    with_redis(server, "w1", body)


def test_the_prefix_is_one_slot() -> None:
    assert QUEUE.startswith("{exeat}")


# -- the bus


def test_what_home_says_reaches_who_listens_from_where_it_was(server: RedisServer) -> None:
    async def home(redis: Redis) -> None:
        bus = Bus(redis)
        for name, envelope in (("policy", b"one"), ("beat", b"\x00two"), ("policy", b"three")):
            await bus.say(name, envelope)

    async def node(redis: Redis) -> None:
        bus = Bus(redis)
        heard = await bus.listen({})
        assert [(message.source, message.envelope) for message in heard if message.source == "policy"] == [
            ("policy", b"one"),
            ("policy", b"three"),
        ]
        assert [message.envelope for message in heard if message.source == "beat"] == [b"\x00two"]
        places = {message.source: message.place for message in heard}
        assert await bus.listen(places) == []
        with pytest.raises(RefusedError):
            await bus.say("policy", b"mine")

    with_redis(server, "home", home)
    with_redis(server, "w1", node)


def test_what_nodes_tell_is_kept_until_home_has_taken_it(server: RedisServer) -> None:
    async def tell(redis: Redis) -> None:
        bus = Bus(redis)
        for number in range(3):
            assert await bus.tell("w1", b"%d" % number)
        with pytest.raises(RefusedError):
            await bus.tell("w2", b"in another's name")
        with pytest.raises(RefusedError):
            await bus.hear({"w2": START})

    async def hear(redis: Redis) -> None:
        bus = Bus(redis)
        assert await bus.hear({}) == []
        heard = await bus.hear({"w1": START, "w2": START})
        assert [(message.source, message.envelope) for message in heard] == [
            ("w1", b"0"),
            ("w1", b"1"),
            ("w1", b"2"),
        ]
        await bus.taken("w1", heard[1].place)
        assert [message.envelope for message in await bus.hear({"w1": START})] == [b"2"]

    with_redis(server, "w1", tell)
    with_redis(server, "home", hear)


def test_a_node_waits_where_home_takes_nothing(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exeat.appliance.fleet.bus.MAX_TOLD", 2)

    async def body(redis: Redis) -> list[bool]:
        return [await Bus(redis).tell("w1", b"x") for _ in range(3)]

    assert with_redis(server, "w1", body) == [True, True, False]
