"""Jobs: one crun container each, under a launcher that outlives the warden.

Privileged code. All that must survive the warden lies in RUN/warden/jobs/<job>/: `config.json`
(which holds the uid), `launcher` and `pid` (process ids), `exit` (the code, written last).
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from exeat.ledger.reactor import EPOLLIN, Reactor
from exeat.sandbox import cgroup, netns, oci
from exeat.sandbox.names import JailName, SpecError
from exeat.sandbox.spec import GATEWAY, WORK, JobSpec, Limits

if TYPE_CHECKING:
    from collections.abc import Callable

    Answer = Callable[[dict[str, Any] | SpecError], None]

START_S: Final = 20.0
LOST: Final = 128 + signal.SIGKILL  # the code of a job whose launcher vanished
# $1 is a mount to hide from crun in the launcher's own mount namespace, $2 the job's folder. The
# exclusive creation of `launcher` decides between a late start and a warden that gave the job up.
_HIDE: Final = '[ -z "$1" ] || umount -l "$1"; d=$2; shift 2; '
_LAUNCH: Final = (
    _HIDE + 'set -C; echo $$ >"$d/launcher" || exit; "$@"; echo $? >"$d/exit.new"; mv "$d/exit.new" "$d/exit"'
)
_ENV: Final = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


@dataclass
class Job:
    name: JailName
    folder: Path
    uid: int
    process: subprocess.Popen[bytes] | None = None
    launcher: int = -1  # pidfd
    init: int = -1  # pidfd of the container's first process
    killed: bool = False
    code: int | None = None
    oom: bool = False
    waiters: list[Callable[[], None]] = field(default_factory=list)


class Jobs:
    def __init__(self, run: Path, work: Path, runtime: str, limits: Limits, reactor: Reactor) -> None:
        self.all: dict[str, Job] = {}
        self._run, self._work, self._runtime, self._limits = run, work, runtime, limits
        self._reactor = reactor
        unified = Path("/sys/fs/cgroup/cgroup.controllers")
        controllers = unified.read_text() if unified.exists() else ""
        self._layout = cgroup.layout(Path("/proc/self/mountinfo").read_text(), controllers)
        self._host = oci.Host(
            machine=os.uname().machine,
            links=oci.merged_links(name for name in os.listdir("/") if os.path.islink(f"/{name}")),
            etc=tuple(path for path in oci.HOST_ETC if os.path.exists(path)),
            cgroups=self._layout.limits,
            max_open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        )

    def start(self, spec: JobSpec, uid: int, fds: list[int], answer: Answer) -> None:
        """Start a job in its jail; `answer` gets pid and work folder, or why not."""
        if spec.job in self.all:
            raise SpecError("job.exists", f"job {spec.job} exists")
        job = self.all[spec.job] = Job(spec.job, self._run / "jobs" / spec.job, uid)
        try:
            self._prepare(job, spec)
            self._launch(job, fds)
        except OSError as error:
            self.discard(job)
            raise SpecError("start", str(error)) from error
        self._await_pid(job, answer, self._reactor.now() + START_S)

    def _prepare(self, job: Job, spec: JobSpec) -> None:
        binds = [
            oci.Bind(str(self._run / "jails" / job.name), GATEWAY),
            oci.Bind(str(self._work / job.name), WORK, True),
        ]
        job.folder.mkdir(mode=0o700)
        os.mkdir(binds[1].source, 0o700)
        os.chown(binds[1].source, job.uid, job.uid)
        for number, mount in enumerate(spec.mounts):
            staged = self._run / "mounts" / f"{job.name}.{number}"
            fd = netns.open_beneath(mount.path, uid=job.uid if mount.writable else None)
            try:
                netns.bind(fd, staged)
            finally:
                os.close(fd)
            binds.append(oci.Bind(str(staged), mount.path, mount.writable))
        root, tree = job.folder / "rootfs", oci.skeleton(spec, job.uid, self._host)
        for path in ("", *tree.dirs):
            (root / path).mkdir()
        for path, target in tree.links:
            (root / path).symlink_to(target)
        for path, text in tree.files:
            (root / path).write_text(text)
        config = oci.config(
            spec,
            uid=job.uid,
            host=self._host,
            limits=self._limits,
            binds=binds,
            netns=str(self._run / "netns" / job.name),
            cgroup=f"/exeat-{self._run.stat().st_ino:x}-{job.name}",
        )
        (job.folder / "config.json").write_text(json.dumps(config))

    def _crun(self, text: str, job: Job, *arguments: str) -> list[str]:
        manager = [] if self._layout.limits else ["--cgroup-manager=disabled"]
        crun = [self._runtime, "--root", str(self._run / "crun"), "--log", str(job.folder / "log"), *manager]
        return [
            "unshare",
            "-m",
            "/bin/sh",
            "-c",
            text,
            "exeat-job",
            self._layout.mask,
            str(job.folder),
            *crun,
            *arguments,
        ]

    def _launch(self, job: Job, fds: list[int]) -> None:
        folder = str(job.folder)
        command = self._crun(_LAUNCH, job, "run", "--bundle", folder, "--pid-file", f"{folder}/pid", job.name)
        job.process = subprocess.Popen(
            command, stdin=fds[0], stdout=fds[1], stderr=fds[2], env=_ENV, cwd="/", start_new_session=True
        )
        self._watch(job, os.pidfd_open(job.process.pid))

    def _watch(self, job: Job, launcher: int) -> None:
        job.launcher = launcher
        self._reactor.add(launcher, EPOLLIN, lambda _: self._ended(job))

    def _await_pid(self, job: Job, answer: Answer | None, deadline: float) -> None:
        pid = _number(job.folder / "pid")
        if pid is not None:
            self._started(job, pid)
            if answer:
                answer({"pid": pid, "work": str(self._work / job.name), "limits": self._layout.limits})
        elif job.code is not None:
            if answer:
                log = job.folder / "log"
                answer(
                    SpecError(
                        "start",
                        log.read_text(errors="replace")[-500:].strip() if log.exists() else "no reason",
                    )
                )
                self.discard(job)
        else:
            if self._reactor.now() > deadline:
                signal.pidfd_send_signal(job.launcher, signal.SIGKILL)
            self._reactor.call_later(0.001, lambda: self._await_pid(job, answer, deadline))

    def _started(self, job: Job, pid: int) -> None:
        self._unstage(job)
        with contextlib.suppress(OSError):
            job.init = os.pidfd_open(pid)
            # A process id may have a new owner; only this job's processes are in its jail.
            if os.stat(f"/proc/{pid}/ns/net").st_ino != os.stat(self._run / "netns" / job.name).st_ino:
                job.init = _closed(job.init)
        if job.killed:
            self.kill(job)

    def kill(self, job: Job) -> None:
        """SIGKILL to the container's first process, with which its pid namespace ends."""
        job.killed = True  # one that is still starting is killed as soon as it has a first process
        if job.init >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(job.init, signal.SIGKILL)

    def when_ended(self, job: Job, call: Callable[[], None]) -> None:
        """Call once the job has ended; at once if it has."""
        if job.code is None:
            job.waiters.append(call)
        else:
            call()

    def _ended(self, job: Job) -> None:
        self._reactor.remove(job.launcher)
        job.launcher = _closed(job.launcher)
        if job.process:
            job.process.wait()
        self._settle(job)

    def _settle(self, job: Job) -> None:
        job.code = _number(job.folder / "exit")
        if job.code is None:
            self.kill(job)
            subprocess.run(
                self._crun(_HIDE + '"$@"', job, "delete", "--force", job.name),
                env=_ENV,
                timeout=20,
                check=False,
            )
            (job.folder / "exit").write_text(str(LOST))
            job.code = LOST
        self._unstage(job)
        job.init = _closed(job.init)
        waiters, job.waiters = job.waiters, []
        for waiter in waiters:
            waiter()

    def _unstage(self, job: Job) -> None:
        for path in (self._run / "mounts").glob(f"{job.name}.*"):
            with contextlib.suppress(OSError):  # EINVAL: it was made, but not yet mounted
                netns.unmount(path)
            path.rmdir() if path.is_dir() else path.unlink()

    def discard(self, job: Job) -> None:
        """Remove all traces of a job that does not run."""
        self._unstage(job)
        # rm, not shutil.rmtree: a job may leave folders nested deeper than Python recurses.
        paths = [str(job.folder), str(self._work / job.name)]
        subprocess.run(["rm", "-rf", "--one-file-system", "--", *paths], env=_ENV, check=True)
        del self.all[job.name]

    def end_all(self, seconds: float) -> None:
        """Kill every job, wait for the ends (after `seconds` by force), remove all traces."""
        deadline = self._reactor.now() + seconds
        for job in self.all.values():
            self.kill(job)
        while any(job.launcher >= 0 for job in self.all.values()):
            if self._reactor.now() > deadline:
                for job in self.all.values():
                    if job.launcher >= 0:
                        signal.pidfd_send_signal(job.launcher, signal.SIGKILL)
            self._reactor.turn(0.05)
        for job in list(self.all.values()):
            self.discard(job)

    def adopt(self) -> None:
        """Take back what an earlier warden left: watch what runs, settle what does not."""
        for folder in sorted((self._run / "jobs").iterdir()):
            try:
                uid = int(json.loads((folder / "config.json").read_text())["process"]["user"]["uid"])
            except (OSError, ValueError):
                uid = 0  # not even written: it never started
            job = self.all[folder.name] = Job(JailName(folder.name), folder, uid)
            launcher = -1 if (folder / "exit").exists() else self._find_launcher(folder)
            if launcher < 0:
                self._settle(job)
            else:
                self._watch(job, launcher)
                self._await_pid(job, None, self._reactor.now() + START_S)

    def _find_launcher(self, folder: Path) -> int:
        claim = folder / "launcher"
        with contextlib.suppress(FileExistsError):
            claim.open("x").close()
        pid = _number(claim)
        try:
            fd = os.pidfd_open(pid or 0)
        except OSError:
            return -1
        mine = Path(f"/proc/{pid}").stat().st_uid == 0 and os.fsencode(folder) in _command_line(pid)
        return fd if mine else _closed(fd)


def _command_line(pid: int | None) -> list[bytes]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")


def _number(path: Path) -> int | None:
    """The decimal number a file of ours holds; None while there is none."""
    try:
        text = path.read_text().strip()
    except FileNotFoundError:
        return None
    return int(text) if text.isascii() and text.isdigit() else None


def _closed(fd: int) -> int:
    if fd >= 0:
        os.close(fd)
    return -1
