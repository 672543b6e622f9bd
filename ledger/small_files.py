"""Small files, put in place whole and durably."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from exeat.ledger.files import sync_dir
from exeat.ledger.records import printable

if TYPE_CHECKING:
    from pathlib import Path


def replace(path: Path, content: str | bytes, mode: int = 0o640, temporary: Path | None = None) -> None:
    """Give `path` this content, by way of `temporary`: all of it, or what it had before. Raises OSError."""
    temporary = temporary or path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with open(fd, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    sync_dir(os, path.parent)


def read_small(path: Path, most: int) -> bytes:
    """A file of another account's, which may have put anything there. Raises OSError.

    No link is followed, nothing waited for (as of a pipe), and no more than `most` bytes are read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a file", str(path))
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, "too large", str(path))
    return content


def read_said(path: Path) -> str:
    """What another account's process left in words, for people; "" if it said nothing. Raises OSError."""
    try:
        return printable(read_small(path, 4096).decode("utf-8", "replace").strip())
    except FileNotFoundError:
        return ""
