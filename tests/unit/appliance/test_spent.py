"""Budgets and leases after a restart: what the ledger's records say was spent."""

from __future__ import annotations

from typing import Any

import pytest

from exeat.appliance.control import spent
from exeat.appliance.control.spent import Spent, longest_window_ms
from exeat.appliance.public_suffixes import bundled_suffixes
from exeat.ledger.records import Dest, Kind, Record
from exeat.ledger.since import Gist
from exeat.policy.document import load_policy
from exeat.policy.scopes import parse_scope
from exeat.policy.snapshot import Snapshot
from exeat.policy.tariff import Price, Tariff
from exeat.policy.usage import Usage

POLICY = """\
egress: v1
project: p
allow:
  - {id: api, to: api.example.org, budget: api}
  - {id: web, to: web.example.org}
budgets:
  default: {bytes_up: 1MB/1d, connections: 100/1h, lookups: 50/1h}
  api: {bytes: 10MB/1h, usd: 5/1d}
"""
TARIFF = Tariff((Price("api", (parse_scope("api.example.org"),), 2_000_000_000, 1_000_000_000, 700),))
HOUR = 3_600_000
NOW = 1_780_000_000_000 - 1_780_000_000_000 % HOUR + HOUR // 2


@pytest.fixture(scope="module")
def snapshot() -> Snapshot:
    document = load_policy(POLICY, file="p.yaml", suffixes=bundled_suffixes())
    message = Snapshot.message(
        generation=1, fresh_ms=HOUR, documents=[document], projects={"p": document.digest}
    )
    return Snapshot.load(message)


def replay(records: list[Record], snapshot: Snapshot, since_ms: int) -> Spent:
    return spent.replay(map(Gist.of, records), snapshot, since_ms, TARIFF)


def record(kind: Kind, flow: int, at_ms: int = NOW, host: str = "api.example.org", **fields: Any) -> Record:
    dest = Dest(host, 443, "tcp") if kind in (Kind.OPEN, Kind.DNS) else None
    decision = "allow" if kind is Kind.DNS else ""
    return Record(
        kind,
        t_real_ns=at_ms * 1_000_000,
        flow=flow.to_bytes(16, "big"),
        project="p",
        agent="a",
        dest=dest,
        decision=decision,
        **fields,
    )


def usage(message: dict[str, Any], snapshot: Snapshot) -> Usage:
    """The counters of a gateway that was told `message`."""
    found = Usage()
    snapshot.restore(found, message)
    return found


def test_the_longest_window_is_found(snapshot: Snapshot) -> None:
    assert longest_window_ms(snapshot) == 24 * HOUR


def test_closed_flows_count_in_every_budget_of_theirs(snapshot: Snapshot) -> None:
    records = [
        record(Kind.OPEN, 1),
        record(Kind.CLOSE, 1, bytes_out=700, bytes_in=9000),
        record(Kind.OPEN, 2, host="web.example.org"),
        record(Kind.CLOSE, 2, bytes_out=50, bytes_in=60),
    ]
    counters = usage(replay(records, snapshot, 0).message("proxy"), snapshot)
    assert counters.used("p", "default", "bytes_up", 24 * HOUR, NOW) == 750
    assert counters.used("p", "default", "connections", HOUR, NOW) == 2
    assert counters.used("p", "api", "bytes", HOUR, NOW) == 9700


def test_flows_to_addresses_of_ipv6_count_too(snapshot: Snapshot) -> None:
    records = [
        record(Kind.OPEN, 1, host="2001:db8::7"),
        record(Kind.CLOSE, 1, bytes_out=700, bytes_in=9000),
    ]
    counters = usage(replay(records, snapshot, 0).message("proxy"), snapshot)
    assert counters.used("p", "default", "bytes_up", 24 * HOUR, NOW) == 700
    assert counters.used("p", "default", "connections", HOUR, NOW) == 1


def test_an_earlier_window_is_over(snapshot: Snapshot) -> None:
    records = [record(Kind.OPEN, 1, NOW - HOUR), record(Kind.CLOSE, 1, NOW - HOUR, bytes_out=700)]
    counters = usage(replay(records, snapshot, 0).message("proxy"), snapshot)
    assert counters.used("p", "default", "connections", HOUR, NOW) == 0
    assert counters.used("p", "default", "bytes_up", 24 * HOUR, NOW) == 700


@pytest.mark.parametrize("ending", [[], [(Kind.ORPHAN, {"bytes_in": 5000})]])
def test_a_flow_that_nobody_closed_counts_with_all_it_had_reserved(
    snapshot: Snapshot, ending: list[tuple[Kind, dict[str, int]]]
) -> None:
    records = [
        record(Kind.OPEN, 1),
        record(Kind.RESERVE, 1, reserved=65536),
        record(Kind.PROGRESS, 1, bytes_out=100, bytes_in=5000),
        *(record(kind, 1, **fields) for kind, fields in ending),
    ]
    counters = usage(replay(records, snapshot, 0).message("proxy"), snapshot)
    assert counters.used("p", "api", "bytes", HOUR, NOW) == 65536
    assert counters.used("p", "default", "bytes_up", 24 * HOUR, NOW) == 65536 - 5000


def test_an_exact_close_after_an_orphan_counts_once_and_exactly(snapshot: Snapshot) -> None:
    records = [
        record(Kind.OPEN, 1),
        record(Kind.RESERVE, 1, reserved=65536),
        record(Kind.ORPHAN, 1, bytes_in=10, reserved=65536),
        record(Kind.CLOSE, 1, bytes_out=20, bytes_in=30),
    ]
    counters = usage(replay(records, snapshot, 0).message("proxy"), snapshot)
    assert counters.used("p", "api", "bytes", HOUR, NOW) == 50


def test_leases_count_for_their_whole_life(snapshot: Snapshot) -> None:
    old = NOW - 30 * HOUR
    records = [
        record(Kind.OPEN, 1, old, host="else.example.org", lease_id="p/a/1"),
        record(Kind.CLOSE, 1, old, bytes_out=5, bytes_in=6),
    ]
    message = replay(records, snapshot, NOW - 24 * HOUR).message("proxy")
    assert message["rows"] == []
    counters = usage(message, snapshot)
    assert counters.lease_bytes("p/a/1") == 11
    assert counters.lease_uses("p/a/1") == 1


def test_a_flow_under_a_lease_counts_in_the_default_budget(snapshot: Snapshot) -> None:
    records = [
        record(Kind.OPEN, 1, host="else.example.org", lease_id="p/a/1"),
        record(Kind.CLOSE, 1, bytes_out=5, bytes_in=6),
    ]
    counters = usage(replay(records, snapshot, 0).message("proxy"), snapshot)
    assert counters.used("p", "default", "bytes_up", 24 * HOUR, NOW) == 5


def test_lookups_are_the_guards_to_count(snapshot: Snapshot) -> None:
    records = [record(Kind.DNS, 0, count=3), record(Kind.DNS, 0, host="web.example.org")]
    found = replay(records, snapshot, 0)
    assert found.message("proxy")["rows"] == []
    counters = usage(found.message("guard"), snapshot)
    assert counters.used("p", "default", "lookups", HOUR, NOW) == 4


def test_what_flows_cost_is_what_their_records_say_rounded_up_once(snapshot: Snapshot) -> None:
    records = [
        each
        for number in range(1, 12)
        for each in (
            record(Kind.OPEN, number, NOW + number * 2000),
            record(Kind.CLOSE, number, NOW + number * 2000, cost_nano_usd=300),
        )
    ]
    counters = usage(replay(records, snapshot, 0).message("proxy"), snapshot)
    assert counters.used("p", "api", "usd", 24 * HOUR, NOW) == 4  # 3,300 nano-USD


def test_a_flow_that_nobody_closed_may_have_cost_all_it_had_reserved(snapshot: Snapshot) -> None:
    records = [
        record(Kind.OPEN, 1, reserved=1_000_000),
        record(Kind.ORPHAN, 1, bytes_in=5000),
        record(Kind.OPEN, 2, reserved=1_000_000, host="web.example.org"),  # has no price
    ]
    counters = usage(replay(records, snapshot, 0).message("proxy"), snapshot)
    assert counters.used("p", "api", "usd", 24 * HOUR, NOW) == 2001
