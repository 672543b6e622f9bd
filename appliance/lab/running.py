"""A job of the demonstration while it runs: its lines as they come, its end, all with a deadline."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from exeat.appliance.lab.plan import Lab

_TAIL = 6


class Failed(Exception):
    """A step did not keep its promise; `result` is what was measured all the same."""

    def __init__(self, message: str, result: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.result = result or {}


def command(lab: Lab, *words: str) -> list[str]:
    """`exeat --config LAB ...` with the interpreter that runs now."""
    return [sys.executable, "-I", "-m", "exeat", "--config", str(lab.config), *words]


def wait_until(check: Callable[[], Any], seconds: float, what: str) -> Any:
    """The first true answer of `check`. Raises Failed after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (found := check()):
        if time.monotonic() > deadline:
            raise Failed(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.01)
    return found


class Running:
    """Starts at once. Its standard output is JSON lines; anything else is kept for `tail`."""

    def __init__(self, words: list[str]) -> None:
        self._process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
            cwd="/",
        )
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._other: deque[str] = deque(maxlen=_TAIL)
        self._readers = [
            threading.Thread(target=read, daemon=True) for read in (self._read_lines, self._read_errors)
        ]
        for reader in self._readers:
            reader.start()

    def _read_lines(self) -> None:
        for line in self._process.stdout or ():
            try:
                self._lines.put(json.loads(line))
            except ValueError:
                self._other.append(line.rstrip())
        self._lines.put(None)

    def _read_errors(self) -> None:
        self._other.extend(line.rstrip() for line in self._process.stderr or ())

    def line(self, seconds: float) -> dict[str, Any]:
        """The next line. Raises Failed when none comes in time or the job has ended."""
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            raise Failed(f"the job said nothing for {seconds:.0f} s: {self.tail()}") from None
        if line is None:
            raise Failed(f"the job has ended: {self.tail()}")
        return line

    def lines(self, seconds: float) -> list[dict[str, Any]]:
        """All lines up to the end of the job."""
        deadline = time.monotonic() + seconds
        found: list[dict[str, Any]] = []
        while time.monotonic() < deadline:
            try:
                line = self._lines.get(timeout=max(0.01, deadline - time.monotonic()))
            except queue.Empty:
                break
            if line is None:
                return found
            found.append(line)
        raise Failed(f"the job was not done after {seconds:.0f} s, {len(found)} lines: {self.tail()}")

    def skip_to_now(self) -> None:
        """Forget what has been said so far."""
        while not self._lines.empty():
            if self._lines.get_nowait() is None:
                raise Failed(f"the job has ended: {self.tail()}")

    def say(self, text: str) -> None:
        if self._process.stdin is not None:
            self._process.stdin.write(text + "\n")
            self._process.stdin.close()

    def wait(self, seconds: float) -> int:
        """The exit code. A job that does not end is killed, and that is a failure."""
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise Failed(f"the job did not end within {seconds:.0f} s") from None
        for reader in self._readers:
            reader.join(seconds)
        return code

    def stop(self) -> None:
        """End it if a failed step has left it behind; close its streams in any case."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for reader in self._readers:
            reader.join()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def tail(self) -> str:
        """The last it said that was not a line of its own."""
        return " / ".join(self._other) or "nothing more was said"
