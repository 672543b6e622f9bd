"""exeat in the arena: started, restarted, and scored from inside a jail or from outside one."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.redteam.arena import ARENA, HERE, Arena, ArenaError
from tests.redteam.score import Endpoints, Score, score

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.redteam.cases import Case

_UP = b"exeat: up"
_START_S = 30.0
_ALONE = ("127.0.0.1:3128", "127.0.0.1:1080", "127.0.0.1:53")
CONFIG = """\
[node]
name = "redteam"

[paths]
run_dir = "{run}"
state_dir = "{state}"

[console]
listen = ""

[dns]
upstream = ["{resolver}:53"]
{dns}
[policy]
dir = "{policies}"

[sandbox]
roots = ["{job}"]
{alone}"""
ALONE = """
[proxy]
listen = ["127.0.0.1:3128"]
listen_socks = ["127.0.0.1:1080"]

[[identity]]
source = "127.0.0.1"
project = "redteam"
"""


class Exeat:
    """Use as a context manager inside an arena. `alone`: with doors for clients outside jails."""

    def __init__(self, arena: Arena, *, alone: bool = True) -> None:
        self._arena = arena
        self._alone = alone
        self._state = Path(f"/var/lib/exeat-redteam-{arena.name}")
        self._job = arena.folder / "job"
        self._config = arena.folder / "exeat.toml"
        self._log = arena.folder / "exeat.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Exeat:
        shutil.rmtree(self._state, ignore_errors=True)
        policies = self._arena.folder / "policies"
        policies.mkdir()
        shutil.copy(HERE / "policy.yaml", policies)
        self._job.mkdir()
        shutil.copy(HERE / "client.py", self._job)
        text = CONFIG.format(
            run=self._arena.folder / "exeat",
            state=self._state,
            resolver=ARENA["resolver"],
            policies=policies,
            job=self._job,
            dns='listen = ["127.0.0.1:53"]\n' if self._alone else "",
            alone=ALONE if self._alone else "",
        )
        self._config.write_text(text)
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._state, ignore_errors=True)

    def _command(self, *words: str) -> list[str]:
        return [sys.executable, "-I", "-m", "exeat", "--config", str(self._config), *words]

    def start(self) -> None:
        """`exeat up`, and wait until it says so. Raises ArenaError."""
        said = self._log.stat().st_size if self._log.exists() else 0
        # Not by `ip netns exec`: that hides the control groups, which exeat needs for its jobs.
        enter = ["nsenter", f"--net=/run/netns/{self._arena.gateway}"]
        self._process = self._arena.start(self._command("up"), self._log, enter)
        deadline = time.monotonic() + _START_S
        while _UP not in self._log.read_bytes()[said:]:
            if self._process.poll() is not None or time.monotonic() > deadline:
                lines = self._log.read_text(errors="replace").strip().splitlines()
                raise ArenaError(f"exeat did not start: {lines[-1] if lines else 'it said nothing'}")
            time.sleep(0.02)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def score(self, form: str, corpus: Sequence[Case]) -> Score:
        """`jail`: the client is a job of exeat's own. `alone`: it is a process of the namespace."""
        proxy, socks, dns = _ALONE
        doors = Endpoints.of(proxy=proxy, socks=socks, udp=socks, dns=dns)
        if form == "jail":  # where whatever is connected to is redirected
            doors = Endpoints({**doors.doors, "direct": ("", 0)})
        if form == "alone":
            return score(self._arena, corpus, doors, self._arena.enter, HERE / "client.py")
        run = self._command("run", "--quiet", "--project", "redteam", "--ro", str(self._job), "--")
        return score(self._arena, corpus, doors, run, self._job / "client.py")
