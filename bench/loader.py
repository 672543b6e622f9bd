"""Compiles and runs bench/load.c and origin.c: the origin and the clients of bench.proxy and bench.soak."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SOURCES = tuple(Path(__file__).with_name(name) for name in ("load.c", "origin.c"))
FLAGS = ("-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror")
ECHO, POUR, SINK = 0, 1, 2  # what the origin does on its ports, from the first on
ENDING_S = 90
DESCRIPTORS = 65_536
SYSCTLS = (
    "net.ipv4.ip_local_port_range=10000 65000",
    "net.core.somaxconn=16384",
    "net.ipv4.tcp_max_syn_backlog=16384",
    # Else one line has no ports left for the next, and connect(2) searches for long.
    "net.ipv4.tcp_tw_reuse=1",
)


class LoadError(Exception):
    """The load generator could not be made, or could not do what it was asked; the text says why."""


class Tunnels(NamedTuple):
    """How the load reaches its origin. `protocol` is connect, socks5 or direct; the others HOST:PORT."""

    protocol: str
    proxy: str
    target: str


def prepare() -> None:
    """Ports, queues and descriptors for this network namespace and the processes started from here."""
    for setting in SYSCTLS:
        subprocess.run(["sysctl", "-qw", setting], check=True)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(ValueError):  # raising it takes CAP_SYS_RESOURCE, which some roots lack
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(DESCRIPTORS, hard),) * 2)
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def room_for_tunnels() -> int:
    """How many tunnels one proxy process can hold here: two sockets each, and some for itself."""
    return (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 500) // 2


@contextlib.contextmanager
def compiled() -> Iterator[Loader]:
    """The load generator, compiled for this run and gone after it."""
    if shutil.which("gcc") is None:
        raise LoadError("gcc is not installed and the load generator is C: apt-get install gcc libc6-dev")
    with tempfile.TemporaryDirectory(prefix="exeat-load-") as folder:
        program = Path(folder) / "load"
        done = subprocess.run(
            ["gcc", *FLAGS, "-o", program, *SOURCES], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise LoadError(f"gcc does not compile bench/load.c:\n{done.stderr}")
        yield Loader(program)


class Loader:
    """Runs the compiled program on one core."""

    def __init__(self, program: Path, core: int = 0) -> None:
        self._words = ["taskset", "-c", str(core), str(program)]

    @contextlib.contextmanager
    def origin(self, host: str, port: int) -> Iterator[None]:
        """Echo on `port`, a source on the next and a sink on the one after."""
        with self._started([*self._words, "origin", host, str(port)]) as running:
            running.wait_begin()
            yield

    @contextlib.contextmanager
    def running(
        self, mode: str, tunnels: Tunnels, count: int, seconds: float, *, warm: float = 0.5, size: int = 64
    ) -> Iterator[Running]:
        """A load under way; what it does is in load.c."""
        numbers = (str(count), str(seconds), str(warm), str(size))
        with self._started([*self._words, mode, *tunnels, *numbers]) as running:
            yield running

    @contextlib.contextmanager
    def _started(self, words: Sequence[str]) -> Iterator[Running]:
        pipe = subprocess.PIPE
        # Unbuffered: a line is read byte by byte, so that what follows it is left for communicate().
        process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0)
        try:
            yield Running(process)
        finally:
            process.kill()
            process.communicate()


class Running:
    """One load. `wait_begin`, then `result`."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def wait_begin(self) -> None:
        """Return when the warm-up is over (idle: when all tunnels are up)."""
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"begin\n":
            self._fail()

    def result(self, seconds: float = 0) -> dict[str, Any]:
        """Wait for its end: for idle that of its input, for others up to `seconds` and some more."""
        try:
            out, err = self._process.communicate(timeout=seconds + ENDING_S)
        except subprocess.TimeoutExpired:
            raise LoadError(f"the load did not end in {seconds + ENDING_S:g} s") from None
        if self._process.returncode:
            raise LoadError(err.decode().strip() or f"the load ended with {self._process.returncode}")
        found: dict[str, Any] = json.loads(out)
        return found

    def _fail(self) -> None:
        _, err = self._process.communicate(timeout=ENDING_S)
        raise LoadError(err.decode().strip() or f"the load ended with {self._process.returncode}")


def tree(pid: int) -> list[int]:
    """`pid` and all its descendants that live."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                children.setdefault(_stat(int(entry))[1], []).append(int(entry))
    found, waiting = [], [pid]
    while waiting:
        each = waiting.pop()
        found.append(each)
        waiting += children.get(each, [])
    return found


def cpu_s(pids: Sequence[int]) -> float:
    """User and system seconds of these processes so far, and of their children that have ended."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            total += sum(_stat(pid)[11:15])
    return total / os.sysconf("SC_CLK_TCK")


def pss_kib(pids: Sequence[int]) -> int:
    """What these processes have in memory, shared pages divided by their users."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += int(text.split("Pss:")[1].split()[0])
    return total


def _stat(pid: int) -> list[int]:
    """proc(5): the fields of /proc/PID/stat from the third on; the third, a letter, as 0."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return [0, *(int(word) for word in words[1:])]
