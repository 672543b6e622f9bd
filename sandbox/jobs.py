"""Jobs: one container each, under a launcher that outlives the warden.

Privileged code. All that must survive the warden lies in RUN/warden/jobs/<job>/: `uid`,
`launcher` and `pid` (process ids), and `exit` (the code, written last).
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from exeat.ledger.reactor import EPOLLIN, Reactor
from exeat.sandbox import cgroup, netns, oci
from exeat.sandbox.launcher import Places, runtime
from exeat.sandbox.names import SpecError
from exeat.sandbox.steps import ENV, done

if TYPE_CHECKING:
    from collections.abc import Callable

    from exeat.sandbox.spec import JobSpec, WardenSettings

    Answer = Callable[[dict[str, Any]], None]

START_S, REMOVE_S = 20.0, 600.0
KILLED: Final = 128 + signal.SIGKILL  # also the code of a job whose launcher vanished
_VMSTAT, _MOUNTS = Path("/proc/vmstat"), Path("/proc/self/mountinfo")
_CONTROLLERS: Final = Path("/sys/fs/cgroup/cgroup.controllers")


@dataclass
class Job:
    name: str
    uid: int
    process: subprocess.Popen[bytes] | None = None  # the launcher, when it is our child
    launcher: int = -1  # pidfd
    init: int = -1  # pidfd of the container's first process
    killed: bool = False
    code: int | None = None
    oom: bool = False
    oom_kills: int = field(default_factory=lambda: cgroup.oom_kills(_VMSTAT.read_text()))
    waiters: list[Callable[[], None]] = field(default_factory=list)

    def kill(self) -> None:
        """SIGKILL to the container's first process, with which its pid namespace ends."""
        self.killed = True  # one that is still starting is killed as soon as it has a first process
        if self.init >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.init, signal.SIGKILL)

    def when_ended(self, call: Callable[[], None]) -> None:
        """Call once the job has ended; at once if it has."""
        if self.code is None:
            self.waiters.append(call)
        else:
            call()


class Jobs:
    def __init__(self, places: Places, settings: WardenSettings, reactor: Reactor) -> None:
        self.all: dict[str, Job] = {}
        self._places, self._reactor = places, reactor
        layout = cgroup.layout(_MOUNTS.read_text(), _CONTROLLERS.read_text() if _CONTROLLERS.exists() else "")
        self._runtime = runtime(settings.runtime, places, layout)
        links = oci.merged_links(path.name for path in Path("/").iterdir() if path.is_symlink())
        etc = tuple(filter(os.path.exists, oci.HOST_ETC))
        held = layout.limits, resource.getrlimit(resource.RLIMIT_NOFILE)[1], layout.held(settings.disks)
        self._host = oci.Host(os.uname().machine, links, etc, *held, self._runtime.beside)

    def start(self, spec: JobSpec, uid: int, fds: list[int], reply: Callable[[dict[str, Any]], None]) -> None:
        """Start a job in its jail; `reply` gets pid and work folder, or why not."""
        if spec.job in self.all:
            raise SpecError("job.exists", f"job {spec.job} exists")
        kept = len(os.listdir(self._places.edit("")))
        plan = oci.plan(spec, uid=uid, host=self._host, places=self._places, kept=kept)
        job = self.all[spec.job] = Job(spec.job, uid)
        try:
            self._prepare(job, plan)
            (i, o, e), run = fds, self._runtime.run(job.name, plan.config, spec.device)
            job.process = subprocess.Popen(run, -1, None, i, o, e, env=ENV, cwd="/", start_new_session=True)
            self._watch(job, os.pidfd_open(job.process.pid))
        except OSError as error:
            self.discard(job)
            raise SpecError("start", str(error)) from error
        self._await_pid(job, reply, self._reactor.now() + START_S)

    def _prepare(self, job: Job, plan: oci.Plan) -> None:
        for path in plan.folders:
            path.mkdir()
        for path in plan.own:
            os.chown(path, job.uid, job.uid)
        for mount, held in plan.staged:
            netns.bind(mount.path, held, owner=job.uid if mount.owned else None)
        for path, target in plan.links:
            path.symlink_to(target)
        for path, text in plan.files:
            path.write_text(text)
        if plan.overlay:
            netns.overlay(*plan.overlay)

    def _watch(self, job: Job, launcher: int) -> None:
        job.launcher = launcher
        self._reactor.add(launcher, EPOLLIN, lambda _: self._ended(job))

    def _await_pid(self, job: Job, reply: Answer, deadline: float) -> None:
        folder = self._places.job(job.name)
        pid = _number(folder / "pid")
        if pid is not None:
            self._started(job, pid)
            reply({"pid": pid, "work": str(self._places.output(job.name)), "limits": self._runtime.limits})
        elif job.code is not None:
            log = (folder / "log").read_text(errors="replace") if (folder / "log").exists() else ""
            try:
                self.discard(job)
            finally:  # what could not be removed stays known, for job.remove
                reply(SpecError("start", log[-500:].strip() or "the runtime ended without a reason").fields())
        else:
            if self._reactor.now() > deadline:
                self._force(job)
            self._reactor.call_later(0.001, lambda: self._await_pid(job, reply, deadline))

    def _started(self, job: Job, pid: int) -> None:
        self._unstage(job)
        with contextlib.suppress(OSError):
            job.init = os.pidfd_open(pid)
            # A process id may have a new owner by now; only this job's processes are in its jail.
            if not os.path.samefile(f"/proc/{pid}/ns/net", self._places.netns(job.name)):
                job.init = _closed(job.init)
        if job.killed:
            job.kill()

    def _force(self, job: Job) -> None:
        """SIGKILL to a launcher that has not ended, and the runtime below it."""
        if job.launcher >= 0 and (group := _number(self._places.job(job.name) / "launcher")):
            os.killpg(group, signal.SIGKILL)  # its process id is not free before the pidfd is handled

    def steer(self, job: Job, verb: str) -> None:
        """Do job.kill, job.pause or job.resume. Raises SpecError where there is nothing to stop it by."""
        if verb == "job.kill":
            job.kill()
        if verb != "job.kill" or self._places.frozen(job.name).exists():
            netns.run(done(*self._places.freezing(job.name, verb)))

    def _ended(self, job: Job) -> None:
        self._reactor.remove(job.launcher)
        job.launcher = _closed(job.launcher)
        if job.process:
            job.process.wait()
        self._settle(job)

    def _settle(self, job: Job) -> None:
        end = self._places.job(job.name) / "exit"
        # No code, or a container that is still known: what ran it was killed and cannot tell.
        if _number(end) is None or self._places.container(job.name).exists():
            with contextlib.suppress(SpecError):
                netns.run(done(*self._runtime.delete(job.name), seconds=START_S))
            end.write_text(str(KILLED))
        job.code, job.init = _number(end), _closed(job.init)
        # The cgroup and its counters went with the runtime, so this is an inference.
        killed_by_other = job.code == KILLED and not job.killed
        job.oom = killed_by_other and cgroup.oom_kills(_VMSTAT.read_text()) > job.oom_kills
        self._unstage(job)
        for waiter in job.waiters:
            self._reactor.call_soon(waiter)

    def _unstage(self, job: Job) -> None:
        for path in self._places.staged(job.name, "").parent.glob(f"{job.name}.*"):
            with contextlib.suppress(OSError):  # EINVAL: made, but not yet mounted
                netns.unmount(path)
            path.rmdir() if path.is_dir() else path.unlink()

    def discard(self, job: Job) -> None:
        """Remove all traces of a job that does not run."""
        self._unstage(job)
        netns.run(done(*self._places.removal(job.name), seconds=REMOVE_S))
        self.all.pop(job.name, None)

    def end_all(self, seconds: float) -> None:
        """Kill every job, wait for the ends (after `seconds` by force), remove all traces."""
        deadline = self._reactor.now() + seconds
        for job in self.all.values():
            self._reactor.guarded(lambda job=job: self.steer(job, "job.kill"))
        while running := [job for job in self.all.values() if job.launcher >= 0]:
            for job in running if self._reactor.now() > deadline else ():
                self._force(job)
            self._reactor.turn(0.05)
        self._reactor.turn(0)  # the last waiters
        for job in list(self.all.values()):
            self.discard(job)

    def adopt(self) -> None:
        """Take back what an earlier warden left: watch what runs, settle what does not."""
        for folder in sorted(self._places.job("").iterdir()):
            job = self.all[folder.name] = Job(folder.name, _number(folder / "uid") or 0)
            launcher = -1 if _number(folder / "exit") is not None else _find_launcher(folder)
            if launcher < 0:
                self._settle(job)
            else:
                self._watch(job, launcher)
                self._await_pid(job, lambda _: None, self._reactor.now() + START_S)


def _find_launcher(folder: Path) -> int:
    """A pidfd of the job's launcher, or -1; in that case it can no longer start, either."""
    (folder / "launcher").touch()
    pid = _number(folder / "launcher") or 0
    with contextlib.suppress(OSError):
        fd, proc = os.pidfd_open(pid), Path(f"/proc/{pid}")
        if proc.stat().st_uid == 0 and os.fsencode(folder) in (proc / "cmdline").read_bytes().split(b"\0"):
            return fd
        os.close(fd)
    return -1


def _number(path: Path) -> int | None:
    """The decimal number a file of ours holds; None while there is none."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return int(path.read_text())
    return None


def _closed(fd: int) -> int:
    if fd >= 0:
        os.close(fd)
    return -1
