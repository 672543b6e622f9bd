"""Budgets and leases shared by several flows: what one holds is not offered to another."""

from __future__ import annotations

import pytest
from tests.support.proxy_world import Suffixes

from exeat.policy.document import load_policy
from exeat.policy.leases import Lease
from exeat.policy.model import Decision, Subject, Verdict
from exeat.policy.scopes import parse_scope
from exeat.policy.snapshot import Snapshot
from exeat.policy.tariff import Price
from exeat.proxy.gate import FIRST_STEP
from exeat.proxy.spending import Spending

POLICY = """
egress: v1
project: p
allow:
  - {id: a, to: a.example.org, budget: total}
  - {id: b, to: b.example.org, budget: upward}
  - {id: c, to: c.example.org, budget: money}
budgets:
  money: {usd: 0.001/1d}
  total: {bytes: 1000/1d}
  upward: {bytes_up: 1000/1d}
"""
SUBJECT = Subject("p", "agent")
NOW = 1_800_000_000_000


def spending(*leases: Lease) -> Spending:
    document = load_policy(POLICY, file="test", suffixes=Suffixes())
    message = Snapshot.message(
        generation=1, fresh_ms=1, documents=[document], projects={"p": document.digest}, leases=leases
    )
    snapshot = Snapshot.load(message)
    made = Spending(lambda: snapshot, lambda: NOW)
    made.usage.define("p", document.budgets)
    return made


def decision(budget: str = "", lease: str = "") -> Decision:
    return Decision(Verdict.ALLOW, "rule.allow", budgets=(budget,) if budget else (), lease=lease)


def test_no_limit_no_allowance() -> None:
    assert spending().allowance(SUBJECT, decision()) is None


def test_of_a_budget_the_nearest_limit_says_how_far_it_is_used() -> None:
    book = spending()
    book.charge_bytes("p", decision("total"), 100, 150)
    book.charge_bytes("p", decision("upward"), 1500, 0)
    assert {name: used for _, name, used in book.ratios()} == {"money": 0.0, "total": 0.25, "upward": 1.5}
    assert [project for project, _, _ in book.ratios()] == ["p"] * 3


def test_a_promise_is_held_for_its_flow() -> None:
    book, first = spending(), decision("total")
    book.promise("p", first, 600)
    found = book.allowance(SUBJECT, first)
    assert found is not None
    assert (found.free, found.left, found.reason) == (400, 1000, "budget.exceeded")
    book.charge_bytes("p", first, 100, 500)
    book.promise("p", first, -600)
    found = book.allowance(SUBJECT, first)
    assert found is not None
    assert (found.free, found.left) == (400, 400)
    book.charge_bytes("p", first, 400, 0)
    assert book.allowance(SUBJECT, first) == (0, 0, "budget.exceeded")


def test_counters_of_leases_go_when_control_says_so_and_nobody_uses_them() -> None:
    here = Lease("here", "p", (parse_scope("a.example.org"),), max_bytes=100)
    book, gone = spending(here), decision(lease="gone")
    for name in ("here", "gone", "kept"):
        book.usage.charge_lease(name, bytes=7)
    book.ended(["here", "gone"])
    book.forget_ended({"gone"})  # a flow of it settles
    book.promise("p", gone, 5)
    book.forget_ended(set())
    assert [book.usage.lease_bytes(name) for name in ("here", "gone", "kept")] == [7, 7, 7]
    book.promise("p", gone, -5)
    book.forget_ended(set())
    assert [book.usage.lease_bytes(name) for name in ("here", "gone", "kept")] == [7, 0, 7]


def test_one_direction_is_stepped_not_split() -> None:
    book, up = spending(), decision("upward")
    found = book.allowance(SUBJECT, up)
    assert found is not None
    assert found.free == FIRST_STEP
    book.charge_bytes("p", up, 999, 1_000_000)
    assert book.allowance(SUBJECT, up) == (FIRST_STEP, 1, "budget.exceeded")
    book.charge_bytes("p", up, 1, 0)
    assert book.allowance(SUBJECT, up) == (0, 0, "budget.exceeded")


def test_the_tightest_limit_counts() -> None:
    lease = Lease("p/1", "p", (parse_scope("a.example.org"),), exp_ms=NOW + 1, max_bytes=300)
    book, both = spending(lease), decision("total", "p/1")
    assert book.allowance(SUBJECT, both) == (300, 300, "lease.exhausted")
    book.charge_open("p", both)
    assert book.usage.lease_uses("p/1") == 1
    book.charge_bytes("p", both, 100, 200)
    assert book.allowance(SUBJECT, both) == (0, 0, "lease.exhausted")


@pytest.mark.parametrize("counter", [-1, None, True, 1.5, "0"])
def test_a_counter_that_is_no_count_leaves_nothing(counter: object, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = Lease("L", "p", (parse_scope("a.example.org"),), max_bytes=1000)
    book = spending(lease)
    monkeypatch.setattr(book.usage, "used", lambda *_: counter)
    monkeypatch.setattr(book.usage, "lease_bytes", lambda _: counter)
    assert book.allowance(SUBJECT, decision("total")) == (0, 0, "budget.exceeded")
    assert book.allowance(SUBJECT, decision("upward")) == (0, 0, "budget.exceeded")
    assert book.allowance(SUBJECT, decision(lease="L")) == (0, 0, "lease.exhausted")


CHEAP = Price("cheap", (), 1_000_000_000, 500_000_000, 0)  # nano-USD: a byte out costs one, a byte in a half


def test_money_is_bytes_at_the_dearer_price() -> None:
    book, first = spending(), decision("money")
    assert book.allowance(SUBJECT, first) is None  # without a price
    book.promise("p", first, 600_000, CHEAP.reserve(600_000))
    found = book.allowance(SUBJECT, first, CHEAP)
    assert found is not None
    assert (found.free, found.left, found.reason) == (400_000, 1_000_000, "budget.exceeded")
    book.charge_cost("p", first, 900_000)
    book.promise("p", first, -600_000, -CHEAP.reserve(600_000))
    found = book.allowance(SUBJECT, first, CHEAP)
    assert found is not None
    assert (found.free, found.left, book.money_left(SUBJECT, first)) == (100_000, 100_000, 100_000)
    book.charge_cost("p", first, 200_000)
    found = book.allowance(SUBJECT, first, CHEAP)
    assert found is not None
    assert (found.free, found.left, book.money_left(SUBJECT, first)) == (0, 0, -100_000)


def test_small_sums_add_up_and_are_not_rounded_each() -> None:
    book, first = spending(), decision("money")
    for _ in range(25):
        book.charge_cost("p", first, 199)
    assert book.usage.used("p", "money", "usd", 86_400_000, NOW) == 4  # of 4,975 nano-USD
    book.charge_cost("p", first, 25)
    assert book.usage.used("p", "money", "usd", 86_400_000, NOW) == 5


def test_what_has_no_budget_is_charged_to_none() -> None:
    book = spending()
    book.charge_cost("p", decision(), 10**12)
    assert book.money_left(SUBJECT, decision("money")) == 1_000_000
    assert book.money_left(SUBJECT, decision("total")) is None
