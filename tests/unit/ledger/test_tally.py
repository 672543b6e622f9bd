"""Counts of a process: what is told, what is capped, and what control believes of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exeat.appliance.control.heard import Heard
from exeat.appliance.metrics.text import exposition
from exeat.ledger import tally as tallies
from exeat.ledger.counted import Counted, read_counted
from exeat.ledger.tally import MACHINE, OTHER, Tally, Teller, Times

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def through(message: dict[str, Any]) -> dict[str, Any]:
    """As it arrives over the socket."""
    return dict(json.loads(json.dumps(message)))


def heard(*messages: dict[str, Any]) -> dict[str, list[Any]]:
    made = Heard()
    for message in messages:
        made.take(through(message))
    return made.rows(alive=True)


@given(st.lists(st.floats(0, 100), max_size=30))
def test_a_histogram_counts_each_time_below_its_bound(seconds: list[float]) -> None:
    times = Times(MACHINE)
    for each in seconds:
        times.add(each)
    assert sum(times.counts) == len(seconds)
    for index, bound in enumerate(MACHINE):
        assert sum(times.counts[: index + 1]) == sum(1 for each in seconds if each <= bound)


def test_a_clock_that_was_set_back_took_no_time() -> None:
    times = Times(MACHINE)
    times.add(-5.0)
    assert (times.counts[0], times.seconds) == (1, 0.0)


def test_only_what_changed_is_told_and_all_of_it_on_a_new_connection() -> None:
    tally = Tally()
    tally.count("bytes_total", "p", "out", by=5)
    tally.count("bytes_total", "p", "in", by=7)
    assert len(tally.message(1)["counts"]) == 2
    tally.count("bytes_total", "p", "in")
    assert tally.message(1)["counts"] == [("bytes_total", ["p", "in"], 8)]
    assert tally.message(1)["counts"] == []
    assert len(tally.message(2)["counts"]) == 2


def test_projects_beyond_the_cap_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tallies, "MAX_PROJECTS", 2)
    tally = Tally()
    for project in ("a", "b", "c", "d", "a"):
        tally.count("bytes_total", project, "out")
    assert tally.counts == {
        ("bytes_total", "a", "out"): 2,
        ("bytes_total", "b", "out"): 1,
        ("bytes_total", OTHER, "out"): 2,
    }


def test_there_are_only_so_many_series(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tallies, "MAX_SERIES", 3)
    tally = Tally()
    for number in range(9):
        tally.count("decisions_total", "p", "deny", str(number))
    tally.count("decisions_total", "p", "deny", "1")
    assert len(tally.counts) == 3
    assert tally.counts["decisions_total", "p", "deny", "1"] == 2


def test_a_teller_says_nothing_while_nobody_hears_it() -> None:
    timers: list[Callable[[], None]] = []
    sent: list[dict[str, Any]] = []
    connection = 0

    def send(message: dict[str, Any]) -> bool:
        sent.append(message)
        return True

    Teller(lambda _s, work: timers.append(work), Tally(), send, lambda: connection, lambda: {"generation": 7})
    timers.pop()()
    assert sent == []
    connection = 1
    timers.pop()()
    assert sent[0]["generation"] == 7
    assert len(timers) == 1


# --- what control makes of it


def test_counts_go_on_over_the_lives_of_a_process() -> None:
    first, second = Tally(), Tally()
    for tally in (first, second):
        tally.count("bytes_total", "p", "out", by=5)
        tally.time("dns_duration_seconds").add(0.1)
    rows = heard(first.message(1), second.message(1), second.message(1))
    assert rows["bytes_total"] == [[["p", "out"], 10]]
    [[labels, counts, seconds]] = rows["dns_duration_seconds"]
    assert (labels, sum(counts), seconds) == ([], 2, 0.2)


def test_what_stands_now_is_not_said_of_one_that_is_gone() -> None:
    tally = Tally()
    tally.gauges["connections_active", "p"] = 3
    made = Heard()
    made.take(through(tally.message(1)))
    assert made.rows(alive=True)["connections_active"] == [[["p"], 3.0]]
    assert "connections_active" not in made.rows(alive=False)


BAD = [
    ["bytes_total", ["p"], 1],
    ["bytes_total", ["p", "out", "more"], 1],
    ["bytes_total", "po", 1],
    ["bytes_total", ["p", 7], 1],
    ["bytes_total", ["p", 'out"} 1\nexeat_x 2'], 1],
    ["bytes_total", ["p", "x" * 65], 1],
    ["bytes_total", ["p", "out"], -1],
    ["bytes_total", ["p", "out"], True],
    ["bytes_total", ["p", "out"], 1.5],
    ["bytes_total", ["p", "out"], 1 << 63],
    ["bytes_total", ["p", "out"]],
    ["connections_active", ["p"], 1],
    ["nonsense", ["p", "out"], 1],
    [7, [], 1],
    "bytes_total",
    None,
]


@pytest.mark.parametrize("item", BAD, ids=repr)
def test_what_is_not_of_the_table_is_left_out(item: object) -> None:
    good = ["bytes_total", ["p", "in"], 4]
    assert heard({"run": 1, "counts": [item, good]}) == {"bytes_total": [[["p", "in"], 4]]}


@pytest.mark.parametrize(
    "times",
    [[[], [0] * 20, 0.1], [[], [0] * 20 + [-1], 0.1], [[], [0] * 21, float("inf")], [["p"], [0] * 21, 0.1]],
    ids=["short", "negative", "endless", "labelled"],
)
def test_a_histogram_of_another_shape_is_left_out(times: list[Any]) -> None:
    assert heard({"run": 1, "times": [["dns_duration_seconds", *times]]}) == {}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(
    st.dictionaries(st.sampled_from(["run", "counts", "gauges", "times", "generation"]), JSON),
    st.lists(st.tuples(st.sampled_from(["bytes_total", "leases"]), JSON, JSON).map(list), max_size=3),
)
def test_whatever_a_process_says_can_be_printed(message: dict[str, Any], items: list[Any]) -> None:
    made = Heard()
    made.take({**message, "counts": items, "gauges": items})
    exposition(made.rows(alive=True))


# --- the ledger's file


def test_the_ledgers_counts_are_read_back_with_their_age(tmp_path: Path) -> None:
    (tmp_path / "ledger").mkdir()
    counted = Counted(tmp_path / "ledger")
    counted.appended(0.004)
    counted.appended(0.002)
    counted.tell(12, "")
    said, age = read_counted(tmp_path)
    rows = heard(said)
    assert 0 <= age < 60
    assert rows["ledger_entries_total"] == [[[], 12]]
    assert rows["ledger_fsync_lag_seconds"] == [[[], 0.004]]
    assert rows["ledger_writable"] == [[[], 1.0]]
    counted.tell(12, "the disk is gone")
    again = heard(read_counted(tmp_path)[0])
    assert again["ledger_writable"] == [[[], 0.0]]
    assert again["ledger_fsync_lag_seconds"] == [[[], 0.0]]
    assert again["ledger_entries_total"] == [[[], 12]]


@pytest.mark.parametrize("content", [None, b"", b"{}", b"[]", b'{"boot_s": "x"}', b"\xff", b"1" * 70_000])
def test_a_file_that_says_nothing_is_no_counts(tmp_path: Path, content: bytes | None) -> None:
    (tmp_path / "ledger").mkdir()
    if content is not None:
        (tmp_path / "ledger/counts.json").write_bytes(content)
    assert read_counted(tmp_path) == ({}, 0.0)


def test_a_ledger_that_cannot_tell_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counted = Counted(tmp_path / "gone")
    counted.tell(1, "")
    counted.tell(2, "")
    assert capsys.readouterr().err.count("not told") == 1
