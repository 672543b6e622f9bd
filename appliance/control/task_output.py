"""What the queue's tasks write: two files each, which outlive control and are bounded in all."""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

KEPT_BYTES: Final = 16 << 30  # of tasks that are over: on a full disk the ledger opens no flow any more


class TaskOutput:
    """Below `folder`, by task."""

    def __init__(self, folder: Path, *, most: int = KEPT_BYTES) -> None:
        self._folder, self._most = folder, most
        self._sizes: dict[str, int] = {}  # bytes on the disk; those that ended first come first

    @contextlib.contextmanager
    def streams(self, task: str) -> Iterator[list[int]]:
        """Descriptors of standard input, output and error. A further try goes on where the last one ended.

        Raises OSError.
        """
        folder = self._folder / task
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        way = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        fds = [os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)]
        try:
            fds.extend(os.open(folder / name, way, 0o640) for name in ("out", "err"))
            yield fds
        finally:
            for fd in fds:
                os.close(fd)

    def ended(self, tasks: Iterable[str]) -> None:
        """These are over, in this order: what they wrote is kept, and the oldest of all gives way to it."""
        for task in tasks:
            with contextlib.suppress(OSError):  # it never began
                files = list(os.scandir(self._folder / task))
                self._sizes[task] = sum(each.stat().st_blocks * 512 for each in files)
        while sum(self._sizes.values()) > self._most:
            self.drop(next(iter(self._sizes)))

    def drop(self, task: str) -> None:
        shutil.rmtree(self._folder / task, ignore_errors=True)
        self._sizes.pop(task, None)
