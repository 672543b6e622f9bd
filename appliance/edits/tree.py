"""A folder whose content somebody hostile may have made: reached by descriptors, never through a link."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_DEPTH: Final = 64  # folders below each other
_DIR: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NOT_THERE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
# linux/Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories"
_WHITEOUT: Final = os.makedev(0, 0)


class EditError(Exception):
    """Why an edit cannot be shown or merged; `code` is stable, the text is for a person."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class Kind(StrEnum):
    FILE = "file"
    FOLDER = "folder"
    LINK = "link"
    GONE = "gone"  # a whiteout: what lies below is deleted
    SPECIAL = "special"  # device, fifo, socket


@dataclass(frozen=True, slots=True)
class Node:
    """What lstat says of a path. `mode` is its permission bits, times are Unix nanoseconds."""

    kind: Kind
    mode: int
    size: int = 0
    ino: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    target: bytes = b""  # of a link


@contextlib.contextmanager
def rights_of(uid: int | None) -> Iterator[None]:
    """Do this with the rights of `uid` alone, so that a link that is swapped in leads no further."""
    if uid is None or uid == os.geteuid():
        yield
        return
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


class Tree:
    """The folder `path` (absolute, no link on the way), read and changed with the rights of `uid`.

    None: ours. Methods raise OSError.
    """

    def __init__(self, path: Path, uid: int | None = None) -> None:
        self.uid = uid
        self.root = os.open("/", _DIR)
        for part in path.parts[1:]:
            above = self.root
            try:
                self.root = os.open(part, _DIR, dir_fd=above)
            finally:
                os.close(above)

    def close(self) -> None:
        os.close(self.root)

    @contextlib.contextmanager
    def at(self, path: bytes) -> Iterator[tuple[int, bytes]]:
        """The descriptor of the folder that holds `path`, and the name in it, with the tree's rights."""
        *folders, name = path.split(b"/")
        if len(folders) > MAX_DEPTH:
            raise EditError("edit.depth", f"more than {MAX_DEPTH} folders below each other")
        with rights_of(self.uid):
            fd = os.dup(self.root)
            try:
                for folder in folders:
                    fd, above = os.open(folder, _DIR, dir_fd=fd), fd
                    os.close(above)
                yield fd, name
            finally:
                os.close(fd)

    def node(self, path: bytes) -> Node | None:
        """What is at `path`; None: nothing, or something on the way is no folder."""
        try:
            with self.at(path) as (folder, name):
                info = os.lstat(name, dir_fd=folder)
                kind = _kind(info)
                target = os.readlink(name, dir_fd=folder) if kind is Kind.LINK else b""
        except OSError as error:
            if error.errno in _NOT_THERE:
                return None
            raise
        times = info.st_mtime_ns, info.st_ctime_ns
        return Node(kind, stat.S_IMODE(info.st_mode), info.st_size, info.st_ino, *times, target)

    def names(self, path: bytes) -> list[bytes]:
        """What the folder holds, sorted; "" is the tree itself."""
        with self.folder(path) as fd:
            return sorted(os.fsencode(name) for name in os.listdir(fd))

    @contextlib.contextmanager
    def folder(self, path: bytes) -> Iterator[int]:
        with self.at(path + b"/." if path else b".") as (fd, _):
            yield fd

    def open(self, path: bytes) -> int:
        """A descriptor of the regular file."""
        with self.at(path) as (folder, name):
            fd = os.open(name, _FILE, dir_fd=folder)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "not a regular file", os.fsdecode(path))
        return fd

    def changed_ns(self) -> int:
        return os.fstat(self.root).st_ctime_ns

    def marked(self, path: bytes, mark: str) -> bytes | None:
        """What overlayfs noted about the path of an upper layer; None: nothing. Only root can read it."""
        with self.at(path) as (folder, name):
            try:
                way = b"/proc/self/fd/%d/%s" % (folder, name)
                return os.getxattr(way, f"trusted.overlay.{mark}", follow_symlinks=False)
            except OSError as error:
                if error.errno in (errno.ENODATA, errno.ENOTSUP):
                    return None
                raise


def _kind(info: os.stat_result) -> Kind:
    if stat.S_ISREG(info.st_mode):
        return Kind.FILE
    if stat.S_ISDIR(info.st_mode):
        return Kind.FOLDER
    if stat.S_ISLNK(info.st_mode):
        return Kind.LINK
    return Kind.GONE if stat.S_ISCHR(info.st_mode) and info.st_rdev == _WHITEOUT else Kind.SPECIAL
