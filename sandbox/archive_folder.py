"""The folder into which an archive goes: made beside its place, complete or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

from exeat.ledger.files import write_all
from exeat.sandbox.archive_frames import File, Folder, HardLink, SymbolicLink
from exeat.sandbox.archive_inside import ArchiveError, shown

if TYPE_CHECKING:
    from exeat.sandbox.archive_frames import Event

_WAY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class TargetError(Exception):
    """The folder cannot be made there."""


class NewFolder:
    """`put` events in, then `finish`; without it, leaving the context removes all of it.

    Links are made last, so nothing is ever written through one.
    """

    def __init__(self, target: Path, *, links_stay: bool = True) -> None:
        """Raises TargetError if something is there already, or nothing can be made there.

        `links_stay`: none may lead out of it, whoever follows it.
        """
        self.target = target.absolute()
        self._links_stay = links_stay
        if os.path.lexists(self.target) and not (
            self.target.is_dir() and not self.target.is_symlink() and not any(self.target.iterdir())
        ):
            raise TargetError(f"{target}: is there already, and not an empty folder")
        self._place = self.target.with_name(f".{self.target.name}.{secrets.token_hex(4)}.part")
        try:
            self._place.mkdir(mode=0o700)
        except OSError as error:
            raise TargetError(f"{self.target.parent}: {error.strerror}") from None
        self._root = os.open(self._place, _WAY)
        self._parts: tuple[str, ...] = ()  # of the present folder
        self._folder = os.dup(self._root)
        self._file = -1
        self._links: list[SymbolicLink] = []

    def __enter__(self) -> NewFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_file()
        os.close(self._folder)
        os.close(self._root)
        shutil.rmtree(self._place, ignore_errors=True)  # after `finish` it is not there

    def put(self, event: Event) -> None:
        """Raises OSError."""
        match event:
            case bytes():
                write_all(self._file, event)
                return
            case Folder(parts):
                self._enter(parts)
            case File(parts, executable):
                self._end_file()
                self._enter(parts[:-1])
                mode = 0o777 if executable else 0o666
                self._file = os.open(parts[-1], _NEW, mode, dir_fd=self._folder)
                return
            case HardLink(parts, target):
                self._link(parts, target)
            case SymbolicLink():
                self._links.append(event)
        self._end_file()

    def finish(self) -> None:
        """Put it in its place. Raises ArchiveError for links that lead out after all, OSError."""
        self._end_file()
        for link in self._links:
            self._enter(link.parts[:-1])
            os.symlink(link.target, link.parts[-1], dir_fd=self._folder)
        top = os.path.realpath(self._place)
        for link in (
            self._links if self._links_stay else ()
        ):  # one link may make another's text mean something else
            if not Path(os.path.realpath(self._place.joinpath(*link.parts))).is_relative_to(top):
                raise ArchiveError("archive.link", f"{shown('/'.join(link.parts))}: a link out of its folder")
        mask = os.umask(0o077)
        os.umask(mask)
        self._place.chmod(0o777 & ~mask)
        self._place.rename(self.target)

    def _link(self, parts: tuple[str, ...], target: tuple[str, ...]) -> None:
        self._enter(target[:-1])
        source = os.dup(self._folder)
        try:
            self._enter(parts[:-1])
            os.link(target[-1], parts[-1], src_dir_fd=source, dst_dir_fd=self._folder, follow_symlinks=False)
        finally:
            os.close(source)

    def _enter(self, parts: tuple[str, ...]) -> None:
        """Make this the present folder, and make it if need be."""
        if parts == self._parts:
            return
        folder = os.dup(self._root)
        for part in parts:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, dir_fd=folder)
            above = folder
            try:
                folder = os.open(part, _WAY, dir_fd=above)
            finally:
                os.close(above)
        os.close(self._folder)
        self._parts, self._folder = parts, folder

    def _end_file(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
