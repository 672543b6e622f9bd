"""Archives read by a job: the parsers run in a jail, and what they tell comes out as events.

The job has the strict profile, a policy that lets nothing out, and no file but the archive.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from exeat.appliance.client import Client
from exeat.appliance.errors import NotReachableError, RefusedError
from exeat.sandbox import archive_inside
from exeat.sandbox.archive_frames import End, File, Frames, HardLink
from exeat.sandbox.archive_inside import ArchiveError, Caps

if TYPE_CHECKING:
    from exeat.appliance.config import Config
    from exeat.sandbox.archive_frames import Event

# Whole, and of a project of its own: no document of the node says anything about this job.
POLICY: Final = "egress: v1\nproject: unpack\n"
_READ = 1 << 18
_SHOW_S = 0.2


@dataclass
class Sums:
    files: int = 0
    size: int = 0  # bytes


class Sink(Protocol):
    """Where events go."""

    def put(self, event: Event) -> None:
        """Raises OSError."""


class Reading:
    """One job that reads the file `archive`, and what it says put into a sink.

    `inner` names what is in a file that was only compressed.
    """

    def __init__(self, config: Config, caps: Caps, archive: int, inner: str) -> None:
        self._config = config
        self._caps = caps
        self._archive = archive
        self._inner = inner
        self._next_show = 0.0

    def into(self, sink: Sink) -> Sums:
        """Raises ArchiveError, NotReachableError, RefusedError."""
        out, theirs = os.pipe2(os.O_CLOEXEC)
        errors, their_errors = os.pipe2(os.O_CLOEXEC)
        said = bytearray()
        listener = threading.Thread(target=_listen, args=(errors, said), daemon=True)
        try:
            job = self._start([self._archive, theirs, their_errors])
        finally:
            os.close(theirs)
            os.close(their_errors)
        listener.start()
        try:
            sums = self._take(out, sink)
        except BaseException:
            with contextlib.suppress(NotReachableError, RefusedError):
                Client(self._config).call("job.kill", job=job)
            raise
        finally:
            os.close(out)
        if sums is None:
            raise self._broken_off(job, said, listener)
        return sums

    def _start(self, fds: list[int]) -> str:
        source = Path(archive_inside.__file__).read_text(encoding="utf-8")
        words = archive_inside.words_for(self._caps, self._inner)
        reply = Client(self._config).call(
            "run",
            fds,
            argv=["python3", "-I", "-c", source, *words],
            profile="strict",
            policy=POLICY,
            file="exeat unpack",
            time_ms=1000 * self._caps.seconds,
            env={},
            mounts=[],
        )
        return str(reply["job"])

    def _take(self, out: int, sink: Sink) -> Sums | None:
        """None if the reader stopped before its last word."""
        frames = Frames(self._caps, os.fstat(self._archive).st_size)
        sums = Sums()
        try:
            while data := os.read(out, _READ):
                for event in frames.feed(data):
                    if isinstance(event, End):
                        continue
                    sums.files += isinstance(event, File | HardLink)
                    sink.put(event)
                sums.size = frames.size
                self._show(sums)
        except OSError as error:
            raise ArchiveError("archive.write", f"it cannot be written: {error.strerror}") from None
        return sums if frames.ended else None

    def _show(self, sums: Sums) -> None:
        if time.monotonic() >= self._next_show and sys.stderr.isatty():
            self._next_show = time.monotonic() + _SHOW_S
            print(f"\r{sums.files} files, {sums.size} bytes ", end="", file=sys.stderr, flush=True)

    def _broken_off(self, job: str, said: bytearray, listener: threading.Thread) -> ArchiveError:
        reply = Client(self._config).call("job.wait", job=job)
        listener.join(1)
        reason, code = reply["reason"], reply["code"]
        if reason == "timeout" or code == 128 + signal.SIGXCPU:
            return ArchiveError("archive.time", f"it takes longer than {self._caps.seconds} s")
        if reason == "oom":
            return ArchiveError("archive.memory", "it takes more memory than any honest archive")
        last = archive_inside.shown(bytes(said[-200:]).decode("ascii", "replace").strip().rpartition("\n")[2])
        return ArchiveError("archive.broken", f"its reader ended with {code} ({reason}) {last}".strip())


def _listen(fd: int, said: bytearray) -> None:
    with contextlib.suppress(OSError):
        while data := os.read(fd, 4096):
            said += data
            del said[:-4096]
    os.close(fd)
