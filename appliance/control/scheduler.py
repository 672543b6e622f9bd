"""Tasks that wait for their turn, and become jobs: submitted, started, tried again, kept.

A task is durable before it is acknowledged. It is started only by `Jobs`, so everything that holds
for `exeat run` holds for it. Its output goes to two files which outlive control.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import traceback
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from exeat.appliance.control.queue import (
    OVER,
    WAITING,
    Queue,
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
from exeat.appliance.control.task_requests import Requests, number
from exeat.appliance.control.verbs import Verbs, may, person
from exeat.appliance.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from pathlib import Path

    from exeat.appliance.control.jobs import Job, Jobs
    from exeat.appliance.control.leases import Leases
    from exeat.appliance.control.policies import Policies
    from exeat.ledger.ipc import Message

PREEMPTED, NACK = "preempted", "nack"  # how a job may end without that being its own doing: no try is lost
MAX_AFTER_MS: Final = 7 * 86_400_000
_TICK_S = 1.0
_FOR_GOOD = frozenset({"kill", "killed"})  # a person wanted it to end
_PASSES = ("budget.", "kill")  # refusals that end by themselves, or by a person


class Scheduler:
    """Starts what is due. `verdict` is `exeat why` for (project, agent, HOST[:PORT] or a folder),
    `request` asks for a lease of it."""

    def __init__(
        self,
        rules: Rules,
        folder: Path,
        queue: Queue,
        jobs: Jobs,
        policies: Policies,
        leases: Leases,
        *,
        most_file: int,
        now_ms: Callable[[], int],
        stopped: Callable[[str], bool],
        verdict: Callable[[str, str, str], dict[str, Any]],
        request: Callable[[dict[str, Any], str], Awaitable[dict[str, Any]]],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        """`most_file`: bytes that the node lets a file of a job have, 0: as many as it likes."""
        self._requests = Requests(most_file)
        self._rules, self._output = rules, TaskOutput(folder)
        self._jobs, self._policies, self._leases = jobs, policies, leases
        self._now_ms, self._stopped, self._verdict, self._spawn = now_ms, stopped, verdict, spawn
        self._request = request
        self._queue, self._tasks = queue, queue.tasks
        self._look = asyncio.Event()
        over = [task for task in self._tasks.values() if task.state in OVER]
        self._output.ended(task.id for task in sorted(over, key=lambda task: task.ended_ms))

    def verbs(self) -> Verbs:
        return {
            "task.submit": self._submit,
            "task.ls": self._ls,
            "task.show": self._show,
            "task.cancel": self._cancel,
            "task.nack": self._nack,
            "job.pause": self._pause,
            "job.resume": self._resume,
        }

    # -- the loop

    async def run(self) -> None:
        """Forever. Everything that could let a task start sets `_look`; time does, too."""
        self._recall()
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

    def _recall(self) -> None:
        """After a restart: go on with the jobs that control took back; try again what never began."""
        jobs = {job.task: job for job in self._jobs.all.values() if job.task}
        for task in [task for task in self._tasks.values() if task.state in (State.RUNNING, State.PAUSED)]:
            job = jobs.get(task.id)
            if job is not None:
                task.job = job.name
                self._spawn(self._attend(task, job))
                if job.paused != (task.state is State.PAUSED):
                    task.state = State.PAUSED  # it is made to go on where a place is free
                    self._spawn(self._jobs.pause(job))
            elif task.end is not None:  # its job had ended, and control before that was dealt with
                self._over(task, task.end["code"], str(task.end["reason"]))
            else:
                self._over(task, None, "lost")

    async def _turn(self) -> None:
        self._skip()
        while (task := self._queue.take(self._world())) is not None:
            self._spawn(self._go_on(task) if task.job else self._start(task))
        await self._ask()
        if victim := self._queue.victim(self._world()):
            job = self._jobs.all.get(victim.job)
            if job is not None:
                await self._make_way(victim, job)

    # -- what makes way, and goes on

    async def _make_way(self, task: Task, job: Job) -> None:
        if self._rules.preempt == "pause":
            with contextlib.suppress(RefusedError):  # no freezer: then there is but one way
                await self._stop(task, job, "", "")
                return
        await self._jobs.end(job, PREEMPTED)

    async def _stop(self, task: Task, job: Job, held: str, actor: str) -> None:
        """Pause it; whoever waits for a place has one more."""
        await self._jobs.pause(job, actor)
        if task.state is State.RUNNING:  # it may have ended meanwhile
            task.state, task.held = State.PAUSED, held
            self._queue.save(task)
        self.changed()

    async def _go_on(self, task: Task) -> None:
        job = self._jobs.all.get(task.job)
        if job is None or job.code is not None:
            return  # whoever attends it says how it ended
        try:
            await self._jobs.resume(job)
        except RefusedError as error:
            print(f"control: {task.id} does not go on: {error}", file=sys.stderr, flush=True)
            if task.state is State.RUNNING and job.code is None:
                task.state = State.PAUSED  # until the next turn
                self._queue.save(task)

    async def _pause(self, message: Message, _fds: list[int]) -> dict[str, Any]:
        """A task, or a job of `exeat run`, by its name."""
        task, job, who = *self._running(message), person(message)
        if task is None:
            await self._jobs.pause(job, who)
        elif task.state is State.PAUSED:
            task.held = who
            self._queue.save(task)
        else:
            await self._stop(task, job, who, who)
        return {}

    async def _resume(self, message: Message, _fds: list[int]) -> dict[str, Any]:
        task, job, who = *self._running(message), person(message)
        if task is None:
            await self._jobs.resume(job, who)
        else:
            task.held = ""
            self._queue.save(task)
            self.changed()
        return {}

    def _running(self, message: Message) -> tuple[Task | None, Job]:
        name = str(message.get("job"))
        task = self.find(name)
        job = self._jobs.get(task.job if task is not None else name)
        if job.code is not None:
            raise RefusedError("job.ended", f"job {job.name} has ended")
        return task, job

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
                row = await self._request(
                    {"project": task.project, "to": need, "agent": _agent(task), "reason": f"task {task.id}"},
                    task.by,
                )
            except RefusedError as error:
                if error.code != "ask.limit":  # that one passes
                    self._finish(task, State.FAILED, f"needs {need}: {error}")
                return
            task.asked[need] = str(row["id"])
            self._queue.save(task)

    def _state_of(self, lease: str) -> str:
        try:
            return str(self._leases.row(lease)["state"])
        except RefusedError:
            return "gone"

    # -- one task

    async def _start(self, task: Task) -> None:
        try:
            with self._output.streams(task.id) as fds:
                request = {**task.request, "project": task.project, "as": task.by}
                job = await self._jobs.start(request, fds, task=task.id, wanted=lambda: not task.cancelled)
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
        self._queue.save(task)
        await self._attend(task, job)

    async def _attend(self, task: Task, job: Job) -> None:
        if task.cancelled:  # while it was starting
            await self._jobs.end(job, "killed")
        await job.ended.wait()
        self._over(task, job.code, job.reason)

    def _over(self, task: Task, code: int | None, reason: str, text: str = "") -> None:
        """A try has ended: that was it, or it will be tried again."""
        task.code, task.end, task.held, said = code, None, "", text or reason
        if task.cancelled:
            self._finish(task, State.CANCELLED, f"by {task.cancelled}")
        elif reason == "exited" and code == 0:
            self._finish(task, State.DONE, reason)
        elif reason == PREEMPTED:
            task.attempts -= 1
            task.submitted_ms = self._now_ms()  # behind the one it made way for, however long it had waited
            self._again(task, said, 0)
        elif reason == NACK:
            task.attempts -= 1
            self._again(task, said, task.retry_after_ms)
        elif reason in _FOR_GOOD or task.attempts > task.retries:
            self._finish(task, State.FAILED, said)
        else:
            self._again(task, said, backoff_ms(task.attempts))

    def _again(self, task: Task, reason: str, delay_ms: int) -> None:
        self._queue.give_back(task, reason, self._now_ms() + delay_ms)
        self.changed()

    def _finish(self, task: Task, state: State, reason: str) -> None:
        self._queue.finish(task, state, reason, self._now_ms())
        self._output.ended([task.id])
        for name in self._queue.forget_old():
            self._output.drop(name)
        self.changed()

    # -- requests

    async def _submit(self, message: Message, fds: list[int]) -> dict[str, Any]:
        may(message, "job.drive")
        task = self._requests.task(message, self._policies.choose, self._now_ms())
        task.after = [self._known(name).id for name in task.after]
        self._admitted(task)  # raises for what is no place: kept, it would hold up all others
        if message.get("dry_run") is True:
            return {"task": self._row(task)}
        self._queue.add(task)
        self.changed()
        return {"task": self._row(task)}

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
        may(message, "job.drive")
        task = self._known(str(message.get("task")))
        if task.state is State.QUEUED:
            self._finish(task, State.CANCELLED, f"by {person(message)}")
        elif task.state not in OVER:
            task.cancelled = person(message)
            self._queue.save(task)
            if (job := self._jobs.all.get(task.job)) is not None:
                await self._jobs.end(job, "killed")
        return {"task": self._row(task)}

    async def _nack(self, message: Message, _fds: list[int]) -> dict[str, Any]:
        """Back into the queue, without a try being lost, and not before `after_ms`."""
        task = self._known(str(message.get("task")))
        job = self._jobs.all.get(task.job)
        if task.state not in (State.RUNNING, State.PAUSED) or job is None:
            raise RefusedError("job.ended", f"{task.id} does not run")
        task.retry_after_ms = number(message, "after_ms", 0, MAX_AFTER_MS)
        self._queue.save(task)
        await self._jobs.end(job, NACK)
        return {"task": self._row(task)}

    def _row(self, task: Task, world: World | None = None) -> dict[str, Any]:
        """With why it waits, if it does: for one that was not submitted yet, why it would."""
        wait = explain(task, world or self._world()) if task.state in WAITING else None
        return {**asdict(task), "waits": None if wait is None else wait._asdict()}


def _agent(task: Task) -> str:
    return str(task.request.get("agent") or "run")
