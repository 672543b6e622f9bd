"""The queue's requests, and what it does when a start goes wrong. Its jobs are made up here."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from exeat.appliance.control.lease_rows import why
from exeat.appliance.control.queue import Rules
from exeat.appliance.control.scheduler import OUTPUT_BYTES, Scheduler
from exeat.appliance.control.store import Store
from exeat.appliance.control.task_output import TaskOutput
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


class Jobs:
    """Every start ends as `outcome` says; what was started is in `started`."""

    def __init__(self) -> None:
        self.all: dict[str, Any] = {}
        self.started: list[tuple[dict[str, Any], str]] = []
        self.outcome: Exception | int = 0

    async def start(self, request: dict[str, Any], fds: list[int], *, task: str) -> Any:
        self.started.append((request, task))
        if isinstance(self.outcome, Exception):
            raise self.outcome
        ended = asyncio.Event()
        ended.set()
        return SimpleNamespace(name=f"j{len(self.started)}", ended=ended, code=self.outcome, reason="exited")


class Queue:
    """A Scheduler on a store of its own, driven one turn at a time."""

    def __init__(self, folder: Path, *, slots: int = 1, most_file: int = 0, killed: bool = False) -> None:
        self.jobs = Jobs()
        self.work: list[Coroutine[Any, Any, None]] = []
        self.killed = killed
        self.scheduler = Scheduler(
            Rules(slots=slots, groups={}, projects={}, weights={}, preempt=False),
            folder / "tasks",
            Store(folder / "control.db"),
            self.jobs,  # type: ignore[arg-type]
            SimpleNamespace(choose=lambda project, *_: (project, "")),  # type: ignore[arg-type]
            SimpleNamespace(),  # type: ignore[arg-type]
            most_file=most_file,
            now_ms=lambda: 1_000,
            stopped=lambda _: self.killed,
            verdict=lambda project, agent, to: why(SNAPSHOT, Subject(project, agent, "", "", ""), to, 1_000),
            spawn=self.work.append,
        )

    def call(self, verb: str, **message: Any) -> Any:
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
