"""The queue's requests, and what it does when a start goes wrong. Its jobs are made up here."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from exeat.appliance.control.lease_rows import why
from exeat.appliance.control.queue import Rules, State, Task
from exeat.appliance.control.scheduler import Scheduler
from exeat.appliance.control.sqlite_queue import SqliteQueue
from exeat.appliance.control.store import Store
from exeat.appliance.control.task_output import TaskOutput
from exeat.appliance.control.task_requests import OUTPUT_BYTES
from exeat.appliance.control.verbs import from_console, from_root
from exeat.appliance.errors import RefusedError
from exeat.appliance.public_suffixes import bundled_suffixes
from exeat.policy.document import load_policy
from exeat.policy.model import Subject
from exeat.policy.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

DOCUMENT = load_policy("egress: v1\nproject: p\n", file="p.yaml", suffixes=bundled_suffixes())
SNAPSHOT = Snapshot.load(
    Snapshot.message(generation=1, fresh_ms=60_000, documents=[DOCUMENT], projects={"p": DOCUMENT.digest})
)


async def _no_request(_message: dict[str, Any], _requester: str) -> dict[str, Any]:
    raise AssertionError("nothing is asked for here")


class Jobs:
    """Every start ends as `outcome` says; what was started is in `started`."""

    def __init__(self) -> None:
        self.all: dict[str, Any] = {}
        self.started: list[tuple[dict[str, Any], str]] = []
        self.outcome: Exception | int = 0
        self.ended: list[str] = []

    async def start(self, request: dict[str, Any], fds: list[int], *, task: str, wanted: Any) -> Any:
        self.started.append((request, task))
        self.wanted = wanted()
        if isinstance(self.outcome, Exception):
            raise self.outcome
        ended = asyncio.Event()
        ended.set()
        return SimpleNamespace(name=f"j{len(self.started)}", ended=ended, code=self.outcome, reason="exited")

    async def end(self, _job: Any, reason: str) -> None:
        self.ended.append(reason)


class Queue:
    """A Scheduler on a store of its own, driven one turn at a time."""

    def __init__(self, folder: Path, *, slots: int = 1, most_file: int = 0, killed: bool = False) -> None:
        self.jobs = Jobs()
        self.work: list[Coroutine[Any, Any, None]] = []
        self.killed = killed
        self.scheduler = Scheduler(
            Rules(slots=slots, groups={}, projects={}, weights={}, preempt="no"),
            folder / "tasks",
            SqliteQueue(Store(folder / "control.db")),
            self.jobs,  # type: ignore[arg-type]
            SimpleNamespace(choose=lambda project, *_: (project, "")),  # type: ignore[arg-type]
            SimpleNamespace(),  # type: ignore[arg-type]
            most_file=most_file,
            now_ms=lambda: 1_000,
            stopped=lambda _: self.killed,
            verdict=lambda project, agent, to: why(SNAPSHOT, Subject(project, agent, "", "", ""), to, 1_000),
            request=_no_request,
            spawn=self.work.append,
        )

    def call(self, verb: str, **message: Any) -> Any:
        return self.ask(verb, from_root(message))

    def ask(self, verb: str, message: dict[str, Any]) -> Any:
        """With whoever it is from in it."""
        return asyncio.run(self.scheduler.verbs()[f"task.{verb}"](message, []))["task"]  # type: ignore[arg-type]

    def submit(self, **more: Any) -> str:
        return str(self.call("submit", **{"project": "p", "argv": ["true"], **more})["id"])

    def turn(self) -> None:
        """One look at the queue, and all that came of it."""

        async def both() -> None:
            await self.scheduler._turn()
            while self.work:
                await self.work.pop()

        asyncio.run(both())


@pytest.mark.parametrize("need", ["", "no host", "example.org:0", "[::1", "*.example.org", "a\x1b[2J"])
def test_a_need_that_is_no_place_is_refused_and_holds_up_nobody(tmp_path: Path, need: str) -> None:
    queue = Queue(tmp_path, killed=True)  # so that needs are not looked at yet
    with pytest.raises(RefusedError):
        queue.submit(needs=[need])
    behind, queue.killed = queue.submit(), False
    queue.turn()
    assert queue.call("show", task=behind)["state"] == "done"
    assert len(queue.jobs.started) == 1


def test_a_start_that_fails_by_a_bug_gives_its_place_back(tmp_path: Path) -> None:
    queue = Queue(tmp_path)
    broken = queue.submit()
    queue.jobs.outcome = KeyError("a bug")
    queue.turn()
    assert queue.call("show", task=broken)["state"] == "failed"
    queue.jobs.outcome, behind = 0, queue.submit()
    queue.turn()
    assert queue.call("show", task=behind)["state"] == "done"


def test_one_that_is_cancelled_while_it_starts_is_not_wanted_any_more(tmp_path: Path) -> None:
    queue = Queue(tmp_path)
    task = queue.submit()

    async def both() -> None:
        await queue.scheduler._turn()
        await queue.scheduler.verbs()["task.cancel"](from_root({"task": task}), [])  # type: ignore[arg-type]
        queue.jobs.outcome = RefusedError("job.cancelled", "")
        await queue.work.pop()

    asyncio.run(both())
    assert queue.jobs.wanted is False
    assert queue.call("show", task=task)["state"] == "cancelled"


def test_a_job_that_had_ended_when_control_was_killed_is_not_tried_again(tmp_path: Path) -> None:
    """Its end went into the database with the record of it; the scheduler had not heard yet."""
    store = Store(tmp_path / "control.db")
    queue = SqliteQueue(store)
    for name in ("ended", "unseen"):
        queue.add(Task(name, "p", {"argv": ["true"]}, "root", 0, state=State.RUNNING, attempts=1, retries=1))
    store.save_owed(b"record", instead_of_job="j1", task="ended", end='{"code": 0, "reason": "exited"}')
    store.close()
    again = Queue(tmp_path)
    again.scheduler._recall()
    assert [again.call("show", task=name)["state"] for name in ("ended", "unseen")] == ["done", "queued"]
    assert again.call("show", task="ended")["end"] is None


def test_one_that_is_given_back_loses_no_try_and_waits_as_long_as_is_asked(tmp_path: Path) -> None:
    queue = Queue(tmp_path)
    task = queue.submit()

    async def story() -> None:
        await queue.scheduler._turn()
        job = SimpleNamespace(name="j", ended=asyncio.Event(), code=137, reason="nack", project="p")
        queue.jobs.all["j"] = job
        queue.scheduler._tasks[task].job = "j"
        await queue.scheduler.verbs()["task.nack"]({"task": task, "after_ms": 5_000}, [])  # type: ignore[arg-type]
        job.ended.set()
        queue.work.pop().close()
        await queue.scheduler._attend(queue.scheduler._tasks[task], job)  # type: ignore[arg-type]

    asyncio.run(story())
    row = queue.call("show", task=task)
    assert (row["state"], row["attempts"], row["not_before_ms"]) == ("queued", 0, 6_000)
    assert queue.jobs.ended == ["nack"]
    with pytest.raises(RefusedError):
        queue.call("nack", task=task)


def test_the_queue_says_which_task_a_job_is_of(tmp_path: Path) -> None:
    queue = Queue(tmp_path)
    task = queue.submit(task="t-of-somebody-else")
    queue.turn()
    ((request, named),) = queue.jobs.started
    assert named == task
    assert "task" not in request


@pytest.mark.parametrize(
    ("node", "asked", "given"),
    [(0, None, OUTPUT_BYTES), (0, 0, OUTPUT_BYTES), (0, 4096, 4096), (1 << 20, None, 1 << 20)],
)
def test_output_is_limited_whatever_the_node_gives(
    tmp_path: Path, node: int, asked: int | None, given: int
) -> None:
    queue = Queue(tmp_path, most_file=node)
    queue.submit(limits={} if asked is None else {"file": asked})
    queue.turn()
    assert queue.jobs.started[0][0]["limits"] == {"file": given}


@pytest.mark.parametrize(("node", "asked"), [(0, OUTPUT_BYTES + 1), (1 << 20, (1 << 20) + 1), (0, "1")])
def test_more_output_is_refused(tmp_path: Path, node: int, asked: object) -> None:
    with pytest.raises(RefusedError, match="output included"):
        Queue(tmp_path, most_file=node).submit(limits={"file": asked})


def written(output: TaskOutput, task: str, size: int) -> None:
    with output.streams(task) as fds:
        os.write(fds[1], bytes(size))
    output.ended([task])


def test_the_oldest_output_gives_way(tmp_path: Path) -> None:
    output = TaskOutput(tmp_path, most=64 * 1024)
    for number in range(5):
        written(output, f"t{number}", 20 * 1024)
    output.ended(["t-that-never-began"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t2", "t3", "t4"]
    again = TaskOutput(tmp_path, most=30 * 1024)  # after a restart
    again.ended(["t2", "t3", "t4"])
    assert [path.name for path in tmp_path.iterdir()] == ["t4"]


def from_page(role: str, verb: str = "task.submit", **more: Any) -> dict[str, Any]:
    return from_console({"verb": verb, "as": "olga", "role": role, "project": "p", "argv": ["true"], **more})


@pytest.mark.parametrize(
    "more",
    [
        {"mounts": [{"path": "/srv", "mode": "rw"}]},
        {"mounts": []},
        {"user": 1000},
        {"root": "/srv/tree"},
        {"cwd": "/srv"},
    ],
)
def test_the_console_gives_no_job_folders_users_or_trees(tmp_path: Path, more: dict[str, Any]) -> None:
    queue = Queue(tmp_path)
    with pytest.raises(RefusedError) as caught:
        queue.ask("submit", from_page("admin", **more))
    assert caught.value.code == "job.local"
    assert queue.ask("submit", from_page("operator"))["by"] == "olga"


@pytest.mark.parametrize("role", ["viewer", "auditor", "approver"])
def test_who_may_not_drive_jobs_submits_and_cancels_none(tmp_path: Path, role: str) -> None:
    queue = Queue(tmp_path)
    name = queue.submit()
    for verb in ("submit", "cancel"):
        with pytest.raises(RefusedError) as caught:
            queue.ask(verb, from_page(role, f"task.{verb}", task=name))
        assert caught.value.code == "meta.role"


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"agent": "anna\nroot approved"}, "job.agent"),
        ({"agent": "a/b"}, "job.agent"),
        ({"agent": ["a"]}, "job.agent"),
        ({"group": "g\n"}, "task.group"),
    ],
)
def test_names_that_would_deceive_people_are_refused(tmp_path: Path, more: dict[str, Any], code: str) -> None:
    queue = Queue(tmp_path)
    with pytest.raises(RefusedError) as caught:
        queue.ask("submit", from_page("operator", **more))
    assert caught.value.code == code
    assert queue.scheduler.waiting() == []
