"""Whose turn it is: shares, priorities, limits, what follows what; and that nothing starves."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exeat.appliance.control.queue import (
    AGE_MS,
    MAX_BACKOFF_MS,
    Fair,
    Rules,
    State,
    Task,
    Wait,
    World,
    backoff_ms,
    explain,
    ill_fated,
    running,
    waits,
)

NUMBERS = count()
RULES = Rules(slots=2, groups={"gpu": 1}, projects={"small": 1}, weights={"heavy": 3}, preempt="no")


def task(project: str = "a", **fields: Any) -> Task:
    number = next(NUMBERS)
    given = {"submitted_ms": number, "request": {"argv": ["true"]}, "by": "root", **fields}
    return Task(id=given.pop("id", f"t{number}"), project=project, **given)


def world(*tasks: Task, rules: Rules = RULES, now_ms: int = 0, **more: Any) -> World:
    known = {each.id: each for each in tasks}
    free = {"stopped": lambda _: False, "admitted": lambda _: None, **more}
    return World(now_ms, known, running(tasks), rules, **free)


def run_all(tasks: list[Task], rules: Rules = RULES, fair: Fair | None = None) -> list[str]:
    """The order in which they start if each ends at once; their ids."""
    fair, order = fair or Fair(), []
    while (found := fair.next(world(*tasks, rules=rules))) is not None:
        fair.started(found, rules.weights)
        order.append(found.id)
        found.state = State.DONE
    return order


def test_projects_take_turns_and_weights_count() -> None:
    tasks = [task("heavy") for _ in range(30)] + [task("light") for _ in range(30)]
    order = run_all(tasks)
    projects = {each.id: each.project for each in tasks}
    first = [projects[name] for name in order[:24]]
    assert first.count("heavy") == 18
    assert all("light" in first[at : at + 5] for at in range(20))


def test_who_was_idle_has_no_claim_on_the_past() -> None:
    fair = Fair()
    run_all([task("busy") for _ in range(50)], fair=fair)
    late = [task("idle") for _ in range(10)] + [task("busy") for _ in range(10)]
    projects = {each.id: each.project for each in late}
    first = [projects[name] for name in run_all(late, fair=fair)[:6]]
    assert first.count("idle") == 3


def test_within_a_project_priority_goes_first_and_then_the_older() -> None:
    tasks = [task(id="old"), task(id="new"), task(id="urgent", priority=5), task(id="low", priority=-5)]
    assert run_all(tasks) == ["urgent", "old", "new", "low"]


def test_waiting_makes_urgent() -> None:
    waiting, new = task(id="waiting", priority=-3, submitted_ms=0), task(id="new", priority=2, submitted_ms=1)
    assert Fair().next(world(waiting, new, now_ms=AGE_MS)) is new
    later = task(id="later", priority=2, submitted_ms=5 * AGE_MS)
    assert Fair().next(world(waiting, later, now_ms=5 * AGE_MS)) is waiting


@pytest.mark.parametrize(
    ("code", "tasks"),
    [
        ("after", [task(id="x", after=["y"]), task(id="y")]),
        ("after", [task(id="x", after=["y"]), task(id="y", state=State.RUNNING)]),
        ("backoff", [task(id="x", not_before_ms=5000)]),
        ("group", [task(id="x", group="gpu"), task("b", group="gpu", state=State.RUNNING)]),
        ("project", [task("small", id="x"), task("small", state=State.RUNNING)]),
        ("slots", [task(id="x"), task(state=State.RUNNING), task(state=State.RUNNING)]),
    ],
)
def test_why_one_waits(code: str, tasks: list[Task]) -> None:
    present = world(*tasks)
    found = explain(present.tasks["x"], present)
    assert found is not None
    assert found.code == code
    assert Fair().next(present) is not present.tasks["x"]


def test_the_kill_switch_and_missing_leases_stop_only_whom_they_mean() -> None:
    first, second = task("stopped", id="x"), task("b", id="y")
    present = world(first, second, stopped=lambda project: project == "stopped")
    assert explain(first, present) == Wait("kill", "the kill switch is on (see `exeat kill`)")
    assert Fair().next(present) is second
    lacking = Wait("lease", "needs example.org")
    present = world(first, second, admitted=lambda task: lacking if task is first else None)
    assert explain(first, present) == lacking
    assert Fair().next(present) is second


def test_leases_are_asked_about_last() -> None:
    asked: list[str] = []
    present = world(
        task(id="x", not_before_ms=9),
        task(id="y"),
        admitted=lambda task: asked.append(task.id),  # type: ignore[func-returns-value]
    )
    assert Fair().next(present) is present.tasks["y"]
    assert asked == ["y"]


def test_what_follows_something_that_failed_or_is_gone_is_ill_fated() -> None:
    failed, good = task(id="failed", state=State.FAILED), task(id="good", state=State.DONE)
    known = {"failed": failed, "good": good}
    assert ill_fated(task(after=["good", "failed"]), known) == "failed"
    assert ill_fated(task(after=["gone"]), known) == "gone"
    assert ill_fated(task(after=["good"]), known) == ""


def test_a_more_important_one_displaces_the_least_of_its_project_only() -> None:
    rules = RULES._replace(preempt="end")
    low = task(id="low", priority=-1, state=State.RUNNING, started_ms=1)
    younger = task(id="younger", priority=-1, state=State.RUNNING, started_ms=2)
    assert Fair().victim(world(low, younger, task(priority=0), rules=rules)) is younger
    assert Fair().victim(world(low, younger, task(priority=-1), rules=rules)) is None
    assert Fair().victim(world(low, younger, task("b", priority=9), rules=rules)) is None
    assert Fair().victim(world(low, younger, task(priority=0))) is None  # not allowed on this node
    assert Fair().victim(world(low, task(priority=9), rules=rules)) is None  # there is room


def test_tries_come_slower_and_never_too_slow() -> None:
    assert [backoff_ms(n) for n in (1, 2, 3)] == [1000, 2000, 4000]
    assert backoff_ms(20) == backoff_ms(10**6) == MAX_BACKOFF_MS


TASKS = st.builds(
    task,
    st.sampled_from(["a", "b", "small", "heavy"]),
    priority=st.integers(-3, 3),
    group=st.sampled_from(["", "gpu", "other"]),
    state=st.sampled_from([State.QUEUED, State.QUEUED, State.RUNNING, State.DONE]),
    not_before_ms=st.sampled_from([0, 0, 50]),
)


@given(st.lists(TASKS, max_size=12), st.integers(1, 4), st.integers(0, 100))
def test_no_place_stays_empty_that_somebody_may_take_and_no_limit_is_passed(
    tasks: list[Task], slots: int, now_ms: int
) -> None:
    rules, fair = RULES._replace(slots=slots), Fair()
    before = running(tasks)
    while (found := fair.next(world(*tasks, rules=rules, now_ms=now_ms))) is not None:
        assert waits(found, world(*tasks, rules=rules, now_ms=now_ms)) is None
        fair.started(found, rules.weights)
        found.state = State.RUNNING
    after = world(*tasks, rules=rules, now_ms=now_ms)
    assert len(after.running) <= max(slots, len(before))
    for name, most in (("gpu", 1), ("other", slots)):
        mine = [each for each in after.running if each.group == name]
        assert len(mine) <= max(most, sum(each.group == name for each in before))
    if len(after.running) < slots:
        assert all(waits(each, after) for each in tasks if each.state is State.QUEUED)


def test_one_that_was_paused_goes_on_in_its_turn_unless_a_person_holds_it() -> None:
    made_way = task(state=State.PAUSED, job="j1", priority=5)
    held = task(state=State.PAUSED, job="j2", priority=9, held="alice")
    fresh = task(priority=1)
    now = world(made_way, held, fresh, admitted=lambda _: Wait("lease", "none"))
    assert Fair().next(now) is made_way, "its leases were looked at when it began"
    found = explain(held, now)
    assert found is not None
    assert found.code == "paused"
    assert "alice" in found.text
    full = world(made_way, *(task(state=State.RUNNING) for _ in range(2)))
    assert Fair().next(full) is None
    assert len(running(full.tasks.values())) == 2, "it holds no place"
