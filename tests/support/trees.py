"""A small file tree that a job can have as its own: a shell with what it needs, and a few programs."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

SHELL = "/usr/bin/dash"
PROGRAMS = ("cat", "ls", "id", "stat", "head")


def small_tree(made: Path) -> Path:
    """Make it at `made`, which is new. /etc/mine is a file of its own; its /etc/resolv.conf is a lie."""
    for program in (SHELL, *(f"/usr/bin/{name}" for name in PROGRAMS)):
        for needed in (program, *_libraries(program)):
            target = made / needed.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(os.path.realpath(needed), target)
    (made / "bin").mkdir(exist_ok=True)
    for name in PROGRAMS:
        (made / "bin" / name).symlink_to(f"/usr/bin/{name}")
    (made / "bin" / "sh").symlink_to(SHELL)
    (made / "etc").mkdir()
    (made / "etc" / "mine").write_text("of the tree\n")
    (made / "etc" / "resolv.conf").write_text("nameserver 203.0.113.53\n")
    return made


def _libraries(program: str) -> list[str]:
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    return [word for word in listed.split() if word.startswith("/")]
