"""Recovery: `python -m bench.chaos [--minutes N] [--seed S] [--kill WHAT]...`, as root. 0: nothing left.

Jobs run through `exeat run` and the queue while processes are killed (SIGKILL) at random: the appliance's
own, launchers, container runtimes, the first processes of containers. Then the load ends, the appliance is
given time to heal, and all that a job is made of is counted: nothing may be left. Each job that is
recorded as started must be recorded as ended, in one way, and each task must be over.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.support.running import Running, wait_for
from tests.support.trees import small_tree

from exeat.appliance import config as configuration
from exeat.appliance.client import Client
from exeat.appliance.control.queue import OVER
from exeat.appliance.errors import NotReachableError, RefusedError
from exeat.appliance.lab import plan
from exeat.ledger.reader import read_records
from exeat.ledger.records import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

PROCESSES: Final = ("warden", "control", "proxy", "guard", "ledger")
UIDS: Final = range(1_900_000, 1_900_200)  # of these jobs, so that no other appliance's are counted
OF_A_JOB: Final = {"launcher": b"exeat-job", "runtime": b"--pid-file", "first process": b"exeat-init"}
VICTIMS: Final = (*PROCESSES, *OF_A_JOB)
HEALING_S: Final = 150.0  # a supervisor waits up to 5 s before it starts again what dies again and again
RUNNERS: Final = 2
SLACK: Final = 3  # sockets between our own processes; a jail that is kept has more in each of the two
FOLDERS: Final = ("netns", "jails", "jobs", "mounts", "containers")
# What jobs do: end at once, fork away, use the network, be deaf to signals, stay.
SCRIPTS: Final = (
    "exit 3",
    "setsid sleep 50 & (sleep 50 &) & sleep 0.2",
    "curl -s -o /dev/null --max-time 2 https://api.example.org/bytes/1000; true",
    "trap '' TERM INT HUP; sleep 2",
    "sleep 0.5",
)

IN_TREE: Final = "read x </etc/mine; (while :; do :; done) & head -c 30000000 /dev/zero >/work/x"


class Chaos:
    """One appliance, its load, and who kills."""

    def __init__(self, running: Running, chance: random.Random, victims: Sequence[str]) -> None:
        self._running, self._chance, self._victims = running, chance, victims
        self._config = configuration.load(running.lab.config)
        self._run = running.lab.appliance_run / "warden"
        self._tree = small_tree(running.lab.job / "tree")
        self._stop = threading.Event()
        self.killed: Counter[str] = Counter()
        self.exits: Counter[int] = Counter()
        self.tasks: list[str] = []

    def cause(self, seconds: float) -> None:
        """Load and kills for so long, then wait until all who wait for a job have heard of its end."""
        load = [threading.Thread(target=self._run_jobs, daemon=True) for _ in range(RUNNERS)]
        load.append(threading.Thread(target=self._submit, daemon=True))
        for thread in load:
            thread.start()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(self._chance.uniform(0.1, 0.8))
            self._kill_one()
        self._stop.set()
        for thread in load:
            thread.join(HEALING_S)
        if any(thread.is_alive() for thread in load):
            raise AssertionError("somebody still waits for a job to end")

    def _run_jobs(self) -> None:
        while not self._stop.is_set():
            script = self._chance.choice((*SCRIPTS, IN_TREE))
            tree = ("--root", str(self._tree)) if script == IN_TREE else ()
            words = ("run", "--quiet", "--project", plan.PROJECT, *tree, "--", "sh", "-c", script)
            done = subprocess.run(
                self._running.command(*words), stdin=subprocess.DEVNULL, capture_output=True, check=False
            )
            self.exits[done.returncode] += 1

    def _submit(self) -> None:
        while not self._stop.wait(0.4):
            argv = ["sh", "-c", self._chance.choice(SCRIPTS)]
            with contextlib.suppress(NotReachableError, RefusedError):
                reply = self._call("task.submit", project=plan.PROJECT, argv=argv, retries=2)
                self.tasks.append(str(reply["task"]["id"]))

    def _call(self, verb: str, **arguments: Any) -> dict[str, Any]:
        with contextlib.closing(Client(self._config)) as client:
            return client.call(verb, **arguments)

    def _kill_one(self) -> None:
        what = self._chance.choice(self._victims)
        if what in PROCESSES:
            found = [self._running.pid(what)]
        else:
            found = [pid for pid, words in self._processes() if OF_A_JOB[what] in words and _is(what, words)]
        if pid := self._chance.choice(found or [0]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self.killed[what] += 1

    def _processes(self) -> Iterator[tuple[int, list[bytes]]]:
        """Launchers, runtimes and the processes of jobs, with their arguments."""
        ours = os.fsencode(self._run)
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                    if entry.stat().st_uid in UIDS or any(word.startswith(ours) for word in words):
                        yield int(entry.name), words

    def over(self) -> bool:
        """Is everything up again, no job running, and no task waiting?"""
        with contextlib.suppress(NotReachableError, RefusedError):
            status = self._call("status")
            if status["down"] or len(status["gateway"]) < 2 or status["jobs"]:
                return False
            states = {row["id"]: row["state"] for row in self._call("task.ls", all=True)["tasks"]}
            return all(states[task] in OVER for task in self.tasks)
        return False

    def sockets(self, process: str) -> int:
        """How many this process of the gateway holds."""
        folder = Path(f"/proc/{self._running.pid(process)}/fd")
        with contextlib.suppress(OSError):
            return sum(1 for each in folder.iterdir() if os.readlink(each).startswith("socket:"))
        return 0

    def leftovers(self) -> dict[str, list[str]]:
        """What is there of jobs, by kind."""
        tag = hashlib.sha256(os.fsencode(self._run)).hexdigest()[:8]
        groups = [
            *Path("/sys/fs/cgroup").glob(f"exeat-{tag}-*"),
            *Path("/sys/fs/cgroup").glob(f"*/exeat-{tag}-*"),
        ]
        mounts = Path(f"/proc/{self._running.pid('warden')}/mountinfo").read_text().splitlines()
        gateway = self._running.lab.namespace("gw")
        rules = subprocess.run(
            ["ip", "netns", "exec", gateway, "nft", "list", "tables"],
            capture_output=True,
            text=True,
            check=True,
        )
        return {
            "processes": [b" ".join(words).decode(errors="replace") for _, words in self._processes()],
            "mounts": [line for line in mounts if f" {self._run}" in line],
            "cgroups": list(map(str, groups)),
            "folders": [str(each) for name in FOLDERS for each in (self._run / name).iterdir()],
            "work": list(map(str, (self._running.lab.state_dir / "work").iterdir())),
            "rules": rules.stdout.splitlines(),
        }


def _is(what: str, words: list[bytes]) -> bool:
    """Told apart by the program: a launcher's arguments contain the runtime's."""
    return (what == "runtime") == (words[0].rpartition(b"/")[2] in (b"crun", b"runc"))


def unsettled(ends: Iterable[tuple[str, str, str, int]]) -> list[str]:
    """Jobs of (job, start or exit, reason, code) that were started and never ended, or in two ways."""
    seen: defaultdict[str, set[tuple[str, int]]] = defaultdict(set)
    started = set()
    for job, what, reason, code in ends:
        if what == "start":
            started.add(job)
        else:
            seen[job].add((reason, code))
    return [f"{job}: {sorted(seen[job])}" for job in sorted(started | seen.keys()) if len(seen[job]) != 1]


def run(seconds: float, seed: int, victims: Sequence[str]) -> int:
    print(f"chaos: {seconds:g} s, --seed {seed}", flush=True)
    running = Running("chaos")
    try:
        more = running.lab.run_dir / "conf.d" / "chaos.toml"
        more.parent.mkdir()
        more.write_text(f"[sandbox]\nuid_base = {UIDS.start}\nuid_count = {len(UIDS)}\n")
        for name in ("warden", "control"):
            running.kill(name)
        wait_for(running.healed, HEALING_S)
        return _judge(running, Chaos(running, random.Random(seed), victims), seconds)
    finally:
        print((running.lab.log("appliance").read_text())[-8000:], file=sys.stderr)
        running.close()


def _judge(running: Running, chaos: Chaos, seconds: float) -> int:
    earlier = chaos.leftovers()  # cgroups outlive a lab that was broken off
    before = {name: chaos.sockets(name) for name in ("proxy", "guard")}
    chaos.cause(seconds)
    wait_for(chaos.over, HEALING_S)
    # A jail is taken down beside the answer to who waited.
    with contextlib.suppress(AssertionError):
        wait_for(lambda: chaos.leftovers() == earlier, 20)
    left = {
        what: [each for each in found if each not in earlier[what]]
        for what, found in chaos.leftovers().items()
    }
    for name, held in before.items():
        now = chaos.sockets(name)
        left[f"sockets of the {name}"] = [f"{now}, {held} before"] if now > held + SLACK else []
    jobs = [
        (record.job, record.decision, record.reason_code, record.count)
        for _, record in read_records(running.lab.state_dir / "ledger")
        if record.kind is Kind.JOB
    ]
    left["ends of jobs"] = unsettled(jobs)
    verified = running.exeat("ledger", "verify", "--state-dir", str(running.lab.state_dir), check=False)
    left["ledger verify"] = verified.stdout.splitlines() if verified.returncode else []
    print("killed:", ", ".join(f"{count} {what}" for what, count in sorted(chaos.killed.items())))
    print("`exeat run` exited with:", ", ".join(f"{code} ({n})" for code, n in sorted(chaos.exits.items())))
    print(f"tasks: {len(chaos.tasks)}; jobs recorded: {len({job for job, *_ in jobs})}")
    for what, found in left.items():
        print(f"{'LEFT' if found else 'none'}  {what}: {len(found)}", *found[:10], sep="\n      ")
    return 1 if any(left.values()) else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 100_000)
    parser.add_argument("--kill", action="append", choices=VICTIMS, help="only this (may be given again)")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the lab ends with us
    return run(60 * args.minutes, args.seed, args.kill or VICTIMS)


if __name__ == "__main__":
    sys.exit(main())
