"""Which disks hold a folder: the whole ones, which is what cgroups limit."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_DEVICES: Final = Path("/sys/dev/block")


def disks_of(paths: Iterable[Path], devices: Path = _DEVICES) -> tuple[tuple[int, int], ...]:
    """Major and minor numbers, each once; nothing for what is in memory, or on more than a disk (btrfs)."""
    found = set()
    for path in paths:
        with contextlib.suppress(OSError, ValueError):
            number = os.stat(path).st_dev
            device = (devices / f"{os.major(number)}:{os.minor(number)}").resolve(strict=True)
            disk = device.parent if (device / "partition").exists() else device
            major, minor = (disk / "dev").read_text().split(":")
            found.add((int(major), int(minor)))
    return tuple(sorted(found))
