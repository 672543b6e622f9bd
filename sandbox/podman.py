"""A job's bundle as podman takes it: the same container, said in options (pure).

Sources: podman-run(1) of podman 4.3; OCI runtime specification 1.0.2, config.md. podman makes a bundle of its
own from these, adds its parts (/sys, /dev/mqueue, /run/.containerenv), and gives that to crun or runc.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from exeat.sandbox.names import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

SECCOMP, ENVIRONMENT = "seccomp.json", "environment"
_ITS_OWN: Final = frozenset({"proc", "devpts"})  # kinds of mounts that it makes by itself
_ETC: Final = ("hosts", "hostname", "resolv.conf", "passwd", "group")  # it would write its own
# It knows neither owners nor a number of files here; the job is the container's only user.
_TMPFS: Final = "mode=1777,nosuid,nodev,notmpcopyup"
# What would be the person's choice elsewhere, and is the job's jail here.
_FIXED: Final = """
--rm --systemd=false --log-driver=none --no-hosts --http-proxy=false --image-volume=ignore
--read-only --read-only-tmpfs=false --cgroupns=private --ipc=private --uts=private
--cap-drop=all --security-opt=no-new-privileges --security-opt=label=disable
--security-opt=apparmor=unconfined --preserve-fds=3
--mount=type=tmpfs,destination=/sys,tmpfs-size=4096,tmpfs-mode=0555,ro
""".split()  # noqa: SIM905


def files(config: Mapping[str, Any], folder: Path) -> list[tuple[Path, str]]:
    """What it reads from files beside the bundle. Variables are not for the list of processes.

    Raises SpecError(runtime) for what it cannot do.
    """
    environment = config["process"]["env"]
    if any("\n" in each for each in environment):
        raise SpecError("runtime", "podman takes no variable with a line break in it")
    if any(mount["type"] == "overlay" for mount in config["mounts"]):
        raise SpecError("runtime", "under podman no job edits a folder (--edit): give it crun or runc")
    if "blockIO" in config["linux"]["resources"]:
        raise SpecError("runtime", "under podman no limit of io holds: give the node crun or runc")
    lines = "".join(f"{each}\n" for each in environment)
    return [(folder / SECCOMP, json.dumps(config["linux"]["seccomp"])), (folder / ENVIRONMENT, lines)]


def options(config: Mapping[str, Any], folder: Path) -> list[str]:
    """What stands between `podman run` and the name of the job: options, then root and command."""
    process, linux = config["process"], config["linux"]
    root = folder / config["root"]["path"]  # a relative one is in the bundle
    network = next(each["path"] for each in linux["namespaces"] if each["type"] == "network")
    user = process["user"]
    return [
        *_FIXED,
        f"--network=ns:{network}",
        f"--hostname={config['hostname']}",
        f"--user={user['uid']}:{user['gid']}",
        f"--umask={user['umask']:04o}",
        f"--workdir={process['cwd']}",
        f"--env-file={folder / ENVIRONMENT}",
        f"--oom-score-adj={process['oomScoreAdj']}",
        f"--security-opt=seccomp={folder / SECCOMP}",
        f"--security-opt=mask={':'.join((*linux['maskedPaths'], '/sys/fs/cgroup'))}",
        *_limits(process["rlimits"], linux["resources"]),
        *_mounts(config["mounts"]),
        *(_bind(f"{folder}/rootfs/etc/{name}", f"/etc/{name}", writable=False) for name in _ETC),
        "--rootfs",
        str(root),
        *process["args"],
    ]


def _limits(rlimits: list[dict[str, Any]], resources: Mapping[str, Any]) -> Iterator[str]:
    for row in rlimits:
        yield f"--ulimit={row['type'].removeprefix('RLIMIT_').lower()}={row['soft']}:{row['hard']}"
    if resources:
        yield f"--memory={resources['memory']['limit']}b"
        pids = resources["pids"]["limit"]
        yield from (f"--pids-limit={pids}", f"--ulimit=nproc={pids}:{pids}")  # else it asks for 4,194,304
    if cpu := resources.get("cpu"):
        yield from (f"--cpu-period={cpu['period']}", f"--cpu-quota={cpu['quota']}")


def _mounts(mounts: list[dict[str, Any]]) -> Iterator[str]:
    for mount in mounts:
        target, how = mount["destination"], mount["options"]
        if mount["type"] in _ITS_OWN or target == "/dev":
            continue
        if target == "/dev/shm":  # noqa: S108 - the container's own
            yield f"--shm-size={next(each for each in how if each.startswith('size='))[5:]}"
        elif mount["type"] == "tmpfs":
            size = next(each for each in how if each.startswith("size="))
            yield f"--tmpfs={target}:{size},{_TMPFS}"
        else:
            yield _bind(mount["source"], target, writable="ro" not in how)


def _bind(source: str, target: str, *, writable: bool) -> str:
    fields = ("type=bind", f"source={source}", f"destination={target}", f"ro={str(not writable).lower()}")
    return f"--mount={','.join(map(_field, (*fields, 'bind-nonrecursive=true', 'nosuid', 'nodev')))}"


def _field(text: str) -> str:
    """Of a line of CSV (RFC 4180), because a path may have a comma in it."""
    return '"' + text.replace('"', '""') + '"' if any(each in text for each in ',"') else text
