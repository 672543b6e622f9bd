"""Which waiting task is next, and why the others wait. Pure: no clock, no I/O.

Between projects the share is fair by weight: each start adds 1/weight to its project's virtual
time, and the project with the least goes first (start-time fair queueing, Goyal et al. 1996, with
every task one unit long). Within a project priority decides, which grows with waiting so that
nothing starves, then the order of submission.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

MAX_PRIORITY: Final = 100
MANY: Final = 1 << 30
AGE_MS: Final = 60_000  # a minute of waiting counts as one step of priority
BACKOFF_MS, MAX_BACKOFF_MS = 1_000, 300_000


class State(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"  # its processes are stopped; it holds no place, and goes on when there is one
    DONE = "done"  # ended by itself with 0
    FAILED = "failed"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"  # a task it was to follow did not end well


WAITING: Final = frozenset({State.QUEUED, State.PAUSED})
OVER: Final = frozenset({State.DONE, State.FAILED, State.CANCELLED, State.SKIPPED})


@dataclass
class Task:
    """What was submitted, and what became of it. Times are Unix milliseconds."""

    id: str
    project: str
    request: dict[str, Any]  # as for `run`, without descriptors
    by: str
    submitted_ms: int
    priority: int = 0  # from -MAX_PRIORITY to MAX_PRIORITY
    group: str = ""
    after: list[str] = field(default_factory=list)
    needs: list[str] = field(default_factory=list)  # HOST[:PORT] it cannot do without
    retries: int = 0
    state: State = State.QUEUED
    attempts: int = 0
    not_before_ms: int = 0
    asked: dict[str, str] = field(default_factory=dict)  # need: the lease that was requested for it
    job: str = ""  # the one that runs, or ran last
    cancelled: str = ""  # by whom, while it still runs
    retry_after_ms: int = 0  # how long after it was given back (task.nack) it may begin again
    held: str = ""  # who paused it; nobody, where it only made way
    end: dict[str, Any] | None = None  # how its job ended, until that has been dealt with
    started_ms: int = 0
    ended_ms: int = 0
    code: int | None = None
    reason: str = ""


class Wait(NamedTuple):
    """Why a task is not started now. `code` is stable."""

    code: str
    text: str


class Rules(NamedTuple):
    """What the node allows: `slots` tasks at once; of a group, of a project; shares (1 unless given)."""

    slots: int
    groups: Mapping[str, int]
    projects: Mapping[str, int]
    weights: Mapping[str, int]
    preempt: str  # what becomes of a task that makes way: `no` (none does), `end` or `pause`


class World(NamedTuple):
    """The present moment."""

    now_ms: int
    tasks: Mapping[str, Task]
    running: Collection[Task]
    rules: Rules
    stopped: Callable[[str], bool]  # by the kill switch
    admitted: Callable[[Task], Wait | None]  # by leases; asked last, and only for a task that would start


class Queue(Protocol):
    """The tasks that are kept, whose turn it is, and what became of them.

    What a method changed outlives this process once it has returned. One for many nodes has the same face:
    `take` is then a lease of a task to one node, `give_back` its return.
    """

    @property
    def tasks(self) -> Mapping[str, Task]:
        """By id, in the order of submission."""

    def add(self, task: Task) -> None:
        """Raises RefusedError(queue.full)."""

    def take(self, world: World) -> Task | None:
        """The task whose turn it is, from now on `running`, with its `job` if that was paused; or None."""

    def victim(self, world: World) -> Task | None:
        """The running task that makes way for a more important one of its project; None if none has to."""

    def give_back(self, task: Task, reason: str, not_before_ms: int) -> None:
        """It waits again."""

    def finish(self, task: Task, state: State, reason: str, now_ms: int) -> None:
        """It is over."""

    def save(self, task: Task) -> None:
        """Keep what else was changed in it."""

    def forget_old(self) -> list[str]:
        """Drop the oldest that are over and that no task waits for; their ids."""


def backoff_ms(attempts: int) -> int:
    """How long after the `attempts`-th failure the next try may begin."""
    return min(MAX_BACKOFF_MS, BACKOFF_MS << min(attempts - 1, 30))


def ill_fated(task: Task, tasks: Mapping[str, Task]) -> str:
    """A task before this one that did not end well, or ""."""
    return next((name for name in task.after if name not in tasks or _ended_badly(tasks[name])), "")


def _ended_badly(task: Task) -> bool:
    return task.state in OVER and task.state is not State.DONE


def waits(task: Task, world: World) -> Wait | None:
    """Why it does not start now, the slots apart; None if it could."""
    rules = world.rules
    if task.held:
        return Wait("paused", f"paused by {task.held}")
    if unmet := [name for name in task.after if world.tasks[name].state is not State.DONE]:
        return Wait("after", f"waits for {', '.join(unmet)}")
    if task.not_before_ms > world.now_ms:
        seconds = -(-(task.not_before_ms - world.now_ms) // 1000)
        return Wait("backoff", f"tried {task.attempts} times; again in {seconds} s")
    if world.stopped(task.project):
        return Wait("kill", "the kill switch is on (see `exeat kill`)")
    group = sum(1 for other in world.running if other.group == task.group)
    if group >= rules.groups.get(task.group, MANY):
        return Wait("group", f"group {task.group}: {group} run already")
    mine = sum(1 for other in world.running if other.project == task.project)
    if mine >= rules.projects.get(task.project, MANY):
        return Wait("project", f"project {task.project}: {mine} run already")
    return None


def explain(task: Task, world: World) -> Wait | None:
    """As `waits`, slots and leases included; for people."""
    if wait := waits(task, world):
        return wait
    if len(world.running) >= world.rules.slots:
        return Wait("slots", f"all {world.rules.slots} places are taken")
    return _admitted(task, world)


def _admitted(task: Task, world: World) -> Wait | None:
    """One that began had its leases then; what they do not allow any more its flows are refused."""
    return None if task.state is State.PAUSED else world.admitted(task)


class Fair:
    """Whose turn it is among projects."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = {}
        self._now = 0.0  # virtual time: that of the last start

    def next(self, world: World) -> Task | None:
        """The task to start now, or None. Nothing is remembered until `started`."""
        if len(world.running) >= world.rules.slots:
            return None
        for task in self._in_turn(world):
            if _admitted(task, world) is None:
                return task
        return None

    def started(self, task: Task, weights: Mapping[str, int]) -> None:
        """Who has been idle has no claim on the past."""
        begin = max(self._spent.get(task.project, 0.0), self._now)
        self._now = begin
        self._spent[task.project] = begin + 1 / weights.get(task.project, 1)

    def _in_turn(self, world: World) -> list[Task]:
        """All that could start, were there room: project by project, within each by urgency."""
        waiting = (task for task in world.tasks.values() if task.state in WAITING)
        ready = [task for task in waiting if waits(task, world) is None]
        first: dict[str, list[Task]] = {}
        for task in sorted(ready, key=lambda task: _urgency(task, world.now_ms)):
            first.setdefault(task.project, []).append(task)
        turns = sorted(first, key=lambda name: (max(self._spent.get(name, 0.0), self._now), name))
        return [task for name in turns for task in first[name]]

    def victim(self, world: World) -> Task | None:
        """The running task that makes way for a more important one of its project; None if none has to.

        Priorities as they were given count here: waiting makes nobody important enough to end others.
        """
        if world.rules.preempt == "no" or len(world.running) < world.rules.slots:
            return None
        wanted: dict[str, int] = {}
        for task in self._in_turn(world):
            if task.priority > wanted.get(task.project, -MAX_PRIORITY) and not _admitted(task, world):
                wanted[task.project] = task.priority
        less = [task for task in world.running if task.priority < wanted.get(task.project, -MAX_PRIORITY)]
        return min(less, key=lambda task: (task.priority, -task.started_ms), default=None)


def queued(tasks: Iterable[Task]) -> list[Task]:
    return [task for task in tasks if task.state is State.QUEUED]


def running(tasks: Iterable[Task]) -> list[Task]:
    return [task for task in tasks if task.state is State.RUNNING]


def _urgency(task: Task, now_ms: int) -> tuple[int, int]:
    """The least goes first; of equals the one that was submitted first, for sorting is stable."""
    aged = task.priority + max(0, now_ms - task.submitted_ms) // AGE_MS
    return -aged, task.submitted_ms
