"""`exeat up` in the network namespace that it is started in, and the processes it has."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path


def bring_up(config: Path) -> subprocess.Popen[bytes]:
    """The supervisor, once it has said that all of it is up."""
    command = [sys.executable, "-I", "-m", "exeat", "up", "--config", str(config)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    if b"up" in process.stdout.readline():
        return process
    raise AssertionError(f"it did not start: {bring_down(process)}")


def bring_down(process: subprocess.Popen[bytes]) -> int:
    """Its exit code."""
    process.send_signal(signal.SIGTERM)
    code = process.wait(60)
    assert process.stdout is not None
    process.stdout.close()
    return code


def child_serving(supervisor: int, name: str) -> int:
    """The process of `exeat serve NAME`, 0 while there is none."""
    for child in Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split():
        try:
            if f"serve\0{name}\0" in Path(f"/proc/{child}/cmdline").read_text():
                return int(child)
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
    return 0
