"""Root at work in a service's folder: what its account owns must not lead root astray."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def as_owner(directory: Path) -> Iterator[None]:
    """Write in `directory` with the rights of the account it belongs to, and leave files of that account's.

    Without effect unless root calls. Only for a process of one thread: the rights are all threads'. Raises
    OSError.
    """
    owner = directory.lstat()  # of a link, who made it
    if os.geteuid() != 0 or owner.st_uid == 0:
        yield
        return
    groups, group = os.getgroups(), os.getegid()
    os.setgroups([])
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)
