"""Which cgroup layout the machine has, and what crun can do with it (pure)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

UNIFIED: Final = "/sys/fs/cgroup/unified"
_ROOT: Final = "/sys/fs/cgroup"


@dataclass(frozen=True, slots=True)
class Layout:
    """`mask` is a mount to hide from crun ("" for none); `limits` says whether memory and pids hold.

    `io` says whether those of reading and writing disks do.
    """

    mask: str
    limits: bool
    io: bool = False

    def held(self, disks: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
        """Those of them for which a limit holds."""
        return disks if self.io else ()


def layout(mountinfo: str, controllers: str) -> Layout:
    """From /proc/self/mountinfo (proc(5)) and the root's cgroup.controllers ("" when there is none).

    crun refuses a hybrid layout (v1 controllers with a v2 tree at .../unified) as long as the v2
    tree holds any controller, so the launcher hides that tree in its own mount namespace.
    """
    mounts: dict[str, tuple[str, str]] = {}
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(" "), right.split(" ")
        if len(fields) > 5 and fields[4].startswith(_ROOT):
            mounts[fields[4]] = (kind[0], fields[5])
    root = mounts.get(_ROOT, ("", ""))
    if root[0] == "cgroup2":
        there = set(controllers.split()) if _writable(root) else set()
        return Layout("", {"memory", "pids"} <= there, "io" in there)
    v1 = {name for name in ("memory", "pids", "devices", "blkio") if _is_v1(mounts.get(f"{_ROOT}/{name}"))}
    mask = UNIFIED if mounts.get(UNIFIED, ("", ""))[0] == "cgroup2" else ""
    return Layout(mask, {"memory", "pids", "devices"} <= v1, "blkio" in v1)


def _is_v1(mount: tuple[str, str] | None) -> bool:
    return mount is not None and mount[0] == "cgroup" and _writable(mount)


def _writable(mount: tuple[str, str]) -> bool:
    return "rw" in mount[1].split(",")


def oom_kills(vmstat: str) -> int:
    """How many processes the kernel has killed for want of memory since boot, from /proc/vmstat."""
    counters = dict(line.split(" ", 1) for line in vmstat.splitlines() if " " in line)
    return int(counters.get("oom_kill", "0"))
