"""bench.figures: what counts as ahead, which goals are met, and what a table row says."""

from __future__ import annotations

import pytest
from bench import figures
from bench.figures import BOUND, BY_NAME, CONNECT, LINES, SOCKS5

PRODUCTS = ["squid", "microsocks"]


def verdicts(
    line: str, values: dict[str, float], *, missing: tuple[str, ...] = (), left_out: tuple[str, ...] = ()
) -> dict[str, bool | None]:
    """The goals of one line by the text behind its title."""
    known = {(name, line): value for name, value in values.items()}
    goals = figures.judged(known, [BY_NAME[line]], PRODUCTS, missing, left_out)
    return {goal.text.partition(": ")[2]: goal.met for goal in goals}


def test_the_worse_of_our_two_forms_counts() -> None:
    values = {CONNECT: 9.0, SOCKS5: 4.0, "squid": 3.0, "microsocks": 1.0, BOUND: 4.8}
    assert verdicts("down8", values) == {
        "first of all CONNECT and SOCKS5 products": True,
        "at least twice the best product": False,
        "within 15 % of HAProxy's splice": False,
    }
    values[SOCKS5] = 6.0
    assert set(verdicts("down8", values).values()) == {True}


def test_where_less_is_better() -> None:
    values = {CONNECT: 110.0, SOCKS5: 119.0, "squid": 100.0, "microsocks": 300.0, BOUND: 100.0}
    assert verdicts("ping64-p99", values) == {
        "first of all CONNECT and SOCKS5 products": False,
        "within 1.2 times the best, HAProxy included": True,
    }
    values[SOCKS5] = 121.0
    assert set(verdicts("ping64-p99", values).values()) == {False}


@pytest.mark.parametrize(("line", "bound", "more"), [("conn32", 7000, True), ("idle1k", 2, False)])
def test_bounds_are_inclusive(line: str, bound: float, more: bool) -> None:
    others = {"squid": bound / 2 if more else bound * 2}
    assert set(verdicts(line, {CONNECT: bound, SOCKS5: bound, **others}).values()) == {True}
    past = bound * (0.999 if more else 1.001)
    assert False in verdicts(line, {CONNECT: past, SOCKS5: bound, **others}).values()


def test_a_missing_peer_is_a_missed_goal_and_one_left_out_an_open_question() -> None:
    values = {CONNECT: 9.0, SOCKS5: 9.0, "squid": 3.0, BOUND: 9.0}
    missed = verdicts("down8", values, missing=("microsocks",))
    assert missed["first of all CONNECT and SOCKS5 products (not installed: microsocks)"] is False
    assert missed["within 15 % of HAProxy's splice"] is True
    unsaid = verdicts("down8", values, left_out=("microsocks",))
    assert unsaid["at least twice the best product (left out: microsocks)"] is None
    behind = verdicts("down8", {**values, "squid": 10.0}, left_out=("microsocks",))
    assert behind["first of all CONNECT and SOCKS5 products"] is False


def test_without_a_figure_of_ours_nothing_is_met() -> None:
    assert set(verdicts("down8", {"squid": 1.0, BOUND: 1.0}).values()) == {False}


def test_every_line_with_a_goal_to_be_first_has_it() -> None:
    goals = figures.judged({}, LINES, PRODUCTS, (), ())
    first = sum("first of all" in goal.text for goal in goals)
    assert first == sum(line.first for line in LINES) == len(LINES) - 1


def test_a_row_says_who_is_best_and_how_far_we_are() -> None:
    known = {(CONNECT, "conn32"): 6000.4, (SOCKS5, "conn32"): 2000.0, ("squid", "conn32"): 4000.0}
    lines = [BY_NAME["conn32"], BY_NAME["up8"]]
    head, _, *rows = figures.table(known, lines, [CONNECT, SOCKS5, "squid", BOUND], PRODUCTS).splitlines()
    cells = [cell.strip() for cell in rows[0].strip("|").split("|")]
    assert cells[1:] == ["6,000", "2,000", "4,000", "-", "squid", "1.50x", "0.50x", "-"]
    assert len(rows) == 1
    assert len(head) == len(rows[0])


def test_medians() -> None:
    assert figures.medians({("a", "b"): [3.0, 1.0, 2.0], ("c", "d"): []}) == {("a", "b"): 2.0}
