"""A real warden in a process of its own, on folders of its own, and what a test needs to see around it."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exeat.ledger.ipc import Channel
from exeat.sandbox.env import job_environment
from exeat.sandbox.rules import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

UID_BASE, UID_COUNT, CONTROL_UID, OWNER_UID = 300_000, 50, 64_000, 4_321

_SERVE = """
import os, sys
from pathlib import Path
from exeat.sandbox import jobs
from exeat.sandbox.limits import Limits
from exeat.policy.addresses import Cidr
from exeat.policy.model import Address
from exeat.sandbox.rules import Cgroup, Host, Table, Target, Veth
from exeat.sandbox.spec import WardenSettings
from exeat.sandbox.warden import serve
base, control, first, count, memory, pids = Path(sys.argv[1]), *map(int, sys.argv[2:7])
settings = WardenSettings(
    run_dir=base / "run", state_dir=base / "state", control_uid=control, uid_base=first, uid_count=count,
    roots=(base / "share",), limits=Limits(memory=memory, pids=pids), runtime=sys.argv[7],
    table=eval(sys.argv[9]), hook=sys.argv[10],
)
jobs.START_S = float(sys.argv[8])
sys.exit(serve(settings, lambda: os.write(1, b"ready")))
"""


@dataclass
class Reply:
    message: dict[str, Any]
    fds: list[int]

    def __getitem__(self, key: str) -> Any:
        return self.message[key]

    @property
    def error(self) -> str:
        return str(self.message.get("error", ""))

    def close(self) -> None:
        while self.fds:
            os.close(self.fds.pop())


@dataclass
class WardenRig:
    """Start with `with WardenRig() as rig`. Folders are short: a Unix socket's path has 107 bytes."""

    memory: int = 512 * 1024**2
    pids: int = 128
    runtime: str = "crun"
    start_s: float = 20.0
    hook: str = ""
    table: Table = field(default_factory=Table)
    base: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="exw-", dir="/tmp")))
    process: subprocess.Popen[bytes] | None = None
    channel: Channel | None = None
    number: int = 0

    def __enter__(self) -> WardenRig:
        self.base.chmod(0o755)
        (self.base / "share").mkdir()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.base)

    @property
    def run(self) -> Path:
        return self.base / "run" / "warden"

    @property
    def work(self) -> Path:
        return self.base / "state" / "work"

    def start(self) -> None:
        numbers = (CONTROL_UID, UID_BASE, UID_COUNT, self.memory, self.pids)
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                _SERVE,
                str(self.base),
                *map(str, numbers),
                self.runtime,
                str(self.start_s),
                repr(self.table),
                self.hook,
            ],
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout
        assert select.select([self.process.stdout], [], [], 30)[0], "the warden did not become ready"
        assert os.read(self.process.stdout.fileno(), 5) == b"ready"
        self.channel = self.connect()

    def connect(self) -> Channel:
        return Channel.connect(self.run / "warden.sock", timeout=30)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal the warden and wait for its end; 0 when it was not running."""
        if self.channel:
            self.channel.close()
            self.channel = None
        if self.process is None:
            return 0
        process, self.process = self.process, None
        process.send_signal(number)
        code = process.wait(30)
        assert process.stdout
        process.stdout.close()
        return code

    def call(self, verb: str, fds: Sequence[int] = (), **arguments: Any) -> Reply:
        assert self.channel
        self.number += 1
        message, got = self.channel.call({"id": self.number, "verb": verb, **arguments}, list(fds))
        assert message["id"] == self.number
        return Reply(message, got)

    def start_job(self, name: str, argv: Sequence[str], fds: Sequence[int], **changes: Any) -> Reply:
        return self.call("job.start", fds, **self.job(name, argv, **changes))

    @staticmethod
    def job(name: str, argv: Sequence[str], **changes: Any) -> dict[str, Any]:
        """The arguments of job.start."""
        return {
            "job": name,
            "argv": list(argv),
            "env": job_environment(job=name),
            "mounts": [],
            "cwd": "/work",
            "profile": "standard-net",
            "user": "fresh",
            **changes,
        }

    def run_job(self, name: str, argv: Sequence[str], *, stdin: bytes = b"", **changes: Any) -> Ended:
        """A jail, a job in it from start to end, both removed. Small output only: it must fit a pipe."""
        self.call("jail.create", jail=name).close()
        pipes = [os.pipe() for _ in range(3)]
        os.write(pipes[0][1], stdin)
        os.close(pipes[0][1])
        started = self.start_job(name, argv, (pipes[0][0], pipes[1][1], pipes[2][1]), **changes)
        for fd in (pipes[0][0], pipes[1][1], pipes[2][1]):
            os.close(fd)
        try:
            assert started["ok"], started.message
            ended = self.call("job.wait", job=name)
            assert ended["ok"], ended.message
            out, err = (read_all(pipe[0]) for pipe in pipes[1:])
            assert self.call("job.remove", job=name)["ok"]
            return Ended(int(ended["code"]), bool(ended["oom"]), out, err)
        finally:
            for pipe in pipes[1:]:
                os.close(pipe[0])
            self.call("jail.destroy", jail=name)


@dataclass(frozen=True)
class Ended:
    code: int
    oom: bool
    out: str
    err: str


def read_all(fd: int) -> str:
    chunks = []
    while chunk := os.read(fd, 65536):
        chunks.append(chunk)
    return b"".join(chunks).decode()


def children_of(base: Path) -> list[str]:
    """Command lines of all processes that name `base` in theirs."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                line = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(base) in line:
                found.append(line.replace(b"\0", b" ").decode(errors="replace"))
    return found


def mounts_below(base: Path) -> list[str]:
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(base) in line]
