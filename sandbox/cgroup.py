"""Which cgroup layout the machine has, and what crun can do with it (pure)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

UNIFIED: Final = "/sys/fs/cgroup/unified"
_ROOT: Final = "/sys/fs/cgroup"


@dataclass(frozen=True, slots=True)
class Layout:
    """`mask` is a mount to hide from crun ("" for none); `limits` says whether memory and pids hold."""

    mask: str
    limits: bool


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
        return Layout("", _writable(root) and {"memory", "pids"} <= set(controllers.split()))
    needed = [mounts.get(f"{_ROOT}/{name}", ("", "")) for name in ("memory", "pids", "devices")]
    v1 = all(kind == "cgroup" and _writable((kind, options)) for kind, options in needed)
    return Layout(UNIFIED if mounts.get(UNIFIED, ("", ""))[0] == "cgroup2" else "", v1)


def _writable(mount: tuple[str, str]) -> bool:
    return "rw" in mount[1].split(",")


def oom_kills(vmstat: str) -> int:
    """How many processes the kernel has killed for want of memory since boot, from /proc/vmstat."""
    counters = dict(line.split(" ", 1) for line in vmstat.splitlines() if " " in line)
    return int(counters.get("oom_kill", "0"))
