"""Tasks that wait for their turn, and become jobs: submitted, started, tried again, kept.

A task is durable before it is acknowledged. It is started only by `Jobs`, so everything that holds
for `exeat run` holds for it. Its output goes to two files which outlive control.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
import traceback
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from exeat.appliance.control.queue import (
    MAX_PRIORITY,
    OVER,
    Fair,
    Rules,
    State,
    Task,
    Wait,
    World,
    backoff_ms,
    explain,
    ill_fated,
    queued,
    running,
)
from exeat.appliance.control.task_output import TaskOutput
from exeat.appliance.control.verbs import Verbs, person
from exeat.appliance.errors import RefusedError
from exeat.appliance.sections import LABEL

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from exeat.appliance.control.jobs import Job, Jobs
    from exeat.appliance.control.leases import Leases
    from exeat.appliance.control.policies import Policies
    from exeat.appliance.control.store import Store
    from exeat.ledger.ipc import Message

MAX_QUEUED: Final = 2_000
MAX_OF_PROJECT: Final = 1_000  # waiting; nobody fills the queue alone
MAX_AFTER, MAX_NEEDS, MAX_RETRIES = 64, 32, 20
KEPT: Final = 1_000  # tasks that are over, and their output
OUTPUT_BYTES: Final = 1 << 30  # of each file a task writes, its output included, unless it asks for less
PREEMPTED: Final = "preempted"
_TICK_S = 1.0
# How a job may end without that being its own doing: such a try does not count.
_NOT_ITS_FAULT = frozenset({PREEMPTED})
_FOR_GOOD = frozenset({"kill", "killed"})  # a person wanted it to end
_PASSES = ("budget.", "kill")  # refusals that end by themselves, or by a person
_REQUEST = frozenset(
    {"argv", "profile", "mounts", "cwd", "user", "env", "limits", "time_ms", "agent", "network", "root"}
)


class Scheduler:
    """Starts what is due. `verdict` is `exeat why` for (project, agent, HOST[:PORT])."""

    def __init__(
        self,
        rules: Rules,
        folder: Path,
        store: Store,
        jobs: Jobs,
        policies: Policies,
        leases: Leases,
        *,
        most_file: int,
        now_ms: Callable[[], int],
        stopped: Callable[[str], bool],
        verdict: Callable[[str, str, str], dict[str, Any]],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        """`most_file`: bytes that the node lets a file of a job have, 0: as many as it likes."""
        self._most_file = most_file
        self._rules, self._store, self._output = rules, store, TaskOutput(folder)
        self._jobs, self._policies, self._leases = jobs, policies, leases
        self._now_ms, self._stopped, self._verdict, self._spawn = now_ms, stopped, verdict, spawn
        self._tasks: dict[str, Task] = {}
        self._fair = Fair()
        self._look = asyncio.Event()
        self._recall()

    def _recall(self) -> None:
        for _, text in self._store.load_tasks():
            body = json.loads(text)
            task = Task(**{**body, "state": State(body["state"])})
            self._tasks[task.id] = task
        over = [task for task in self._tasks.values() if task.state in OVER]
        self._output.ended(task.id for task in sorted(over, key=lambda task: task.ended_ms))

    def verbs(self) -> Verbs:
        return {
            "task.submit": self._submit,
            "task.ls": self._ls,
            "task.show": self._show,
            "task.cancel": self._cancel,
        }

    # -- the loop

    async def run(self) -> None:
        """Forever. Everything that could let a task start sets `_look`; time does, too."""
        self._resume()
        while True:
            self._look.clear()
            try:
                await self._turn()
            except Exception:  # a bug must not stop the queue for good
                traceback.print_exc()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._look.wait(), _TICK_S)

    def find(self, name: str) -> Task | None:
        """The task of this id, or the one whose last job has this name."""
        return next((task for task in self._tasks.values() if name in (task.id, task.job)), None)

    def users_of(self, root: object) -> list[str]:
        """The tasks that are to run in this tree."""
        unended = (task for task in self._tasks.values() if task.state not in OVER)
        return [task.id for task in unended if task.request.get("root") == root]

    def waiting(self) -> list[Task]:
        """The tasks that wait for their turn."""
        return list(queued(self._tasks.values()))

    def changed(self) -> None:
        """Something happened that may let a task start."""
        self._look.set()

    def _resume(self) -> None:
        """After a restart: go on with the jobs that control took back; try again what never began."""
        jobs = {job.task: job for job in self._jobs.all.values() if job.task}
        for task in running(self._tasks.values()):
            job = jobs.get(task.id)
            if job is not None:
                task.job = job.name
                self._spawn(self._attend(task, job))
            else:
                self._over(task, None, "lost")

    async def _turn(self) -> None:
        self._skip()
        while (task := self._fair.next(self._world())) is not None:
            self._fair.started(task, self._rules.weights)
            task.state, task.attempts, task.reason = State.RUNNING, task.attempts + 1, ""
            task.started_ms, task.code, task.job = self._now_ms(), None, ""
            self._save(task)  # before it runs: a crash must not run it twice unseen
            self._spawn(self._start(task))
        await self._ask()
        if victim := self._fair.victim(self._world()):
            job = self._jobs.all.get(victim.job)
            if job is not None:
                await self._jobs.end(job, PREEMPTED)

    def _skip(self) -> None:
        while doomed := [task for task in queued(self._tasks.values()) if ill_fated(task, self._tasks)]:
            for task in doomed:
                self._finish(task, State.SKIPPED, f"after {ill_fated(task, self._tasks)}")

    def _world(self) -> World:
        tasks = self._tasks
        return World(
            self._now_ms(), tasks, running(tasks.values()), self._rules, self._stopped, self._admitted
        )

    # -- leases

    def _admitted(self, task: Task) -> Wait | None:
        for need in task.needs:
            found = self._verdict(task.project, _agent(task), need)
            if found["verdict"] != "allow":
                lease = task.asked.get(need, "")
                return Wait(
                    "lease", f"needs {need}: {found['text']}{f' (asked for: {lease})' if lease else ''}"
                )
        return None

    async def _ask(self) -> None:
        """Request what the tasks lack that would start otherwise; end those that will never get it."""
        world = self._world()
        if len(world.running) >= self._rules.slots:
            return
        for task in [task for task in queued(self._tasks.values()) if task.needs]:
            wait = explain(task, world)
            if wait is not None and wait.code == "lease":
                await self._ask_for(task)

    async def _ask_for(self, task: Task) -> None:
        for need in task.needs:
            found = self._verdict(task.project, _agent(task), need)
            if found["verdict"] == "allow" or found["reason"].startswith(_PASSES):
                continue
            lease = task.asked.get(need, "")
            if (lease and self._state_of(lease) not in ("requested", "active")) or not found["leasable"]:
                self._finish(task, State.FAILED, f"needs {need}: {found['text']}")
                return
            if lease:
                continue
            try:
                row = await self._leases.request(
                    {"project": task.project, "to": need, "agent": _agent(task), "reason": f"task {task.id}"},
                    requester=task.by,
                )
            except RefusedError as error:
                if error.code != "ask.limit":  # that one passes
                    self._finish(task, State.FAILED, f"needs {need}: {error}")
                return
            task.asked[need] = str(row["id"])
            self._save(task)

    def _state_of(self, lease: str) -> str:
        try:
            return str(self._leases.row(lease)["state"])
        except RefusedError:
            return "gone"

    # -- one task

    async def _start(self, task: Task) -> None:
        try:
            with self._output.streams(task.id) as fds:
                job = await self._jobs.start({**task.request, "project": task.project}, fds, task=task.id)
        except RefusedError as error:
            self._over(task, None, error.code, text=str(error))
            return
        except OSError as error:
            self._over(task, None, "output", text=str(error))
            return
        except Exception as error:  # a bug must not keep the task's place for good
            traceback.print_exc()
            self._over(task, None, "internal.error", text=f"internal error: {type(error).__name__}")
            return
        task.job = job.name
        self._save(task)
        await self._attend(task, job)

    async def _attend(self, task: Task, job: Job) -> None:
        if task.cancelled:  # while it was starting
            await self._jobs.end(job, "killed")
        await job.ended.wait()
        self._over(task, job.code, job.reason)

    def _over(self, task: Task, code: int | None, reason: str, text: str = "") -> None:
        """A try has ended: that was it, or it will be tried again."""
        task.code, said = code, text or reason
        if task.cancelled:
            self._finish(task, State.CANCELLED, f"by {task.cancelled}")
        elif reason == "exited" and code == 0:
            self._finish(task, State.DONE, reason)
        elif reason in _NOT_ITS_FAULT:
            task.attempts -= 1
            task.submitted_ms = self._now_ms()  # behind the one it made way for, however long it had waited
            self._again(task, said, 0)
        elif reason in _FOR_GOOD or task.attempts > task.retries:
            self._finish(task, State.FAILED, said)
        else:
            self._again(task, said, backoff_ms(task.attempts))

    def _again(self, task: Task, reason: str, delay_ms: int) -> None:
        task.state, task.reason = State.QUEUED, reason
        task.not_before_ms = self._now_ms() + delay_ms
        self._save(task)
        self.changed()

    def _finish(self, task: Task, state: State, reason: str) -> None:
        task.state, task.reason, task.ended_ms = state, reason, self._now_ms()
        self._save(task)
        self._output.ended([task.id])
        self._forget_old()
        self.changed()

    def _save(self, task: Task) -> None:
        self._store.save_task(task.id, json.dumps(asdict(task)))

    def _forget_old(self) -> None:
        named = {name for task in queued(self._tasks.values()) for name in task.after}
        over = [t for t in self._tasks.values() if t.state in OVER and t.id not in named]
        for task in sorted(over, key=lambda task: task.ended_ms)[: max(0, len(over) - KEPT)]:
            del self._tasks[task.id]
            self._store.delete_task(task.id)
            self._output.drop(task.id)

    # -- requests

    async def _submit(self, message: Message, fds: list[int]) -> dict[str, Any]:
        task = self._parsed(message)
        if message.get("dry_run") is True:
            return {"task": self._row(task)}
        waiting = queued(self._tasks.values())
        if len(waiting) >= MAX_QUEUED:
            raise RefusedError("queue.full", f"{MAX_QUEUED} tasks are waiting already: try again later")
        if sum(1 for other in waiting if other.project == task.project) >= MAX_OF_PROJECT:
            raise RefusedError("queue.full", f"{MAX_OF_PROJECT} tasks of {task.project} are waiting already")
        self._save(task)
        self._tasks[task.id] = task
        self.changed()
        return {"task": self._row(task)}

    def _parsed(self, message: Message) -> Task:
        request = {name: message[name] for name in _REQUEST if name in message}
        argv = request.get("argv")
        if not isinstance(argv, list) or not argv or not all(isinstance(word, str) for word in argv):
            raise RefusedError("job.argv", "no command to run")
        # A policy of its own is for `exeat run`: who submits work for later does not bring the rules along.
        project, _ = self._policies.choose(message.get("project"), None, None)
        request["limits"] = self._limits(request.get("limits") or {})
        task = Task(
            id=f"t-{secrets.token_hex(5)}",
            project=project,
            request=request,
            by=person(message),
            submitted_ms=self._now_ms(),
            priority=_number(message, "priority", -MAX_PRIORITY, MAX_PRIORITY),
            group=self._group(message.get("group")),
            after=[self._known(name).id for name in _words(message, "after", MAX_AFTER)],
            needs=_words(message, "needs", MAX_NEEDS),
            retries=_number(message, "retries", 0, MAX_RETRIES),
        )
        self._admitted(task)  # raises for what is no place: kept, it would hold up all others
        return task

    def _limits(self, asked: object) -> dict[str, Any]:
        """With one on files, for output is one of them, and it is kept."""
        if not isinstance(asked, dict):
            raise RefusedError("job.limits", "limits are whole numbers by name")
        most = min(OUTPUT_BYTES, self._most_file or OUTPUT_BYTES)
        file = asked.get("file") or most
        if type(file) is not int or file > most:
            raise RefusedError("limits", f"limit file is {file}: a task gets at most {most}, output included")
        return {**asked, "file": file}

    def _group(self, name: object) -> str:
        if name in (None, ""):
            return ""
        if not isinstance(name, str) or not re.match(LABEL, name):
            raise RefusedError("task.group", "a group is a name of small letters, digits and hyphens")
        return name

    def _known(self, name: str) -> Task:
        if name not in self._tasks:
            raise RefusedError("task.unknown", f"no task `{name}`")
        return self._tasks[name]

    async def _ls(self, message: Message, _fds: list[int]) -> dict[str, Any]:
        project, everything = message.get("project"), message.get("all") is True
        world = self._world()
        rows = [
            self._row(task, world)
            for task in self._tasks.values()
            if project in (None, task.project) and (everything or task.state not in OVER)
        ]
        return {"tasks": rows, "slots": self._rules.slots}

    async def _show(self, message: Message, _fds: list[int]) -> dict[str, Any]:
        return {"task": self._row(self._known(str(message.get("task"))))}

    async def _cancel(self, message: Message, _fds: list[int]) -> dict[str, Any]:
        task = self._known(str(message.get("task")))
        if task.state is State.QUEUED:
            self._finish(task, State.CANCELLED, f"by {person(message)}")
        elif task.state is State.RUNNING:
            task.cancelled = person(message)
            self._save(task)
            if (job := self._jobs.all.get(task.job)) is not None:
                await self._jobs.end(job, "killed")
        return {"task": self._row(task)}

    def _row(self, task: Task, world: World | None = None) -> dict[str, Any]:
        """With why it waits, if it does: for one that was not submitted yet, why it would."""
        wait = explain(task, world or self._world()) if task.state is State.QUEUED else None
        return {**asdict(task), "waits": None if wait is None else wait._asdict()}


def _agent(task: Task) -> str:
    return str(task.request.get("agent") or "run")


def _number(message: Message, name: str, least: int, most: int) -> int:
    value = message.get(name, 0)
    if type(value) is not int or not least <= value <= most:
        raise RefusedError(f"task.{name}", f"{name} is a whole number from {least} to {most}")
    return value


def _words(message: Message, name: str, most: int) -> list[str]:
    value = message.get(name) or []
    if not isinstance(value, list) or len(value) > most or not all(isinstance(each, str) for each in value):
        raise RefusedError(f"task.{name}", f"{name} is a list of at most {most} names")
    return list(dict.fromkeys(value))
