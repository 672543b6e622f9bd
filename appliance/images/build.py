"""A tree of Debian or Ubuntu, made by the distribution's own tools as an archive."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from exeat.appliance.errors import UsageError
from exeat.sandbox.image_layout import ImageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

_SUITE: Final = re.compile(r"[a-z][a-z0-9-]{0,31}", re.ASCII)
_PACKAGE: Final = re.compile(r"[a-z0-9][a-z0-9+.-]{0,99}", re.ASCII)  # Debian policy 5.6.1
_MIRROR: Final = re.compile(r"(https?|file|copy)://[!-~]{1,500}", re.ASCII)
TOOLS: Final = ("mmdebstrap", "debootstrap")


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be in the tree. `mirror` "" is the tool's own."""

    suite: str
    packages: tuple[str, ...] = ()
    mirror: str = ""

    def check(self) -> None:
        """Nothing of it can be an option of a tool, or two of them. Raises UsageError."""
        if not _SUITE.fullmatch(self.suite):
            raise UsageError(f"{self.suite}: no name of a suite (bookworm, trixie, noble)")
        if unfit := [name for name in self.packages if not _PACKAGE.fullmatch(name)]:
            raise UsageError(f"{unfit[0]}: no name of a package")
        if self.mirror and not _MIRROR.fullmatch(self.mirror):
            raise UsageError(f"{self.mirror}: no mirror (http://.., https://.., file://.., copy://..)")


def commands(wish: Wish, tool: str, folder: Path) -> list[list[str]]:
    """What makes `folder`/tree.tar, with the tool of this name: a minimal system and the packages."""
    archive, packages = str(folder / "tree.tar"), ",".join(wish.packages)
    include = [f"--include={packages}"] if packages else []
    mirror = [wish.mirror] if wish.mirror else []
    if tool == "mmdebstrap":
        return [["mmdebstrap", "--variant=minbase", *include, "--", wish.suite, archive, *mirror]]
    tree = str(folder / "debootstrap")
    return [
        ["debootstrap", "--variant=minbase", *include, wish.suite, tree, *mirror],
        ["tar", "--create", "--numeric-owner", f"--file={archive}", f"--directory={tree}", "."],
    ]


def build(wish: Wish, folder: Path, which: Callable[[str], str | None] = shutil.which) -> Path:
    """The archive of a new tree, in `folder`. Raises UsageError, ImageError(image.build).

    The packages' scripts run as root in the tree, as in every installation: this is for suites that one
    would install. They are fetched by this program, past the gateway.
    """
    wish.check()
    tool = next((tool for tool in TOOLS if which(tool)), None)
    if tool is None:
        raise UsageError("neither mmdebstrap nor debootstrap is here: apt-get install mmdebstrap")
    for command in commands(wish, tool, folder):
        _run(command)
    return folder / "tree.tar"


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)  # its complaints are the person's
    if done.returncode:
        raise ImageError("image.build", f"{command[0]} ended with {done.returncode}")
