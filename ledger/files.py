"""What the store does to files, through system calls that tests can put faults into."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import threading
import time
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from pathlib import Path

_TRIES, _TRY_S = 100, 0.01  # to get a lock
_STEP: Final = 1024 * 1024  # bytes of a spare that are written at a time
_STEP_S: Final = 0.005  # between two steps: what others sync goes first


_SYNC_FILE_RANGE_WRITE: Final = 2
_SYNC_RANGE: Final = ctypes.CDLL(None).sync_file_range
_SYNC_RANGE.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


class Io(Protocol):
    """The system calls the store makes (the `os` module; tests put faults in between)."""

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int: ...
    def close(self, fd: int) -> None: ...
    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int: ...
    def fdatasync(self, fd: int) -> None: ...
    def fsync(self, fd: int) -> None: ...
    def rename(self, src: Path, dst: Path) -> None: ...
    def unlink(self, path: Path) -> None: ...


def write_at(io: Io, fd: int, data: bytes, offset: int) -> None:
    """All of `data`. Raises OSError."""
    written = io.pwrite(fd, data, offset)
    while written < len(data):
        more = io.pwrite(fd, memoryview(data)[written:], offset + written)
        if more <= 0:
            raise OSError(errno.EIO, "write made no progress")
        written += more


def write_all(fd: int, data: bytes) -> None:
    """All of `data`, where `fd` stands: into a file, or a pipe that takes its time. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _start_writing(fd: int, offset: int, count: int) -> None:
    """Have these bytes written soon; neither waits nor makes anything durable (sync_file_range(2))."""
    _SYNC_RANGE(fd, offset, count, _SYNC_FILE_RANGE_WRITE)


def sync_dir(io: Io, directory: Path) -> None:
    """Make the names in a folder durable. Raises OSError."""
    fd = io.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        io.fsync(fd)
    finally:
        io.close(fd)


def create(io: Io, path: Path) -> int:
    """An empty file. Raises OSError."""
    return io.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)


def lock(path: Path) -> int:
    """Hold the lock of a folder that one process may write; -1 if another one does. Raises OSError.

    A process that a killed writer had just forked holds it too, for a moment: hence more than one try.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    for left in reversed(range(_TRIES)):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_TRY_S if left else 0)
        else:
            return fd
    os.close(fd)
    return -1


class Zeroed(NamedTuple):
    """A file of `size` zeros that are on the disk, under a temporary name."""

    fd: int
    path: Path
    size: int


class Spare:
    """The file of the next segment, zeroed and synced beside the writer.

    A file that grows costs a commit of the file system's journal with each sync, and that may wait for
    what others have written: seconds on a busy disk. No append shall. Without a spare (no room, no time)
    the store makes its file itself.
    """

    def __init__(self, folder: Path, size: int, io: Io) -> None:
        # A name of its own: the thread of a store that was closed may still be about to give its file up.
        self._path = folder / f"spare-{os.urandom(8).hex()}.tmp"
        self._size = size
        self._io = io
        self._lock = threading.Lock()  # of the three below
        self._busy = False
        self._closed = False
        self._made: Zeroed | None = None

    def begin(self) -> None:
        """Have one made by a thread, unless there is one or it is being made."""
        with self._lock:
            if self._busy or self._closed or self._made is not None:
                return
            self._busy = True
        threading.Thread(target=self.make, daemon=True).start()

    def make(self) -> None:
        """Make one here and now, if there is none; without success if the disk does not let it."""
        if self._made is not None:
            return
        made: Zeroed | None = None
        with contextlib.suppress(OSError):
            made = self._zeroed()
        with self._lock:
            self._busy = False
            if made is not None and not self._closed:
                self._made = made
                return
        if made is not None:
            self._give_up(made.fd)

    def take(self) -> Zeroed | None:
        """The spare, for good."""
        with self._lock:
            made, self._made = self._made, None
        return made

    def close(self) -> None:
        """No more of them. The next start of the store removes what is left of one."""
        with self._lock:
            self._closed = True
            made, self._made = self._made, None
        if made is not None:
            self._io.close(made.fd)

    def _zeroed(self) -> Zeroed:
        fd = create(self._io, self._path)
        try:
            for at in range(0, self._size, _STEP):
                if self._closed:
                    break
                write_at(self._io, fd, bytes(min(_STEP, self._size - at)), at)
                # On its way already, but without a commit of the journal for each step: those make
                # the syncs of the writer wait.
                _start_writing(fd, at, _STEP)
                time.sleep(_STEP_S)
            self._io.fsync(fd)
        except OSError:
            self._give_up(fd)
            raise
        return Zeroed(fd, self._path, self._size)

    def _give_up(self, fd: int) -> None:
        with contextlib.suppress(OSError):
            self._io.close(fd)
        with contextlib.suppress(OSError):  # its space may be what everyone is short of
            self._io.unlink(self._path)
