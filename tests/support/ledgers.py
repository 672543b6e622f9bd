"""Sample records, and a real ledger daemon in a process of its own."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from exeat.ledger.client import stamps
from exeat.ledger.daemon import LedgerSettings, serve
from exeat.ledger.records import Dest, Kind, Record, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_PR_SET_PDEATHSIG = 1
DEST = Dest("files.example.org", 443, "tcp", b"\xcb\x00\x71\x05", "files.example.org")


def flow_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def record(kind: Kind, flow: int | None = None, **fields: Any) -> bytes:
    real, boot = stamps()
    return encode(Record(kind, real, boot, b"" if flow is None else flow_id(flow), **fields))


def deny(number: int = 0) -> bytes:
    return record(Kind.DENY, job=f"job-{number}", dest=DEST, decision="deny", reason_code="rule.deny")


def wait_for(condition: Callable[[], bool], what: str, *, seconds: float = 60) -> None:
    """Poll a condition of another process, with a bound that only a failure reaches."""
    poller = select.poll()
    for _ in range(int(seconds * 200)):
        if condition():
            return
        poller.poll(5)
    raise AssertionError(f"never happened: {what}")


@dataclass
class Daemon:
    """A ledger daemon that was forked off and has said it is ready."""

    settings: LedgerSettings
    pid: int

    @property
    def path(self) -> Path:
        return self.settings.socket_path

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send the signal and wait; the exit code, or minus the signal that ended it."""
        if self.pid == 0:
            return 0
        os.kill(self.pid, number)
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        return os.waitstatus_to_exitcode(status)


def settings(base: Path, **changes: Any) -> LedgerSettings:
    values: dict[str, Any] = {"node": "n1", "writers": {os.getuid(): "gateway"}, **changes}
    return LedgerSettings(base / "state", base / "run", **values)


def start(chosen: LedgerSettings) -> Daemon:
    """Fork a daemon; returns when it accepts connections."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # never outlives the tests
            os.close(read)
            code = serve(chosen, lambda: os.write(write, b"r") and None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(write)
    with open(read, "rb") as ready:
        if ready.read(1) != b"r":
            raise AssertionError(f"ledger did not start: {os.waitpid(pid, 0)}")
    return Daemon(chosen, pid)


@contextlib.contextmanager
def running(base: Path, **changes: Any) -> Iterator[Daemon]:
    daemon = start(settings(base, **changes))
    try:
        yield daemon
    finally:
        daemon.stop()
