"""The bare runtimes beside bench.sandbox: `true` in a container, with what each can do by itself."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from exeat.sandbox import cgroup, oci
from exeat.sandbox.launcher import Places
from exeat.sandbox.names import parse_name
from exeat.sandbox.spec import JobSpec, Profile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_BWRAP = "--unshare-all --ro-bind /usr /usr --symlink usr/lib /lib --symlink usr/lib64 /lib64"
_PODMAN = (
    "podman run --rm --network none --log-driver none --cgroup-manager=cgroupfs --cgroups=disabled"
    " --ulimit nofile=1024:1024 --ulimit nproc=512:512 --volume /usr:/usr:ro"
)
# As our launcher does it: crun refuses a hybrid cgroup layout where it can see one.
_MASKED = ("unshare", "-m", "sh", "-c", f'umount -l {cgroup.UNIFIED} 2>/dev/null; exec "$@"', "sh")


def peers() -> Iterator[tuple[str, Callable[[], object]]]:
    """Name, and what runs `true` once; those that are installed."""
    yield "bare `true`", partial(_run, "true")
    if shutil.which("bwrap"):
        words = (*_BWRAP.split(), "--proc", "/proc", "--", "/usr/bin/true")
        yield "bubblewrap, no seccomp", partial(_run, "bwrap", *words)
    for name in ("crun", "runc"):
        if shutil.which(name):
            words = (name, "run", "--bundle", str(_bundle()), f"exeat-bench-{name}")
            yield f"{name} with our profile and limits", partial(_run, *_MASKED, *words)
    if shutil.which("podman"):
        words = (*_PODMAN.split(), "--rootfs", str(_bundle() / "rootfs"), "true")
        yield "podman, no network, no cgroup", partial(_run, *_MASKED, *words)


def _run(*words: str) -> None:
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{words[0]}: {done.stderr.strip()}")


def _bundle() -> Path:
    """Our own container, in a network namespace that the runtime makes, without the gateway's socket."""
    folder = Path(tempfile.mkdtemp(prefix="exeat-bench-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    places = Places(folder / "run", folder / "work")
    links = oci.merged_links(path.name for path in Path("/").iterdir() if path.is_symlink())
    host = oci.Host(os.uname().machine, links, (), cgroups=True, max_open_files=1024)
    job = JobSpec(parse_name("bench"), ("true",), (("PATH", "/usr/bin"),), (), "/", Profile.STANDARD, None)
    plan = oci.plan(job, uid=65534, host=host, places=places)
    config = json.loads(plan.config)
    config["process"]["args"] = ["true"]
    config["mounts"] = [m for m in config["mounts"] if not m["source"].startswith(str(folder))]
    config["linux"]["namespaces"][-1].pop("path")
    tree, root = oci.skeleton(job, 65534, host), folder / "rootfs"
    for name in ("", *tree.dirs):
        (root / name).mkdir()
    for name, target in tree.links:
        (root / name).symlink_to(target)
    (folder / "config.json").write_text(json.dumps(config))
    return folder
