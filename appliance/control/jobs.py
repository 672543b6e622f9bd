"""Jobs: a jail, a policy binding and a container with one lifetime."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import signal
import sqlite3
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from exeat.appliance.control.files import mounts_of, scopes_of
from exeat.appliance.control.hub import Hub, Jail
from exeat.appliance.control.verbs import ROOT_NAME
from exeat.appliance.errors import RefusedError
from exeat.appliance.sections import AGENT
from exeat.policy.model import Subject
from exeat.sandbox.env import job_environment
from exeat.sandbox.spec import SOCKETS, Profile

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from exeat.appliance.control.aio import Requester
    from exeat.appliance.control.evidence import Evidence
    from exeat.appliance.control.files import Files
    from exeat.appliance.control.policies import Policies
    from exeat.appliance.control.store import Store

# How a job may end. `exited` is by itself, by a signal too; `lost`: nobody knows how.
EXITED, OOM, TIMEOUT, KILLED, KILL_SWITCH, LOST = "exited", "oom", "timeout", "killed", "kill", "lost"
LEASE = "lease"  # what it may have, it may have no longer
_CODE_KILLED, _CODE_LOST = 128 + signal.SIGKILL, 125
KILL_WAIT_S = 1.0  # how long the kill switch waits for the warden before it answers
WAKE_S = 60.0  # a sleeping machine's clock goes on, a timer of the loop does not
ENDED_KEPT = 256  # how many ended jobs `job.wait` still answers for
MAX_JOBS = 512


@dataclass
class Job:
    """One job; `code` is its exit code once it has ended."""

    name: str
    project: str
    agent: str
    argv: list[str]
    hold_ms: int
    doors: list[str] = field(default_factory=lambda: list(SOCKETS))  # of its jail
    policy: str = ""  # digest of its own policy document, "" for the project's
    started_ms: int = 0
    work: str = ""
    scopes: list[str] = field(default_factory=list)  # folders that policy or leases give it
    root: str = ""  # the tree of its own that it has
    task: str = ""  # of the queue, if it came from there
    by: str = ""  # the person who wanted it, "" where root named nobody
    limits: dict[str, int] = field(default_factory=dict)  # what was asked for, as the warden takes it
    time_ms: int = 0  # how long it may run; 0: without end
    started_s: float = 0.0  # CLOCK_BOOTTIME; 0: not yet
    paused: bool = False  # its processes are stopped, or about to be
    ending: str = ""  # why it is being killed, one of the reasons above
    code: int | None = None
    reason: str = ""  # how it ended
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def row(self) -> dict[str, Any]:
        """What is kept across a restart of control, and what `--json` shows."""
        return {key: value for key, value in vars(self).items() if key != "ended"}


def _boot_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _check(wanted: Callable[[], bool]) -> None:
    if not wanted():
        raise RefusedError("job.cancelled", "it was cancelled before it began")


def _doors(network: object) -> list[str]:
    """The sockets of a jail: all of them, or, with `none`, only the one that is a file."""
    if network not in (None, "jail", "none"):
        raise RefusedError("job.network", "network is jail or none")
    return ["proxyu"] if network == "none" else list(SOCKETS)


def agent_of(request: dict[str, Any]) -> str:
    """Its name is part of what people read and of leases' ids. Raises RefusedError."""
    agent = request.get("agent") or "run"
    if not isinstance(agent, str) or not re.fullmatch(AGENT, agent):
        raise RefusedError("job.agent", "an agent is called by letters, digits, `.`, `_` and `-`, 63 at most")
    return agent


def _profile(request: dict[str, Any]) -> str:
    return str(request.get("profile", Profile.STANDARD_NET))


def _numbers(raw: object) -> dict[str, int]:
    """What they mean is the warden's to judge."""
    if not isinstance(raw, dict) or not all(type(value) is int and value >= 0 for value in raw.values()):
        raise RefusedError("job.limits", "limits are whole numbers by name")
    return {str(name): value for name, value in raw.items()}


class Jobs:
    """Starts, watches, adopts and removes jobs."""

    def __init__(
        self,
        node: str,
        warden: Requester,
        hub: Hub,
        policies: Policies,
        store: Store,
        evidence: Evidence,
        most_ms: int,
        hook: str,
        stopped: Callable[[str], bool],
        files: Files,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        """`most_ms`: how long a job may run, 0 for without end. `hook`: what the warden runs before each.

        `stopped`: does the kill switch stop it?
        """
        self._node = node
        self._warden = warden
        self._hub = hub
        self._policies = policies
        self._store = store
        self._evidence = evidence
        self._most_ms = most_ms
        self._hook = hook
        self._stopped = stopped
        self._files = files
        self._spawn = spawn
        self.all: dict[str, Job] = {}

    async def start(
        self,
        request: dict[str, Any],
        fds: Sequence[int],
        *,
        task: str = "",
        wanted: Callable[[], bool] = lambda: True,
    ) -> Job:
        """Make the jail, bind the policy, start the container. Nothing is left if a step fails.

        `task`: of the queue, which alone says so. `wanted`: is it, still? Asked while nothing has run yet.
        """
        job = self._new(request)
        job.task = task
        await self._hub.wait_for_gateway()
        _check(wanted)
        if self._stopped(job.project):  # from here on, `end_all` finds the job
            raise RefusedError(KILL_SWITCH, "no job may run: the kill switch is on (see `exeat kill`)")
        # Before anything is made or recorded: a crash from here on leaves nothing that nobody owns.
        try:
            self._save(job)
        except sqlite3.Error as error:
            raise RefusedError("job.not_kept", f"control's database cannot be written: {error}") from None
        self.all[job.name] = job
        self._policies.bind(job.name, job.policy)
        try:
            await self._prepare(job, request)
            _check(wanted)
            await self._start_container(job, request, fds)
        except BaseException as error:
            job.code, job.reason = _CODE_LOST, error.code if isinstance(error, RefusedError) else LOST
            await self._settle(job, str(error))
            self.all.pop(job.name, None)
            await self._remove(job)
            raise
        self._save(job)
        if self._hook:
            self._spawn(self.note(job, "accelerator", f"cleared by {self._hook}", ""))
        self._spawn(self._watch(job))
        self._spawn(self._expire(job))
        return job

    async def _prepare(self, job: Job, request: dict[str, Any]) -> None:
        """Its jail, and the record that it starts: both before its first process."""
        asked = "".join(f", {name}={value}" for name, value in job.limits.items())
        record = self._record(job, "start", f"{job.argv[0]}, {_profile(request)}{asked}")
        # Not a TaskGroup: what goes on when the other fails must end before it is taken down.
        work = (self._make_jail(job), self._evidence.write(record), self._open_scopes(job, request))
        for failure in await asyncio.gather(*work, return_exceptions=True):
            if failure is not None:
                raise failure

    async def _open_scopes(self, job: Job, request: dict[str, Any]) -> None:
        self._files.check_mounts(self.subject(job), request.get("mounts"), job.root)
        for scope, lease in self._files.admit(self.subject(job), job.scopes).items():
            await self.note(job, "file.open", scope, lease)

    def end_ungranted(self) -> None:
        """Have those end that are not to have a folder any more that they have."""
        for job in list(self.all.values()):
            if not job.scopes or not job.started_s or job.code is not None or job.ending:
                continue
            try:
                self._files.admit(self.subject(job), job.scopes)
            except RefusedError as error:
                print(f"control: job {job.name} ends: {error}", file=sys.stderr, flush=True)
                self._spawn(self.end(job, LEASE))

    async def _start_container(self, job: Job, request: dict[str, Any], fds: Sequence[int]) -> None:
        arguments = {
            "argv": job.argv,
            "env": self._environment(job, request),
            "mounts": [*(request.get("mounts") or []), *mounts_of(job.scopes)],
            "cwd": request.get("cwd", "/work"),
            "profile": _profile(request),
            "user": request.get("user", "fresh"),
            "limits": job.limits,
            "root": job.root,
        }
        reply, _ = await self._warden.call("job.start", fds, job=job.name, **arguments)
        job.work, job.started_s = str(reply.get("work", "")), _boot_s()

    def _save(self, job: Job) -> None:
        self._store.save_job(job.name, json.dumps(job.row()))

    def _record(self, job: Job, what: str, detail: str = "", actor: str = "", lease: str = "") -> bytes:
        document = self._policies.document_of(job.project, job.name)
        return self._evidence.job(
            job=job.name,
            project=job.project,
            agent=job.agent,
            digest=document.digest if document is not None else "",
            what=what,
            reason=job.reason,
            detail=detail,
            code=job.code or 0,
            ran_ms=round(1000 * (_boot_s() - job.started_s)) if job.started_s else 0,
            actor=actor,
            lease=lease,
        )

    def _new(self, request: dict[str, Any]) -> Job:
        if sum(1 for job in self.all.values() if job.code is None) >= MAX_JOBS:
            raise RefusedError("job.limit", f"{MAX_JOBS} jobs are running already")
        argv = request.get("argv")
        if not isinstance(argv, list) or not argv or not all(isinstance(part, str) for part in argv):
            raise RefusedError("job.argv", "no command to run")
        project, digest = self._policies.choose(
            request.get("project"), request.get("policy"), request.get("file")
        )
        hold = request.get("hold_ms")
        return Job(
            name=f"{project[:18].rstrip('-')}-{secrets.token_hex(4)}",
            project=project,
            agent=agent_of(request),
            argv=argv,
            hold_ms=hold
            if isinstance(hold, int) and 0 <= hold <= 55_000
            else self._policies.hold_ms(project, digest),
            doors=_doors(request.get("network")),
            root=str(request.get("root") or ""),
            scopes=scopes_of(request.get("scopes")),
            policy=digest,
            limits=_numbers(request.get("limits") or {}),
            by=str(request.get("as") or ""),
            time_ms=self._time_ms(request),
            started_ms=time.time_ns() // 1_000_000,
        )

    def _time_ms(self, request: dict[str, Any]) -> int:
        (asked,) = _numbers({"time": request.get("time_ms") or self._most_ms}).values()
        if self._most_ms and asked > self._most_ms:
            raise RefusedError("limits", f"limit time is {asked} ms: this node gives at most {self._most_ms}")
        return asked

    def _environment(self, job: Job, request: dict[str, Any]) -> dict[str, str]:
        extra = request.get("env") or {}
        if not isinstance(extra, dict):
            raise RefusedError("job.env", "env is a mapping of names to text")
        return job_environment(job=job.name, project=job.project, extra=extra)

    def subject(self, job: Job) -> Subject:
        return Subject(job.project, job.agent, job.name, job.name, self._node)

    def submitter(self, name: str) -> str:
        """Who wanted the job, "" for one that is not known or that root started without naming anybody."""
        job = self.all.get(name)
        return "" if job is None or job.by == ROOT_NAME else job.by

    def _jail(self, job: Job) -> Jail:
        return Jail(job.name, self.subject(job), job.hold_ms, tuple(job.doors))

    async def _make_jail(self, job: Job) -> None:
        reply, fds = await self._warden.call("jail.create", jail=job.name, names=job.doors)
        try:
            # The binding must be known before the first socket accepts.
            self._hub.publish()
            sockets = dict(zip(reply["sockets"], fds, strict=True))
            await self._hub.add_jail(self._jail(job), sockets)
        finally:
            for fd in fds:
                os.close(fd)

    async def open_sockets(self, jail: str, names: Sequence[str]) -> dict[str, int]:
        """Fresh listening sockets of a live jail, for a gateway process that came back."""
        reply, fds = await self._warden.call("jail.sockets", jail=jail, names=list(names))
        return dict(zip(reply["sockets"], fds, strict=True))

    async def _watch(self, job: Job) -> None:
        while job.code is None:
            if job.ending:  # while it was starting, or while there was no warden
                await self._kill(job)
            try:
                reply, _ = await self._warden.call("job.wait", job=job.name)
                job.code = int(reply["code"])
                by_us = job.ending if job.code == _CODE_KILLED else ""
                job.reason = by_us or (OOM if reply.get("oom") else EXITED)
            except RefusedError as error:
                if error.code != "unavailable":
                    print(f"job {job.name}: {error}", file=sys.stderr)
                    job.code, job.reason = _CODE_LOST, LOST
                    break
                await asyncio.sleep(0.1)  # the warden is being restarted; the job runs on
        await asyncio.gather(self._settle(job), self._remove(job))
        job.ended.set()
        self._forget_old()

    async def _settle(self, job: Job, detail: str = "") -> None:
        """Record its end, and forget it in the same moment: no crash makes two ends of it, or none."""
        end = json.dumps({"code": job.code, "reason": job.reason}) if job.task else ""
        await self._evidence.owe(
            self._record(job, "exit", detail), instead_of_job=job.name, task=job.task, end=end
        )

    async def _expire(self, job: Job) -> None:
        """End the job when its time is up."""
        while job.time_ms and not job.ended.is_set():
            left = job.started_s + job.time_ms / 1000 - _boot_s()
            if left <= 0:
                await self.end(job, TIMEOUT)
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(job.ended.wait(), min(left, WAKE_S))

    async def end(self, job: Job, reason: str) -> None:
        """SIGKILL to all its processes.

        One that is still starting, or whose warden is away, is killed as soon as it can be.
        """
        job.ending = job.ending or reason
        if job.started_s and job.code is None:
            await self._kill(job)
            self._save(job)

    async def _kill(self, job: Job) -> None:
        try:
            await self._warden.call("job.kill", job=job.name)
        except RefusedError as error:
            if error.code not in ("unavailable", "job.unknown"):
                print(f"job {job.name}: it cannot be killed: {error}", file=sys.stderr, flush=True)

    async def pause(self, job: Job, actor: str = "") -> None:
        """Stop its processes where they are. Time goes on for it, and so do leases. Raises RefusedError."""
        job.paused = True
        self._save(job)  # first: after a crash it is made to be as is known here
        try:
            await self._warden.call("job.pause", job=job.name)
        except RefusedError:
            job.paused = False
            self._save(job)
            raise
        await self._evidence.owe(self._record(job, "pause", actor=actor))

    async def resume(self, job: Job, actor: str = "") -> None:
        """Let them go on. Raises RefusedError."""
        await self._evidence.owe(self._record(job, "resume", actor=actor))
        await self._warden.call("job.resume", job=job.name)
        job.paused = False
        self._save(job)

    async def end_all(self, project: str | None, reason: str) -> int:
        """`end` every job (of a project), all at once; how many. Does not wait for a warden that hangs."""
        doomed = [job for job in self.all.values() if job.code is None and project in (None, job.project)]
        with contextlib.suppress(TimeoutError):  # it has been told, and told again when it comes back
            async with asyncio.timeout(KILL_WAIT_S), asyncio.TaskGroup() as group:
                for job in doomed:
                    group.create_task(self.end(job, reason))
        return len(doomed)

    async def _remove(self, job: Job) -> None:
        await self._hub.remove_jail(job.name)
        await self.clear(job.name)
        self._policies.unbind(job.name)
        self._hub.publish()

    def _forget_old(self) -> None:
        ended = [name for name, job in self.all.items() if job.ended.is_set()]
        for name in ended[:-ENDED_KEPT]:
            del self.all[name]

    def get(self, name: object) -> Job:
        job = self.all.get(str(name))
        if job is None:
            raise RefusedError("job.unknown", f"no job `{name}`")
        return job

    def recall(self) -> None:
        """After a restart: know the jobs again, before anybody can ask for them.

        One that was still being started is ended if `exeat run` asked for it, which was never told its name.
        """
        for name, text in self._store.load_jobs():
            job = Job(**{**json.loads(text), "code": None})
            if not job.started_s:
                job.started_s = _boot_s()
                job.ending = job.ending or ("" if job.task else LOST)
            self._policies.bind(name, job.policy)
            self.all[name] = job

    async def adopt(self) -> None:
        """Take back the recalled jobs that still run, clean up what does not."""
        known = list(self.all.values())
        while True:
            try:
                (listed, _), (reply, _) = [
                    await self._warden.call(f"{each}.list") for each in ("job", "jail")
                ]
                break
            except RefusedError:
                await asyncio.sleep(0.1)
        jails = set(reply["jails"])
        await self._hub.adopt([self._jail(job) for job in known if job.name in jails])
        for job in known:
            if self._stopped(job.project):
                job.ending = job.ending or KILL_SWITCH
            self._spawn(self._watch(job))
            self._spawn(self._expire(job))
        # Not `known`: a job that was started meanwhile is in `all` before its jail is made.
        for name in (jails | {row["job"] for row in listed["jobs"]}) - self.all.keys():
            await self.clear(name)

    async def note(self, job: Job, what: str, detail: str, lease: str) -> None:
        """The record of something that a lease lets a job have; durable when that is to open."""
        record = self._record(job, what, detail, lease=lease)
        if what.endswith(".open"):
            await self._evidence.write(record)
        else:
            await self._evidence.owe(record)

    async def clear(self, name: str) -> None:
        """Have the warden take down what is there of a job; what is not there is fine."""
        if not await self._cleared(name):
            self._spawn(self._clear_later(name))

    async def _clear_later(self, name: str) -> None:
        """Once there is a warden again: nobody else would look."""
        while True:
            await asyncio.sleep(0.1)
            if await self._cleared(name):
                return

    async def _cleared(self, name: str) -> bool:
        return all([await self._done(verb, name) for verb in ("job.kill", "job.remove", "jail.destroy")])

    async def _done(self, verb: str, name: str) -> bool:
        """False while there is no warden to do it."""
        try:
            await self._warden.call(verb, (), **{verb.partition(".")[0]: name})
        except RefusedError as error:
            if error.code not in ("unavailable", "job.unknown", "jail.unknown"):
                print(f"control: {verb} {name}: {error}", file=sys.stderr, flush=True)
            return error.code != "unavailable"
        return True
