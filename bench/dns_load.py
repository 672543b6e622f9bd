"""The load of bench.dns: query files, dnsperf, and what a run of it cost the server."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

SERVICES = 1000
POPULAR = 200
ZONE = "bench.net"  # below a suffix that no server knows to be special
LOADS = ("hot", "deny", "mix")
LOAD_CPU, SERVER_CPU = 0, 1
FIFO = 20  # priority, where it is asked for
RATE = 5000  # queries per second at which latency is measured
MOST_QPS = 160_000  # for the length of query files: a name of the mix must not come twice


@dataclass
class Server:
    """A running server, and each round's figure of each load."""

    name: str
    port: int
    pid: int
    rate: int = RATE
    qps: dict[str, list[float]] = field(default_factory=dict)
    cpu: dict[str, list[float]] = field(default_factory=dict)  # microseconds per query
    latency: dict[str, list[list[float]]] = field(default_factory=dict)  # microseconds
    lost: int = 0


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def wait_until(condition: Callable[[], object], what: str, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"bench: {what} does not start; see its log")
        time.sleep(0.02)


@contextmanager
def running(argv: Sequence[str], cpu: int, folder: Path, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program on one CPU; its output goes to FOLDER/NAME.log."""
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            ["taskset", "-c", str(cpu), *argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def answers(port: int) -> bool:
    """Whether the server answers the name that all let through."""
    question = b"\x04pop1\x04svc1\x05bench\x03net\0\0\x01\0\x01"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.3)
        sock.connect(("127.0.0.1", port))
        try:
            sock.send(b"\0\x01\x01\0\0\x01\0\0\0\0\0\0" + question)
            reply = sock.recv(4096)
        except OSError:
            return False
        return reply[3] & 15 == 0 and reply[7] > 0


class Queries:
    """Query files below a folder; the unique names of a mix come in no other file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._source = random.Random(1)
        popular = [f"pop{i}.svc{i}.{ZONE}" for i in range(POPULAR)]
        weights = [1 / (i + 1) for i in range(POPULAR)]
        self._hot = self._source.choices(popular, weights, k=20_000)
        self._denied = [f"no{i}.denied{i % 100}.org" for i in range(2000)]
        self.hot = self._write("hot", self._hot)
        self.deny = self._write("deny", self._source.choices(self._denied, k=20_000))
        self._made = 0

    def mix(self, seconds: float) -> Path:
        """70 % popular, 20 % denied and 10 % names that nobody has asked for."""
        self._made += 1
        source, lines = self._source, []
        for i in range(int(MOST_QPS * seconds)):
            kind = source.random()
            if kind < 0.7:
                lines.append(self._hot[i % len(self._hot)])
            elif kind < 0.9:
                lines.append(source.choice(self._denied))
            else:
                lines.append(f"u{self._made:x}-{i:x}.svc{i % SERVICES}.{ZONE}")
        return self._write("mix", lines)

    def strange(self, count: int) -> Path:
        """Names that policy denies, no two the same."""
        return self._write("strange", [f"s{i:x}.strange{i % 977}.org" for i in range(count)])

    def _write(self, name: str, lines: list[str]) -> Path:
        path = self._folder / name
        path.write_text("".join(f"{line} A\n" for line in lines))
        return path


def cpu_us(pid: int) -> float:
    """Microseconds that all threads of a process have been on a CPU.

    schedstat is exact but forgets threads that have ended; stat remembers them, rounded down to a tick.
    """
    exact = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            exact += int((task / "schedstat").read_text().split()[0])
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    return max(exact / 1000, ticks / os.sysconf("SC_CLK_TCK") * 1e6)


@contextmanager
def first_in_line(pids: Sequence[int]) -> Iterator[None]:
    """These processes have their CPU whenever they want it, until the block ends."""
    for pid in pids:
        subprocess.run(["chrt", "-a", "-f", "-p", str(FIFO), str(pid)], check=True)
    try:
        yield
    finally:
        for pid in pids:
            subprocess.run(["chrt", "-a", "-o", "-p", "0", str(pid)], check=False)


def dnsperf(
    port: int, file: Path, seconds: float, *more: str, prefix: Sequence[str] = ()
) -> subprocess.Popen[str]:
    argv = [
        *prefix, "taskset", "-c", str(LOAD_CPU), "dnsperf", "-s", "127.0.0.1", "-p", str(port),
        "-d", str(file), "-l", str(seconds), "-c", "10", "-q", "100", "-t", "2", *more,
    ]  # fmt: skip
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def output(process: subprocess.Popen[str], seconds: float) -> str:
    """What it printed, once it has ended: it has `seconds` and some more."""
    try:
        out, _ = process.communicate(timeout=seconds + 20)
    except subprocess.TimeoutExpired:
        process.kill()
        raise SystemExit("bench: dnsperf does not end") from None
    if process.returncode:
        raise SystemExit("bench: dnsperf failed")
    return out


def warm(server: Server, file: Path, seconds: float = 1) -> None:
    output(dnsperf(server.port, file, seconds), seconds)


def measure(server: Server, load: str, file: Path, seconds: float, first: Sequence[int]) -> None:
    """One round of as many queries as are answered; adds its figures to the server's.

    `first`: what else is first in line, with the server and the load (none: nothing is).
    """
    prefix = ("chrt", "-f", str(FIFO)) if first else ()
    with first_in_line([server.pid, *first] if first else ()):
        before = cpu_us(server.pid)
        out = output(dnsperf(server.port, file, seconds, prefix=prefix), seconds)
        used = cpu_us(server.pid) - before
    completed = int(re.findall(r"Queries completed:\s+(\d+)", out)[0])
    server.lost += int(re.findall(r"Queries lost:\s+(\d+)", out)[0])
    server.qps.setdefault(load, []).append(float(re.findall(r"Queries per second:\s+([\d.]+)", out)[0]))
    server.cpu.setdefault(load, []).append(used / max(1, completed))


def latencies(server: Server, file: Path, seconds: float, *, fifo: bool) -> list[float]:
    """Microseconds of every query at the server's rate, sorted."""
    prefix = ("chrt", "-f", str(FIFO)) if fifo else ("nice", "-n", "-15")
    with first_in_line([server.pid] if fifo else ()):
        more = ("-Q", str(server.rate), "-v")
        out = output(dnsperf(server.port, file, seconds, *more, prefix=prefix), seconds)
    found = re.findall(r"^> \S+ \S+ \S+ ([\d.]+)$", out, re.MULTILINE)
    return sorted(float(each) * 1e6 for each in found)


def percentile(values: Sequence[float], share: float) -> float:
    return values[min(len(values) - 1, int(len(values) * share))] if values else float("nan")


def path_with_sbin() -> None:
    os.environ["PATH"] = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
