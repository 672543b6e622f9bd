"""A whole appliance of the doctor's own, for as long as it takes: what it runs and what it sees.

It lives in a network namespace of its own, so that a running appliance is not touched, with one way
out that leads nowhere: whatever leaves is seen there. The policy lets nothing out.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from exeat.ledger.reader import read_records

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence

    from exeat.appliance.config import Config
    from exeat.appliance.jail.probes import Probe
    from exeat.ledger.records import Record

STARTING_S, JOB_S, STOPPING_S = 30, 60, 15
_PROJECT: Final = "doctor"
UPSTREAM: Final = "198.18.0.53"
# RFC 2544: nobody's addresses. No question may ever be asked there.
_OUTSIDE: Final = """
ip link set lo up
ip link add outside type veth peer name nowhere
ip link set outside up
ip link set nowhere up
ip address add 198.18.0.1/24 dev outside
ip route add default dev outside
ip -6 route add default dev outside
exec "$@"
"""
_POLICY: Final = f"egress: v1\nproject: {_PROJECT}\nposture: allowlist\nallow: []\n"


class RigError(Exception):
    """The appliance or its jail could not be made; the text is one line."""


def configuration(config: Config, folder: Path) -> str:
    """TOML for an appliance in `folder` with the users and the runtime of the real one."""

    def text(value: object) -> str:
        return json.dumps(str(value))

    users, sandbox = config.users, config.sandbox
    return (
        f'[node]\nname = "doctor"\n'
        f"[paths]\nrun_dir = {text(folder / 'run')}\nstate_dir = {text(folder / 'state')}\n"
        f"[users]\ngateway = {text(users.gateway)}\nledger = {text(users.ledger)}\n"
        f"control = {text(users.control)}\n"
        f'[console]\nlisten = ""\n'
        f"[policy]\ndir = {text(folder / 'policies')}\n"
        f'[dns]\nupstream = ["{UPSTREAM}:53"]\n'
        f"[sandbox]\nuid_base = {sandbox.uid_base}\nuid_count = {sandbox.uid_count}\n"
        f"runtime = {text(sandbox.runtime)}\n"
    )


class _Process:
    """Something started. `patient`: it ends by itself when its input does."""

    def __init__(self, popen: subprocess.Popen[bytes], log: Path, patient: bool) -> None:
        self.popen = popen
        self._log = log
        self._patient = patient

    def lines(self, said: bytes, seconds: float) -> Generator[bytes]:
        """Say something and read lines. A process that keeps us waiting is killed, and its output ends."""
        stdin, stdout = self.popen.stdin, self.popen.stdout
        if stdin is None or stdout is None:
            raise ValueError("it was started without pipes")
        stdin.write(said)
        stdin.flush()
        timer = threading.Timer(seconds, self.popen.kill)
        timer.start()
        try:
            for line in stdout:  # noqa: UP028 - `yield from` would close the pipe with us
                yield line
        finally:
            timer.cancel()

    def wait_for(self, wanted: bytes, seconds: float) -> None:
        with contextlib.closing(self.lines(b"", seconds)) as lines:
            if any(wanted in line for line in lines):
                return
        raise RigError(f"the {self._log.stem} did not get ready: {self.last_words()}")

    def last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def end(self) -> None:
        """By the end of its input or SIGTERM; in the end by SIGKILL. May be called again."""
        for stream in (self.popen.stdin, self.popen.stdout):
            if stream is not None:
                stream.close()
        if not self._patient:
            self.popen.terminate()
        try:
            self.popen.wait(STOPPING_S)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait(STOPPING_S)


class Rig:
    """A running appliance with one job that waits for a word. Use as a context manager; RigError."""

    def __init__(self, config: Config, argv: Callable[[Rig], Sequence[str]]) -> None:
        self._config = config
        self._argv = argv
        self._closing = contextlib.ExitStack()
        self.folder = Path()

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._closing.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    @property
    def jail(self) -> Path:
        """The network namespace of the one job."""
        found = list((self.run_dir / "warden" / "netns").iterdir())
        if len(found) != 1:
            raise RigError(f"{len(found)} jails where one was started")
        return found[0]

    @property
    def outside(self) -> Path:
        """The network namespace that the appliance runs in."""
        return Path(f"/proc/{self._appliance.popen.pid}/ns/net")

    def _start(self) -> None:
        # Not in /tmp: a job may not have folders there, and the service users must get in.
        self.folder = Path(tempfile.mkdtemp(prefix="exeat-doctor-", dir="/run"))
        self._closing.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self.folder.chmod(0o755)
        (self.folder / "policies").mkdir()
        (self.folder / "policies" / "doctor.yaml").write_text(_POLICY)
        (self.folder / "exeat.toml").write_text(configuration(self._config, self.folder))
        up = ["unshare", "--net", "--", "sh", "-ec", _OUTSIDE, "sh", *self._exeat("up")]
        self._appliance = self._spawn("appliance", up, patient=False)
        self._appliance.wait_for(b"exeat: up", STARTING_S)
        run = self._exeat("run", "--project", _PROJECT, "--quiet", "--", *self._argv(self))
        self._job = self._spawn("job", run, patient=True)
        self._job.wait_for(b"waiting", JOB_S)

    def _exeat(self, *words: str) -> list[str]:
        return [sys.executable, "-I", "-m", "exeat", "--config", str(self.folder / "exeat.toml"), *words]

    def _spawn(self, name: str, words: list[str], *, patient: bool) -> _Process:
        log = self.folder / f"{name}.log"
        with log.open("wb") as errors:
            popen = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, cwd="/"
            )
        process = _Process(popen, log, patient)
        self._closing.callback(process.end)
        return process

    def try_as_job(self) -> list[dict[str, Any]]:
        """Say the word, and read what the job found."""
        found: list[dict[str, Any]] = []
        for line in self._job.lines(b"go\n", JOB_S):
            if line == b"end\n":
                return found
            found.append(json.loads(line))
        raise RigError(f"the job ended after {len(found)} probes: {self._job.last_words()}")

    def try_as_root(self, probes: Iterable[Probe]) -> list[dict[str, Any]]:
        """`raw.py` inside the jail's namespace."""
        wanted = json.dumps([probe.message() for probe in probes])
        words = [sys.executable, "-I", "-m", "exeat.appliance.jail.raw", wanted]
        done = subprocess.run(
            ["nsenter", f"--net={self.jail}", "--", *words],
            env={"PATH": os.environ.get("PATH", ""), "HOME": str(self.folder)},  # scapy keeps things there
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=JOB_S,
            check=False,
        )
        if done.returncode:
            raise RigError(f"the raw probes ended: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
        return [json.loads(line) for line in done.stdout.splitlines()]

    def records(self) -> list[Record]:
        """End job and appliance in order, and read their ledger."""
        self._job.end()
        self._appliance.end()
        return [record for _, record in read_records(self.folder / "state" / "ledger")]
