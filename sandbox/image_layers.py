"""Layers of an image, laid over each other in one folder, with what they take away.

Source: OCI Image Format Specification 1.1, layer.md. A layer is first a folder of its own, and its whiteouts
a list; so it does not matter where in its archive they stand. Links are followed as the job would follow
them: in the tree, and never out of it (openat2(2), RESOLVE_IN_ROOT).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import stat
import struct
from typing import TYPE_CHECKING, Final

from exeat.sandbox.archive_folder import NewFolder
from exeat.sandbox.archive_frames import File
from exeat.sandbox.archive_inside import ArchiveError, shown

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from exeat.sandbox.archive_frames import Event

_WHITEOUT, _OPAQUE, _RESERVED = ".wh.", ".wh..wh..opq", ".wh..wh."
_SYS_OPENAT2, _RESOLVE_NO_MAGICLINKS, _RESOLVE_IN_ROOT = 437, 0x2, 0x10
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NOT_THERE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_libc = ctypes.CDLL(None, use_errno=True)


class Layer:
    """`put` the events of its archive in, then `lay` it over the tree."""

    def __init__(self, place: Path) -> None:
        """Raises TargetError. `place` is new; only its parts that were laid are gone from it later."""
        self._place = place
        self._folder = NewFolder(place, links_stay=False)
        self._hidden: list[tuple[str, ...]] = []  # taken away, from the layers below
        self._emptied: list[tuple[str, ...]] = []  # folders of which those below show nothing
        self._in_whiteout = False

    def __enter__(self) -> Layer:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.__exit__()
        shutil.rmtree(self._place, ignore_errors=True)

    def put(self, event: Event) -> None:
        """Raises OSError, and ArchiveError for a whiteout of what cannot be one."""
        if isinstance(event, bytes) and self._in_whiteout:
            raise ArchiveError("archive.broken", "a whiteout with something in it")
        if not isinstance(event, bytes):
            self._in_whiteout = isinstance(event, File) and event.parts[-1].startswith(_WHITEOUT)
        if isinstance(event, File) and self._in_whiteout:
            self._take_away(event.parts[:-1], event.parts[-1])
        else:
            self._folder.put(event)

    def _take_away(self, folder: tuple[str, ...], name: str) -> None:
        if name == _OPAQUE:
            self._emptied.append(folder)
        elif not name.startswith(_RESERVED):  # what else begins so is of a file system of old
            hidden = name.removeprefix(_WHITEOUT)
            if hidden in ("", ".", ".."):
                raise ArchiveError("archive.path", f"{shown(name)}: a whiteout of nothing")
            self._hidden.append((*folder, hidden))

    def lay(self, tree: Path) -> None:
        """Over what is in the folder `tree`. Raises OSError, and ArchiveError(archive.depth)."""
        self._folder.finish()
        try:
            with _opened(tree) as root, _opened(self._place) as layer:
                for parts in self._emptied:
                    with _inside(root, parts) as folder:
                        for name in os.listdir(folder) if folder >= 0 else ():
                            _remove(folder, name)
                for parts in self._hidden:
                    with _inside(root, parts[:-1]) as folder:
                        if folder >= 0:
                            _remove(folder, parts[-1])
                _merge(root, (), layer, root)
        except RecursionError:
            raise ArchiveError("archive.depth", "folders too deep within each other") from None


def _merge(root: int, parts: tuple[str, ...], layer: int, below: int) -> None:
    """What is in the folder `layer` goes into the folder `below`, which is at `parts` in the tree."""
    for name in os.listdir(layer):
        here = (*parts, name)
        with _inside(root, here) as folder:
            if folder >= 0 and stat.S_ISDIR(os.lstat(name, dir_fd=layer).st_mode):
                deeper = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=layer)
                try:
                    _merge(root, here, deeper, folder)
                finally:
                    os.close(deeper)
                continue
        _remove(below, name)
        os.rename(name, name, src_dir_fd=layer, dst_dir_fd=below)


def _remove(folder: int, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode):
            shutil.rmtree(name, dir_fd=folder)
        else:
            os.unlink(name, dir_fd=folder)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    folder = os.open(path, _FOLDER | os.O_NOFOLLOW)
    try:
        yield folder
    finally:
        os.close(folder)


@contextlib.contextmanager
def _inside(root: int, parts: tuple[str, ...]) -> Iterator[int]:
    """The folder at `parts`, where links lead as they would in a root of its own; -1 if none is there."""
    how = struct.pack("QQQ", _FOLDER, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    path = os.fsencode("/".join(parts) or ".")
    folder = int(_libc.syscall(_SYS_OPENAT2, root, path, how, len(how)))
    if folder < 0 and (number := ctypes.get_errno()) not in _NOT_THERE:
        raise OSError(number, os.strerror(number))
    try:
        yield folder
    finally:
        if folder >= 0:
            os.close(folder)
