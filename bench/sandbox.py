"""Jobs: `python -m bench.sandbox [--short]`, as root. Exit 0 when every goal is met, 1 when not.

What a job of `true` costs with policy, jail, container and ledger, alone and 32 at a time; the command
line; the making of a jail; and the kill switch over 32 jobs of 20 processes. In the same run the bare
runtimes beside it (those that are installed: crun, runc, bubblewrap, podman), which have no policy, no
gateway and no ledger. Prints a table and `N of M goals met`.
"""

from __future__ import annotations

import argparse
import os
import select
import statistics
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from bench.sandbox_peers import peers
from tests.support.running import Running, wait_for
from tests.support.warden_rig import WardenRig

from exeat.appliance.client import Client
from exeat.appliance.config import load
from exeat.appliance.errors import RefusedError
from exeat.appliance.lab import plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from exeat.appliance.config import Config

AT_ONCE = 32
PROCESSES = 20  # of each job that the kill switch ends, beside its init and its shell
CROWD = f"for n in $(seq {PROCESSES - 1}); do sleep 600 & done; echo up; sleep 600"


class Goal(NamedTuple):
    """`least`: the figure must be at least the bound, not at most."""

    name: str
    bound: float
    unit: str
    least: bool = False

    def met(self, figure: float) -> bool:
        return figure >= self.bound if self.least else figure <= self.bound


GOALS = (
    Goal("job `true` p50", 30, "ms"),
    Goal("job `true` p99", 100, "ms"),
    Goal("jobs/s, 32 at a time", 60, "/s", least=True),
    Goal("failed jobs, 32 at a time", 0, ""),
    Goal("`exeat run -- true` p50", 150, "ms"),
    Goal("`exeat --help` p50", 60, "ms"),
    Goal("jail made and doors open, p99", 3, "ms"),
    Goal("kill switch: 32 jobs of 20 processes gone", 150, "ms"),
)


def milliseconds(work: Callable[[], object], times: int) -> list[float]:
    """How long each of `times` runs took, after one that is not counted."""
    work()
    found = []
    for _ in range(times):
        begin = time.perf_counter()
        work()
        found.append((time.perf_counter() - begin) * 1000)
    return found


def p99(values: Sequence[float]) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * 99 // 100)]


class Submitter:
    """Jobs straight on control's socket, as the command line does it."""

    def __init__(self, config: Config) -> None:
        self._client = Client(config)
        self._null = os.open(os.devnull, os.O_RDWR)

    def start(self, *argv: str, out: int = -1) -> str:
        fds = (self._null, self._null if out < 0 else out, self._null)
        return str(self._client.call("run", fds, argv=list(argv), project=plan.PROJECT)["job"])

    def run(self, *argv: str) -> int:
        return int(self._client.call("job.wait", job=self.start(*argv))["code"])

    def close(self) -> None:
        self._client.close()
        os.close(self._null)


def one_after_the_other(config: Config, times: int) -> Iterator[tuple[str, float]]:
    submitter = Submitter(config)
    found = milliseconds(lambda: submitter.run("true"), times)
    submitter.close()
    yield "job `true` p50", statistics.median(found)
    yield "job `true` p99", p99(found)


def all_at_once(config: Config, each: int) -> Iterator[tuple[str, float]]:
    failed: list[str] = []

    def work() -> None:
        submitter = Submitter(config)
        for _ in range(each):
            try:
                if code := submitter.run("true"):
                    failed.append(f"code {code}")
            except RefusedError as error:
                failed.append(str(error))
        submitter.close()

    threads = [threading.Thread(target=work) for _ in range(AT_ONCE)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    yield "jobs/s, 32 at a time", AT_ONCE * each / (time.perf_counter() - begin)
    yield "failed jobs, 32 at a time", len(failed)
    for why in sorted(set(failed)):
        print(f"failed: {why}", file=sys.stderr)


def command_line(running: Running, times: int) -> Iterator[tuple[str, float]]:
    def run() -> None:
        words = ("run", "--project", plan.PROJECT, "--quiet", "--", "true")
        subprocess.run(running.command(*words), stdin=subprocess.DEVNULL, check=True)

    def ask() -> None:
        subprocess.run(running.command("--help"), stdout=subprocess.DEVNULL, check=True)

    yield "`exeat run -- true` p50", statistics.median(milliseconds(run, times))
    yield "`exeat --help` p50", statistics.median(milliseconds(ask, times))


def jails(times: int) -> Iterator[tuple[str, float]]:
    found = []
    with WardenRig() as rig:
        for _ in range(times):
            begin = time.perf_counter()
            made = rig.call("jail.create", jail="bench")
            found.append((time.perf_counter() - begin) * 1000)
            made.close()
            rig.call("jail.destroy", jail="bench")
    yield "jail made and doors open, p99", p99(found)


def kill_switch(running: Running, config: Config) -> Iterator[tuple[str, float]]:
    submitter = Submitter(config)
    names = []
    for _ in range(AT_ONCE):
        read, write = os.pipe()
        names.append(submitter.start("sh", "-c", CROWD, out=write))
        os.close(write)
        assert os.read(read, 8) == b"up\n"
        os.close(read)
    folder = config.run_dir / "warden" / "jobs"
    inits = [os.pidfd_open(int((folder / name / "pid").read_text())) for name in names]
    client = Client(config)
    begin = time.perf_counter()
    client.call("kill.on", all=True, reason="bench")
    for init in inits:  # readable when its whole process namespace has been reaped
        assert select.select([init], [], [], 30)[0], "a job lives on"
    yield "kill switch: 32 jobs of 20 processes gone", (time.perf_counter() - begin) * 1000
    for init in inits:
        os.close(init)
    client.call("kill.off", all=True)
    client.close()
    submitter.close()
    wait_for(lambda: running.json("status")["jobs"] == 0, 60)


def ours(*, short: bool) -> dict[str, float]:
    figures: dict[str, float] = {}
    running = Running("bench")
    try:
        config = load(running.lab.config, state_dir=None, run_dir=None)
        figures.update(one_after_the_other(config, 30 if short else 100))
        figures.update(all_at_once(config, 2 if short else 8))
        figures.update(command_line(running, 5 if short else 20))
        figures.update(kill_switch(running, config))
    finally:
        running.close()
    figures.update(jails(50 if short else 200))
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--short", action="store_true", help="fewer runs: for a look, not for a figure")
    short = parser.parse_args().short
    figures = ours(short=short)
    met = 0
    for goal in GOALS:
        figure = figures[goal.name]
        met += goal.met(figure)
        word = "at least" if goal.least else "at most"
        said = "met" if goal.met(figure) else "MISSED"
        print(f"{goal.name:44} {figure:8.1f} {goal.unit:3} {word} {goal.bound:g}: {said}")
    print()
    for name, run in peers():
        found = milliseconds(run, 10 if short else 40)
        print(f"{name:44} {statistics.median(found):8.1f} ms  p99 {p99(found):.1f}")
    print(f"{met} of {len(GOALS)} goals met")
    return 0 if met == len(GOALS) else 1


if __name__ == "__main__":
    sys.exit(main())
