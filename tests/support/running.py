"""A running appliance in a lab of its own, driven by its command line as people drive it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exeat.appliance.lab import manage, plan

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def own_tag(name: str) -> str:
    """Short, and this checkout's own: two suites may run on one machine."""
    return hashlib.sha256(f"{Path(__file__).parent}\0{name}".encode()).hexdigest()[:6]


class Running:
    """`exeat up` in a lab of its own, in folders that the service users can reach.

    `name` (a few letters) keeps labs apart. Not below pytest's temporary folder: that is 0700.
    """

    def __init__(self, name: str) -> None:
        tag = own_tag(name)
        folders = (Path(f"/run/exeat-lab-{tag}"), Path(f"/var/lib/exeat-lab-{tag}"))
        self.lab = plan.Lab.named(f"exl{tag}-", *folders)
        manage.up(self.lab)

    def close(self) -> None:
        manage.down(self.lab)

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-I", "-m", "exeat", "--config", str(self.lab.config), *words]

    def exeat(self, *words: str, check: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(*words), capture_output=True, text=True, timeout=timeout, check=False
        )
        if check and done.returncode:
            raise AssertionError(f"exeat {' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def json(self, *words: str) -> Any:
        return json.loads(self.exeat(*words, "--json").stdout)

    def job(self, *words: str, options: Sequence[str] = ()) -> subprocess.Popen[str]:
        """`exeat run` in the background, with the lab's CA where clients look for it."""
        trust = [f"--env={name}={self.lab.job}/ca.pem" for name in ("CURL_CA_BUNDLE", "SSL_CERT_FILE")]
        return subprocess.Popen(
            self.command(
                "run", "--project", plan.PROJECT, "--ro", str(self.lab.job), *trust, *options, "--", *words
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(
        self, *words: str, options: Sequence[str] = (), timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """`exeat run` to its end."""
        process = self.job(*words, options=options)
        out, err = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def pid(self, process: str) -> int:
        """The process that `exeat up` started as `exeat serve PROCESS`, found in /proc."""
        return self._find(f"--config\0{self.lab.config}\0serve\0{process}\0".encode())

    def _find(self, wanted: bytes) -> int:
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    with open(f"/proc/{entry}/cmdline", "rb") as handle:
                        if wanted in handle.read():
                            return int(entry)
                except OSError:
                    continue
        return 0

    def kill(self, process: str) -> None:
        os.kill(self.pid(process), signal.SIGKILL)

    def supervisor(self) -> int:
        """The process of `exeat up`."""
        return self._find(f"--config\0{self.lab.config}\0up\0".encode())

    def stop(self) -> None:
        """SIGTERM to `exeat up`, and wait until it is gone."""
        os.kill(self.supervisor(), signal.SIGTERM)
        wait_for(lambda: not self.supervisor(), 30)

    def healed(self) -> bool:
        return self.exeat("status", check=False).returncode == 0

    def records(self, newest: int = 20) -> list[dict[str, Any]]:
        """The `newest` records, oldest first."""
        words = ("ledger", "tail", "--json", "-n", str(newest), "--state-dir", str(self.lab.state_dir))
        lines = self.exeat(*words).stdout.splitlines()
        return [json.loads(line) for line in lines]


def wait_for(check: Callable[[], Any], seconds: float = 60) -> Any:
    """The first true answer within `seconds`; fails the test when there is none."""
    deadline = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)
    return found
