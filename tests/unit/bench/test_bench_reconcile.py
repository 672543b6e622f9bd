"""bench.reconcile says no when a book differs."""

from __future__ import annotations

import pytest
from bench.reconcile import Result, report
from bench.reconcile_flows import SHAPES, TURNS

GOOD = Result(
    flows=10,
    seconds=1.0,
    exact=8,
    cut=1,
    blank=1,
    unexplained=0,
    application_exact=8,
    application_wrong=0,
    unmatched=(0, 0),
    on_the_way=5,
    unread=0,
    dark=0,
    dark_packets=0,
    lost_events=0,
    dropped=3,
    retransmitted=3,
    payload=1000,
    wire=2000,
    packets=20,
    client_errors={},
)


def test_books_that_agree() -> None:
    assert GOOD.problems == []
    assert report(GOOD).endswith("the books agree")
    assert "50.0 a packet" in report(GOOD)


@pytest.mark.parametrize(
    "planted",
    [{"unexplained": 1}, {"application_wrong": 1}, {"unmatched": (1, 0)}, {"dark": 1}, {"dark_packets": 1}],
)
def test_each_difference_is_a_failure(planted: dict[str, object]) -> None:
    found = GOOD._replace(**planted)  # type: ignore[arg-type]
    assert len(found.problems) == 1
    assert "NOT MET" in report(found)


def test_every_shape_gets_its_share() -> None:
    assert [TURNS.count(number) for number in range(len(SHAPES))] == [shape.share for shape in SHAPES]
    assert len(TURNS) == 100
    assert {number * 37 % 100 for number in range(100)} == set(range(100))
