"""Budget windows and lease counters."""

from __future__ import annotations

import pytest

from exeat.policy.leases import Lease
from exeat.policy.rules import Budget, Limit
from exeat.policy.scopes import parse_scope
from exeat.policy.usage import Usage, lease_spent

HOUR = 3_600_000
BUDGETS = {
    "default": Budget("default", (Limit("bytes_up", 100, HOUR), Limit("connections", 5, 60_000))),
    "both": Budget("both", (Limit("bytes", 10, HOUR), Limit("usd", 9, 24 * HOUR))),
}


@pytest.fixture
def usage() -> Usage:
    usage = Usage()
    usage.define("p", BUDGETS)
    usage.define("p", BUDGETS)
    return usage


def test_windows_are_aligned_and_start_empty(usage: Usage) -> None:
    usage.charge("p", ["default"], now_ms=HOUR - 1, bytes_up=60)
    assert usage.used("p", "default", "bytes_up", HOUR, HOUR - 1) == 60
    assert usage.used("p", "default", "bytes_up", HOUR, HOUR) == 0
    usage.charge("p", ["default"], now_ms=HOUR, bytes_up=5)
    assert usage.used("p", "default", "bytes_up", HOUR, HOUR) == 5


def test_a_clock_that_steps_back_hands_out_nothing_twice(usage: Usage) -> None:
    usage.charge("p", ["default"], now_ms=5 * HOUR, bytes_up=60)
    assert usage.used("p", "default", "bytes_up", HOUR, 4 * HOUR) == 60
    usage.charge("p", ["default"], now_ms=4 * HOUR, bytes_up=10)
    assert usage.used("p", "default", "bytes_up", HOUR, 5 * HOUR) == 70


def test_counters_are_apart(usage: Usage) -> None:
    usage.charge("p", ["default", "both"], now_ms=0, bytes_up=1, bytes_down=2, connections=1, usd=3)
    assert usage.used("p", "both", "bytes", HOUR, 0) == 3
    assert usage.used("p", "both", "usd", 24 * HOUR, 0) == 3
    assert usage.used("p", "default", "bytes_up", HOUR, 0) == 1
    assert usage.used("p", "default", "connections", 60_000, 0) == 1
    assert usage.used("q", "default", "bytes_up", HOUR, 0) == 0


def test_two_policies_of_one_project_count_in_their_own_windows(usage: Usage) -> None:
    usage.define("p", {"default": Budget("default", (Limit("bytes_up", 1, 60_000),))})
    usage.charge("p", ["default"], now_ms=0, bytes_up=7)
    assert usage.used("p", "default", "bytes_up", HOUR, 60_000) == 7
    assert usage.used("p", "default", "bytes_up", 60_000, 60_000) == 0


def test_negative_charges_are_a_bug(usage: Usage) -> None:
    with pytest.raises(ValueError, match="negative"):
        usage.charge("p", ["default"], now_ms=0, bytes_up=-1)
    with pytest.raises(ValueError, match="negative"):
        usage.charge_lease("L", bytes=-1)


@pytest.mark.parametrize("limit", [-1, 0, 1, 2, 10])
@pytest.mark.parametrize("spent", [0, 1, 2, 9, 10, 11])
@pytest.mark.parametrize("now_ms", [4 * HOUR, 5 * HOUR, 6 * HOUR - 1, 6 * HOUR, 6 * HOUR + 1])
def test_room_is_where_less_than_the_limit_is_used(usage: Usage, limit: int, spent: int, now_ms: int) -> None:
    key = ("p", "default", "bytes_up")
    usage.charge("p", ["default"], now_ms=5 * HOUR, bytes_up=spent)
    room = usage.used(*key, HOUR, now_ms) < limit
    assert usage.has_room([((key, HOUR), limit)], now_ms) is room
    other = (("p", "both", "bytes"), HOUR), 1
    assert usage.has_room([((key, HOUR), limit), other], now_ms) is room
    assert usage.has_room([other, ((key, HOUR), limit)], now_ms) is room


@pytest.mark.parametrize("now_ms", [0, 60_000])  # also where another window has begun
def test_a_corrupt_counter_is_no_room(usage: Usage, now_ms: int) -> None:
    key = ("p", "default", "bytes_up"), 60_000
    assert usage.has_room([(key, 10)], now_ms)
    usage._spent[key] = (0, -1)
    assert not usage.has_room([(key, 10)], now_ms)


def test_leases_are_spent_at_the_limit(usage: Usage) -> None:
    lease = Lease(id="L", project="p", to=(parse_scope("a.org"),), max_bytes=10, max_uses=2)
    usage.charge_lease("L", bytes=9, uses=1)
    assert not lease_spent(lease, usage)
    usage.charge_lease("L", bytes=1)
    assert lease_spent(lease, usage)
    usage.forget_lease("L")
    assert not lease_spent(lease, usage)
    usage.charge_lease("L", uses=2)
    assert lease_spent(lease, usage)


COUNTERS = ("bytes_up", "bytes_down", "connections", "lookups", "usd")
EACH = {"each": Budget("each", tuple(Limit(counter, 10, HOUR) for counter in (*COUNTERS, "bytes")))}


@pytest.mark.parametrize("charged", COUNTERS)
def test_a_charge_counts_what_it_names_and_nothing_else(charged: str) -> None:
    usage = Usage()
    usage.define("p", EACH)
    usage.charge("p", ["each"], now_ms=0, **{charged: 7})
    for counter in (*COUNTERS, "bytes"):
        counts = counter == charged or (counter == "bytes" and charged.startswith("bytes"))
        assert usage.used("p", "each", counter, HOUR, 0) == (7 if counts else 0)
    with pytest.raises(ValueError, match="negative"):
        usage.charge("p", ["each"], now_ms=0, **{charged: -1})


def test_a_charge_of_nothing_starts_no_window(usage: Usage) -> None:
    usage.charge("p", ["default"], now_ms=5 * HOUR, bytes_up=60)
    usage.charge("p", ["default"], now_ms=6 * HOUR, connections=1)
    assert usage.used("p", "default", "bytes_up", HOUR, 5 * HOUR) == 60


def test_bytes_and_uses_of_a_lease_are_apart() -> None:
    usage = Usage()
    assert (usage.lease_bytes("L"), usage.lease_uses("L")) == (0, 0)
    usage.charge_lease("L", bytes=3)
    assert (usage.lease_bytes("L"), usage.lease_uses("L")) == (3, 0)
    usage.charge_lease("L", uses=2)
    assert (usage.lease_bytes("L"), usage.lease_uses("L")) == (3, 2)
    usage.charge_lease("M", uses=1)
    assert (usage.lease_bytes("M"), usage.lease_uses("M")) == (0, 1)
    usage.forget_lease("L")
    usage.forget_lease("never")
    assert (usage.lease_bytes("L"), usage.lease_uses("L"), usage.lease_uses("M")) == (0, 0, 1)
    for change in ({"bytes": -1}, {"uses": -1}, {"bytes": -1, "uses": 1}):
        with pytest.raises(ValueError, match="negative"):
            usage.charge_lease("L", **change)
    usage.charge_lease("L", bytes=0, uses=0)
    assert (usage.lease_bytes("L"), usage.lease_uses("L")) == (0, 0)
