"""The queue of one node: its tasks in control's database, and all of them in memory."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from exeat.appliance.control.queue import OVER, Fair, State, Task, queued
from exeat.appliance.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from exeat.appliance.control.queue import World
    from exeat.appliance.control.store import Store

MAX_QUEUED: Final = 2_000
MAX_OF_PROJECT: Final = 1_000  # waiting; nobody fills the queue alone
KEPT: Final = 1_000  # tasks that are over


class SqliteQueue:
    """`queue.Queue` for a node by itself. What a method changed is durable when it returns."""

    def __init__(self, store: Store) -> None:
        self._store, self._fair = store, Fair()
        self._tasks: dict[str, Task] = {}
        for _, text in store.load_tasks():
            body = json.loads(text)
            task = Task(**{**body, "state": State(body["state"])})
            self._tasks[task.id] = task

    @property
    def tasks(self) -> Mapping[str, Task]:
        return self._tasks

    def add(self, task: Task) -> None:
        waiting = queued(self._tasks.values())
        if len(waiting) >= MAX_QUEUED:
            raise RefusedError("queue.full", f"{MAX_QUEUED} tasks are waiting already: try again later")
        if sum(1 for other in waiting if other.project == task.project) >= MAX_OF_PROJECT:
            raise RefusedError("queue.full", f"{MAX_OF_PROJECT} tasks of {task.project} are waiting already")
        self.save(task)
        self._tasks[task.id] = task

    def take(self, world: World) -> Task | None:
        task = self._fair.next(world)
        if task is None:
            return None
        if task.state is State.QUEUED:
            self._fair.started(task, world.rules.weights)
            task.attempts, task.reason, task.code, task.job = task.attempts + 1, "", None, ""
            task.started_ms = world.now_ms
        task.state = State.RUNNING
        self.save(task)
        return task

    def victim(self, world: World) -> Task | None:
        return self._fair.victim(world)

    def give_back(self, task: Task, reason: str, not_before_ms: int) -> None:
        task.state, task.reason, task.not_before_ms = State.QUEUED, reason, not_before_ms
        self.save(task)

    def finish(self, task: Task, state: State, reason: str, now_ms: int) -> None:
        task.state, task.reason, task.ended_ms = state, reason, now_ms
        self.save(task)

    def save(self, task: Task) -> None:
        self._store.save_task(task.id, json.dumps(asdict(task)))

    def forget_old(self) -> list[str]:
        named = {name for task in queued(self._tasks.values()) for name in task.after}
        over = [task for task in self._tasks.values() if task.state in OVER and task.id not in named]
        old = sorted(over, key=lambda task: task.ended_ms)[: max(0, len(over) - KEPT)]
        for task in old:
            del self._tasks[task.id]
            self._store.delete_task(task.id)
        return [task.id for task in old]
