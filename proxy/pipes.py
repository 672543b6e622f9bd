"""A pool of kernel pipes for splice: held only while data is stuck in them."""

from __future__ import annotations

import contextlib
import fcntl
import os

PIPE_BYTES = 1024 * 1024
KEEP = 32  # idle pipes

Pipe = tuple[int, int]


class PipePool:
    """`take` an empty pipe, `give` it back empty; a pipe with bytes in it must be `drop`ped."""

    def __init__(self) -> None:
        self._idle: list[Pipe] = []

    @property
    def idle(self) -> int:
        """Pipes kept for the next bulk."""
        return len(self._idle)

    def take(self) -> Pipe:
        """Raises OSError when the process is out of descriptors."""
        if self._idle:
            return self._idle.pop()
        pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # Past the per-user limit (fs.pipe-user-pages-soft) the kernel says no: 64 KiB work too.
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        return pipe

    def give(self, pipe: Pipe) -> None:
        if len(self._idle) < KEEP:
            self._idle.append(pipe)
        else:
            self.drop(pipe)

    @staticmethod
    def drop(pipe: Pipe) -> None:
        os.close(pipe[0])
        os.close(pipe[1])

    def close(self) -> None:
        for pipe in self._idle:
            self.drop(pipe)
        self._idle.clear()
