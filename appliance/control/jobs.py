"""Jobs: a jail, a policy binding and a container with one lifetime."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from exeat.appliance.control.hub import Hub, Jail
from exeat.appliance.errors import RefusedError
from exeat.policy.model import Subject
from exeat.sandbox.env import job_environment
from exeat.sandbox.spec import Profile

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from exeat.appliance.control.aio import Requester
    from exeat.appliance.control.policies import Policies
    from exeat.appliance.control.store import Store

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
    policy: str = ""  # digest of its own policy document, "" for the project's
    started_ms: int = 0
    work: str = ""
    code: int | None = None
    oom: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def row(self) -> dict[str, Any]:
        """What is kept across a restart of control, and what `--json` shows."""
        return {key: value for key, value in vars(self).items() if key != "ended"}


class Jobs:
    """Starts, watches, adopts and removes jobs."""

    def __init__(
        self,
        node: str,
        warden: Requester,
        hub: Hub,
        policies: Policies,
        store: Store,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._node = node
        self._warden = warden
        self._hub = hub
        self._policies = policies
        self._store = store
        self._spawn = spawn
        self.all: dict[str, Job] = {}

    async def start(self, request: dict[str, Any], fds: Sequence[int]) -> Job:
        """Make the jail, bind the policy, start the container. Nothing is left if a step fails."""
        job = self._new(request)
        await self._hub.wait_for_gateway()
        self.all[job.name] = job
        self._policies.bind(job.name, job.policy)
        try:
            await self._make_jail(job)
            reply, _ = await self._warden.call(
                "job.start",
                fds,
                job=job.name,
                argv=job.argv,
                env=self._environment(job, request),
                mounts=request.get("mounts", []),
                cwd=request.get("cwd", "/work"),
                profile=request.get("profile", str(Profile.STANDARD_NET)),
                user=request.get("user", "fresh"),
            )
        except BaseException:
            await self._remove(job)
            self.all.pop(job.name, None)
            raise
        job.work = str(reply.get("work", ""))
        self._store.save_job(job.name, json.dumps(job.row()))
        self._spawn(self._watch(job))
        return job

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
            agent=str(request.get("agent") or "run"),
            argv=argv,
            hold_ms=hold
            if isinstance(hold, int) and 0 <= hold <= 55_000
            else self._policies.hold_ms(project, digest),
            policy=digest,
            started_ms=time.time_ns() // 1_000_000,
        )

    def _environment(self, job: Job, request: dict[str, Any]) -> dict[str, str]:
        extra = request.get("env") or {}
        if not isinstance(extra, dict):
            raise RefusedError("job.env", "env is a mapping of names to text")
        return job_environment(job=job.name, project=job.project, extra=extra)

    def subject(self, job: Job) -> Subject:
        return Subject(job.project, job.agent, job.name, job.name, self._node)

    async def _make_jail(self, job: Job) -> None:
        reply, fds = await self._warden.call("jail.create", jail=job.name)
        try:
            # The binding must be known before the first socket accepts.
            self._hub.publish()
            sockets = dict(zip(reply["sockets"], fds, strict=True))
            await self._hub.add_jail(Jail(job.name, self.subject(job), job.hold_ms), sockets)
        finally:
            for fd in fds:
                os.close(fd)

    async def open_sockets(self, jail: str, names: Sequence[str]) -> dict[str, int]:
        """Fresh listening sockets of a live jail, for a gateway process that came back."""
        reply, fds = await self._warden.call("jail.sockets", jail=jail, names=list(names))
        return dict(zip(reply["sockets"], fds, strict=True))

    async def _watch(self, job: Job) -> None:
        while True:
            try:
                reply, _ = await self._warden.call("job.wait", job=job.name)
                job.code, job.oom = int(reply["code"]), bool(reply.get("oom"))
                break
            except RefusedError as error:
                if error.code != "unavailable":
                    print(f"job {job.name}: {error}", file=sys.stderr)
                    job.code = 125
                    break
                await asyncio.sleep(0.1)  # the warden is being restarted; the job runs on
        await self._remove(job)
        job.ended.set()
        self._forget_old()

    async def _remove(self, job: Job) -> None:
        await self._hub.remove_jail(job.name)
        await self._clear(job.name, "job.remove", "jail.destroy")
        self._policies.unbind(job.name)
        self._store.delete_job(job.name)
        self._hub.publish()

    def _forget_old(self) -> None:
        ended = [name for name, job in self.all.items() if job.ended.is_set()]
        for name in ended[:-ENDED_KEPT]:
            del self.all[name]

    async def kill(self, name: str) -> None:
        self.get(name)
        await self._warden.call("job.kill", job=name)

    def get(self, name: object) -> Job:
        job = self.all.get(str(name))
        if job is None:
            raise RefusedError("job.unknown", f"no job `{name}`")
        return job

    def recall(self) -> None:
        """After a restart: know the jobs again, before anybody can ask for them."""
        for name, text in self._store.load_jobs():
            job = Job(**{**json.loads(text), "code": None})
            self._policies.bind(name, job.policy)
            self.all[name] = job

    async def adopt(self) -> None:
        """Take back the recalled jobs that still run, clean up what does not."""
        known = list(self.all.values())
        while True:
            try:
                reply, _ = await self._warden.call("jail.list")
                break
            except RefusedError:
                await asyncio.sleep(0.1)
        jails = set(reply["jails"])
        for job in known:
            if job.name in jails:
                self._hub.jails[job.name] = Jail(job.name, self.subject(job), job.hold_ms)
            self._spawn(self._watch(job))
        # Not `known`: a job that was started meanwhile is in `all` before its jail is made.
        for name in jails - self.all.keys():
            await self._clear(name, "job.kill", "job.remove", "jail.destroy")

    async def _clear(self, name: str, *verbs: str) -> None:
        """Have the warden take down what is there of a job; what is not there is fine."""
        for verb in verbs:
            kind = verb.partition(".")[0]
            try:
                await self._warden.call(verb, (), **{kind: name})
            except RefusedError as error:
                if error.code not in ("unavailable", "job.unknown", "jail.unknown"):
                    print(f"control: {verb} {name}: {error}", file=sys.stderr, flush=True)
