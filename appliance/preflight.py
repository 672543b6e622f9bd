"""What must hold before anything is started; each failure is one line that names the cure."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exeat.appliance.config import Config

PACKAGES = {"crun": "crun", "nft": "nftables", "ip": "iproute2"}
RUNTIMES = ("crun", "runc")  # the first starts a job in half of the time
_SEARCH = "/usr/sbin:/usr/bin:/sbin:/bin"
MIN_FREE_BYTES = 64 * 1024 * 1024


def runtime(configured: str) -> str:
    """The container runtime: the configured one, else the first of RUNTIMES that is installed, else that."""
    there = (name for name in RUNTIMES if shutil.which(name, path=_SEARCH))
    return configured or next(there, RUNTIMES[0])


def check_tools(config: Config) -> str:
    """The first thing that is missing, as a sentence, or "" when all is there."""
    for tool in (runtime(config.sandbox.runtime), "nft"):
        if shutil.which(tool, path=_SEARCH) is None:
            return f"`{tool}` is missing: apt-get install {PACKAGES.get(tool, tool)}"
    return _unreadable(config) or _disk(config)


def _unreadable(config: Config) -> str:
    for path in (Path(sys.executable), Path(__file__)):
        blocker = first_unreadable(path)
        if blocker:
            return (
                f"the service user `{config.users.gateway}` cannot read {path} because of {blocker}: "
                "install exeat with the system's own Python outside root's home"
            )
    return ""


def first_unreadable(path: Path) -> Path | None:
    """The first part of `path` (links followed) that other users may not enter or read."""
    for target in (path, path.resolve()):
        for folder in reversed(target.parents):
            if not folder.stat().st_mode & 0o001:
                return folder
        if not target.stat().st_mode & 0o004:
            return target
    return None


def _disk(config: Config) -> str:
    folder = config.state_dir
    while not folder.exists():
        folder = folder.parent
    stats = os.statvfs(folder)
    if stats.f_bavail * stats.f_frsize < MIN_FREE_BYTES:
        return f"{folder}: less than {MIN_FREE_BYTES // 2**20} MiB free: the ledger cannot record"
    if stats.f_flag & os.ST_RDONLY:
        return f"{folder}: read-only file system: the ledger cannot record"
    return ""
