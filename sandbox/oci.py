"""The OCI runtime configuration of a job and the tree it is rooted in (pure).

The container's root is an empty tree with the host's /usr (read-only), an /etc of our own making,
private /proc, /dev and /tmp, the job's work folder, and the folder that holds the gateway's
socket. Or it is a tree that was asked for, with our part of /etc over its own. Shapes: OCI runtime
specification 1.0.2, config.md and config-linux.md.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from exeat.sandbox.landlock import confined
from exeat.sandbox.names import SpecError
from exeat.sandbox.seccomp import profile
from exeat.sandbox.spec import GATEWAY, WORK, Mount

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from exeat.sandbox.launcher import Beside, Places
    from exeat.sandbox.limits import Limits
    from exeat.sandbox.spec import JobSpec

# Not /tmp and /work: runc gives a tmpfs the mode of the folder below it, and makes one where there is none.
_DIRS: Final = ("usr", "etc", "etc/ssl", "proc", "dev", "run", "run/exeat")
_MERGED: Final = ("bin", "sbin", "lib", "lib64", "lib32", "libx32")

# Parts of the host's /etc that programs under /usr cannot do without. Nothing here is a secret.
HOST_ETC: Final = (
    "/etc/alternatives",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/ld.so.cache",
    "/etc/services",
    "/etc/protocols",
    "/etc/mime.types",
)

# The runtime gives its own standard descriptors to the job's user (fchown), whatever they are, so
# the caller's never get there: they come in as 3, 4 and 5 and are moved into place inside.
# Then: the first process of a pid namespace is deaf to signals without a handler and inherits
# every orphan. This one does nothing but wait, so that the command has a normal process's signals
# and its death by signal n is seen as 128+n. Its own stderr is closed: the shell would say "Killed".
_INIT: Final = """
exec 0<&3 1>&4 3<&- 4>&- 2>/dev/null
(exec 2>&5 5>&-; exec "$@")
exit $?
"""

# Below /proc: what tells about the whole machine, and what would change it.
_MASKED: Final = """
acpi asound config.gz interrupts iomem ioports kallsyms kcore keys key-users
kmsg latency_stats modules sched_debug scsi slabinfo timer_list timer_stats vmallocinfo
""".split()  # noqa: SIM905
MAX_EDITS: Final = 256  # that are kept until somebody merges or drops them
_CPU_PERIOD_US: Final = 100_000
_READ_ONLY: Final = ("bus", "fs", "irq", "sys", "sysrq-trigger")


@dataclass(frozen=True, slots=True)
class Skeleton:
    """What the warden makes in the empty root, in this order. Paths are relative to it."""

    dirs: tuple[str, ...]
    links: tuple[tuple[str, str], ...]  # (path, target)
    files: tuple[tuple[str, str], ...]  # (path, text)


@dataclass(frozen=True, slots=True)
class Bind:
    """A checked place on the host that appears at `target` in the container."""

    source: str
    target: str
    writable: bool = False
    edit: Path | None = None  # the folder of the layer that takes the changes (launcher.Places.edit)


@dataclass(frozen=True, slots=True)
class Host:
    """What the warden knows of its own machine: facts, not requests."""

    machine: str  # uname -m
    links: tuple[tuple[str, str], ...]  # top-level links into /usr: ("bin", "usr/bin"), ...
    etc: tuple[str, ...]  # those of HOST_ETC that exist
    cgroups: bool  # limits can be enforced
    max_open_files: int  # our own hard limit: raising it would need CAP_SYS_RESOURCE
    disks: tuple[tuple[int, int], ...] = ()  # (major, minor) of those whose use cgroups can limit
    beside: Beside | None = None  # what the runtime wants beside the bundle


def merged_links(names: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """The links of a merged /usr (file-hierarchy(7)) for those of `names` that are part of it."""
    return tuple((name, f"usr/{name}") for name in names if name in _MERGED)


@dataclass(frozen=True, slots=True)
class Plan:
    """All that must be made for one job."""

    folders: tuple[Path, ...]  # new, parents first
    own: tuple[Path, ...]  # those of them that belong to the job's user
    staged: tuple[tuple[Mount, Path], ...]  # host paths to hold, once they have been checked
    links: tuple[tuple[Path, str], ...]  # (path, target)
    files: tuple[tuple[Path, str], ...]  # (path, text)
    overlay: tuple[Path, str] | None  # where to mount one and with which options, when all else is there
    config: str  # config.json


def plan(job: JobSpec, *, uid: int, host: Host, places: Places, kept: int = 0) -> Plan:
    """What makes the job a container. Mounts come last and in order.

    `kept`: how many edits are. Raises SpecError(limits) for a job that needs limits which would not
    hold here, or for a tree of its own where no cgroup keeps it from the devices in that: the runtime
    loses `nodev` of what / is made of. SpecError(edits.full) for an edit too many.
    """
    edits = [mount.path for mount in job.mounts if mount.edited]
    if edits and kept >= MAX_EDITS:
        raise SpecError("edits.full", f"{MAX_EDITS} edits wait: merge or drop some (exeat job edits)")
    if job.needs_cgroup and not host.cgroups:
        raise SpecError("limits", "no memory, pids or cpu limit holds on this node: see `exeat doctor`")
    if job.limits.io and not host.disks:
        raise SpecError("limits", "no limit of io holds on this node: its disks are none that cgroups know")
    if job.root and not host.cgroups:
        raise SpecError("limits", "no cgroup keeps jobs from devices on this node: see `exeat doctor`")
    staged = tuple((mount, places.staged(job.job, number)) for number, mount in enumerate(job.mounts))
    binds = [
        Bind(str(places.sockets(job.job)), GATEWAY),
        *(() if job.limits.work else (Bind(str(places.output(job.job)), WORK, writable=True),)),
        *(
            Bind(str(held), mount.path, mount.writable, places.edit(job.job) if mount.edited else None)
            for mount, held in staged
        ),
    ]
    folder, edit, tree = places.job(job.job), places.edit(job.job), skeleton(job, uid, host)
    root, output, upper = folder / "rootfs", places.output(job.job), edit / "upper"
    whole = config(job, uid=uid, host=host, binds=binds, places=places)
    text = json.dumps(whole)
    files = [(root / name, content) for name, content in tree.files]
    files += [(folder / "uid", str(uid)), (folder / "config.json", text)]
    files += host.beside(whole, folder) if host.beside else []
    files += [(edit / "edit.json", json.dumps({"folder": path, "uid": uid})) for path in edits]
    folders, overlay = [folder, output, root, *(root / name for name in tree.dirs)], None
    folders += [edit, upper, edit / "work"] if edits else []
    if job.root:
        lower, scratch = places.staged(job.job, "lower"), folder / "scratch"
        folders += [_tree(job, places), scratch]
        staged += ((Mount(job.root, writable=False), lower),)
        layers = f"lowerdir={lower},upperdir={root},workdir={scratch}"
        overlay = _tree(job, places), f"redirect_dir=nofollow,metacopy=off,{layers}"
    return Plan(
        folders=tuple(folders),
        own=(output, upper) if edits else (output,),
        staged=staged,
        links=tuple((root / name, target) for name, target in tree.links),
        files=tuple(files),
        overlay=overlay,
        config=text,
    )


def _tree(job: JobSpec, places: Places) -> Path:
    """Where the job's own tree is put together: what was asked for below, the skeleton above.

    The runtime makes the places to mount at in the upper part, and then all of it read-only.
    """
    return places.staged(job.job, "tree")


def skeleton(job: JobSpec, uid: int, host: Host) -> Skeleton:
    """The read-only tree around the mounts; the same for every job but for its names."""
    files = {
        "etc/hosts": f"127.0.0.1 localhost {job.job}\n::1 localhost ip6-localhost {job.job}\n",
        "etc/hostname": f"{job.job}\n",
        "etc/resolv.conf": "nameserver 127.0.0.1\noptions timeout:5 attempts:2\n",
        "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nservices: files\n",
        "etc/passwd": f"root:x:0:0:root:/:/usr/sbin/nologin\njob:x:{uid}:{uid}:job:{WORK}:/bin/sh\n",
        "etc/group": f"root:x:0:\njob:x:{uid}:\n",
    }
    return Skeleton(_DIRS, () if job.root else host.links, tuple(files.items()))


def config(job: JobSpec, *, uid: int, host: Host, binds: Iterable[Bind], places: Places) -> dict[str, Any]:
    """The `config.json` of a job."""
    return {
        "ociVersion": "1.0.2",
        "hostname": job.job,
        "root": {"path": str(_tree(job, places)) if job.root else "rootfs", "readonly": True},
        "process": _process(job, uid, host.max_open_files),
        "mounts": [
            *_system_mounts(),
            *_of_host(job, host),
            *_own_mounts(job.limits, uid),
            *map(_bind, binds),
        ],
        "linux": {
            "namespaces": [
                *({"type": kind} for kind in ("pid", "mount", "ipc", "uts", "cgroup")),
                {"type": "network", "path": str(places.netns(job.job))},
            ],
            "resources": _resources(job.limits, host.disks) if host.cgroups else {},
            "cgroupsPath": f"/{places.group(job.job)}",
            "seccomp": profile(job.profile, host.machine),
            "maskedPaths": [f"/proc/{name}" for name in _MASKED],
            "readonlyPaths": [f"/proc/{name}" for name in _READ_ONLY],
        },
    }


def _process(job: JobSpec, uid: int, max_open_files: int) -> dict[str, Any]:
    return {
        "terminal": False,
        "user": {"uid": uid, "gid": uid, "umask": 0o022},
        "args": ["/bin/sh", "-c", _INIT, "exeat-init", *confined(job)],
        "env": [f"{name}={value}" for name, value in job.env],
        "cwd": job.cwd,
        "noNewPrivileges": True,
        "oomScoreAdj": 500,  # when the machine runs short, jobs go before the gateway
        "capabilities": {
            kind: [] for kind in ("bounding", "effective", "inheritable", "permitted", "ambient")
        },
        "rlimits": _rlimits(job.limits, max_open_files),
    }


def _rlimits(limits: Limits, max_open_files: int) -> list[dict[str, Any]]:
    files = min(limits.files, max_open_files)
    held = {"NOFILE": (files, min(1024, files)), "CORE": (0, 0)}
    if limits.file:
        held["FSIZE"] = (limits.file, limits.file)
    return [{"type": f"RLIMIT_{name}", "hard": hard, "soft": soft} for name, (hard, soft) in held.items()]


def _of_host(job: JobSpec, host: Host) -> list[dict[str, Any]]:
    return [] if job.root else [_bind(Bind(path, path)) for path in ("/usr", *host.etc)]


def _system_mounts() -> list[dict[str, Any]]:
    tight = ["nosuid", "nodev", "noexec"]
    return [
        _mount("/proc", "proc", tight),
        _mount("/dev", "tmpfs", ["nosuid", "noexec", "mode=755", "size=64k"]),
        _mount("/dev/pts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
        _mount("/dev/shm", "tmpfs", [*tight, "mode=1777", "size=64m"]),  # noqa: S108
    ]


def _own_mounts(limits: Limits, uid: int) -> list[dict[str, Any]]:
    """What the job may write to, with a size."""
    options = ["nosuid", "nodev", "nr_inodes=200k"]
    mounts = [_mount("/tmp", "tmpfs", [*options, "mode=1777", f"size={limits.tmp}"])]  # noqa: S108
    if limits.work:
        owner = ["mode=0700", f"uid={uid}", f"gid={uid}"]
        mounts.append(_mount(WORK, "tmpfs", [*options, *owner, f"size={limits.work}"]))
    return mounts


def _mount(target: str, kind: str, options: list[str]) -> dict[str, Any]:
    return {"destination": target, "type": kind, "source": kind, "options": options}


def _bind(bind: Bind) -> dict[str, Any]:
    if bind.edit:
        # No name of the job's or of a person's is in these options, which a comma or a colon would part.
        layers = f"lowerdir={bind.source}", f"upperdir={bind.edit}/upper", f"workdir={bind.edit}/work"
        # A folder that was renamed is then a copy, so that the layer can be read without the folder below it.
        plain = "redirect_dir=off", "metacopy=off", "index=off"
        return _mount(bind.target, "overlay", ["nosuid", "nodev", *layers, *plain])
    # Not recursive: `ro` would not reach file systems mounted below, so those are left out.
    options = ["bind", "nosuid", "nodev", "rw" if bind.writable else "ro"]
    return {"destination": bind.target, "type": "bind", "source": bind.source, "options": options}


def _resources(limits: Limits, disks: Iterable[tuple[int, int]]) -> dict[str, Any]:
    resources: dict[str, Any] = {
        "devices": [{"allow": False, "access": "rwm"}],
        "memory": {"limit": limits.memory},
        "pids": {"limit": limits.pids},
    }
    if limits.cpu:
        resources["cpu"] = {"quota": limits.cpu * _CPU_PERIOD_US // 1000, "period": _CPU_PERIOD_US}
    if limits.io:
        each = [{"major": major, "minor": minor, "rate": limits.io} for major, minor in disks]
        resources["blockIO"] = {"throttleReadBpsDevice": each, "throttleWriteBpsDevice": each}
    return resources
