"""`exeat lab up` and `down`: all or nothing, safe to repeat, safe after a crash.

What belongs to a lab is found by its prefix, its folders and its pid files, never by memory:
`down` works after a kill -9 of everything, and `up` begins with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from exeat.appliance.lab import content, network, pki, plan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exeat.appliance.lab.plan import Lab

_SERVICE_SECONDS = 10.0
_APPLIANCE_SECONDS = 30.0
_STOP_SECONDS = 12.0
_APPLIANCE = "appliance"
_OURS = {"exeat", "crun", "/usr/bin/crun", "runc", "/usr/sbin/runc"}
_UP_LINE = b"exeat: up"
_TOOLS = {"ip": "iproute2", "nsenter": "util-linux", "git": "git"}
CRAWLER = Path(__file__).with_name("crawler.yaml")  # examples/policies/ links to it

# Only for `wait`: a process that makes and removes a lab itself is the parent of its services.
_CHILDREN: list[subprocess.Popen[bytes]] = []


class LabError(Exception):
    """The lab cannot be made; the message is one line. Nothing of it is left."""


def up(lab: Lab, *, appliance: bool = True) -> None:
    """Make the whole lab, replacing what is there. Raises LabError."""
    for tool, package in _TOOLS.items():
        if shutil.which(tool) is None:
            raise LabError(f"`{tool}` is missing: apt-get install {package}")
    with _lock(lab):
        _take_down(lab)
        shutil.rmtree(lab.failed, ignore_errors=True)
        try:
            _make(lab, appliance)
        except BaseException as error:
            kept = _keep_logs(lab, error)
            _take_down(lab)
            if isinstance(error, OSError | network.NetworkError | subprocess.CalledProcessError):
                raise LabError(f"{error}{kept}") from None
            if isinstance(error, LabError):
                raise LabError(f"{error}{kept}") from None
            raise


def down(lab: Lab, *, keep_failed: bool = False) -> None:
    """Remove every process, mount, namespace and file of the lab, and prove it. Raises LabError.

    `keep_failed` spares the logs of a failure.
    """
    with _lock(lab):
        _take_down(lab)
        if not keep_failed:
            shutil.rmtree(lab.failed, ignore_errors=True)


def _make(lab: Lab, appliance: bool) -> None:
    for folder in (lab.pki, lab.www, lab.policies, lab.job, lab.log("x").parent, lab.pid_file("x").parent):
        folder.mkdir(parents=True)
    lab.run_dir.chmod(0o755)
    pki.create(lab.pki)
    content.create(lab.www)
    shutil.copyfile(CRAWLER, lab.policies / CRAWLER.name)
    shutil.copyfile(lab.ca, lab.job / "ca.pem")
    lab.config.write_text(plan.configuration(lab))
    network.create(lab)
    waits = [(node.service, _start_service(lab, node)) for node in plan.NODES if node.service]
    for name, ready in waits:
        _await_ready(lab, name, ready)
    if appliance:
        start_appliance(lab)


def _start_service(lab: Lab, node: plan.Node) -> int:
    """Start a node's service; returns the descriptor on which it will say that it listens."""
    read, write = os.pipe()
    command = [
        *_enter(lab, node.name), "-m", f"exeat.appliance.lab.{node.service}",
        "--events", str(lab.events(node.service)), "--run-dir", str(lab.run_dir), "--ready-fd", str(write),
    ]  # fmt: skip
    _spawn(lab, node.service, command, (write,))
    os.close(write)
    return read


def _enter(lab: Lab, node: str) -> list[str]:
    # -I: neither the current folder nor the environment decides which code runs as root.
    return ["nsenter", f"--net={lab.namespace_path(node)}", sys.executable, "-I"]


def _spawn(lab: Lab, name: str, command: list[str], fds: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
    with lab.log(name).open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=fds,
            start_new_session=True,
            cwd="/",
        )
    _CHILDREN.append(process)
    lab.pid_file(name).write_text(f"{process.pid} {_start_time(process.pid)}\n")
    return process


def _await_ready(lab: Lab, name: str, descriptor: int) -> None:
    with contextlib.closing(os.fdopen(descriptor, "rb", buffering=0)) as ready:
        readable, _, _ = select.select([ready], [], [], _SERVICE_SECONDS)
        if not readable or not ready.read(1):
            raise LabError(f"the lab's {name} did not start: {_last_line(lab.log(name))}")


def start_appliance(lab: Lab) -> None:
    """`exeat up` on the gateway node, in the background. Raises LabError when it does not come up."""
    command = [*_enter(lab, "gw"), "-m", "exeat", "--config", str(lab.config), "up"]
    log = lab.log(_APPLIANCE)
    said_before = log.stat().st_size if log.exists() else 0
    process = _spawn(lab, _APPLIANCE, command)
    deadline = time.monotonic() + _APPLIANCE_SECONDS
    while _UP_LINE not in log.read_bytes()[said_before:]:
        if process.poll() is not None:
            raise LabError(f"the appliance did not start: {_last_line(lab.log(_APPLIANCE))}")
        if time.monotonic() > deadline:
            raise LabError(f"the appliance was not up after {_APPLIANCE_SECONDS:.0f} s: see its log")
        time.sleep(0.02)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1] if lines else "it said nothing"


def _keep_logs(lab: Lab, error: BaseException) -> str:
    """Copy the logs of a failed start aside; returns the sentence that says where."""
    logs = lab.log("x").parent
    if not isinstance(error, LabError) or not logs.is_dir():
        return ""
    shutil.copytree(logs, lab.failed, dirs_exist_ok=True)
    return f" (logs kept in {lab.failed})"


# -- taking down ------------------------------------------------------------------------------


def _take_down(lab: Lab) -> None:
    # The appliance first and gently: it ends its jobs and their flows in order.
    _stop([pid for pid in [_recorded(lab, _APPLIANCE)] if pid])
    jails = [Path(point) for point in _mounts_below(lab.run_dir)]
    _stop([pid for jail in jails for pid in network.processes(jail)])
    nodes = [lab.namespace_path(name.removeprefix(lab.prefix)) for name in network.namespaces(lab)]
    _stop([pid for node in nodes for pid in network.processes(node)])
    _stop(_processes_of(lab))  # `exeat run` in other terminals: their appliance is gone
    for point in reversed(_mounts_below(lab.run_dir)):
        subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)
    network.destroy(lab)
    for folder in (lab.run_dir, lab.state_dir):
        shutil.rmtree(folder, ignore_errors=True)
    if left := leftovers(lab):
        raise LabError(f"cannot be removed: {'; '.join(left)}")


def leftovers(lab: Lab) -> list[str]:
    """Whatever of the lab is still on the machine, by every name it could have."""
    found = [f"namespace {name}" for name in network.namespaces(lab)]
    found += [f"folder {folder}" for folder in (lab.run_dir, lab.state_dir) if folder.exists()]
    found += [f"mount {point}" for point in _mounts_below(lab.run_dir)]
    return found + [f"process {pid}" for pid in _processes_of(lab)]


def _processes_of(lab: Lab) -> list[int]:
    """Our own processes and their containers, told by a path of the lab on their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                ours = any(word in _OURS or word.startswith("exeat.") for word in words)
                if ours and any(f"{lab.run_dir}/" in word for word in words):
                    found.append(int(entry.name))
    return found


def _recorded(lab: Lab, name: str) -> int:
    """The pid of a pid file, if that very process still runs (a reused pid is another's)."""
    try:
        pid, started = lab.pid_file(name).read_text().split()
    except (OSError, ValueError):
        return 0
    return int(pid) if _start_time(int(pid)) == started else 0


def _start_time(pid: int) -> str:
    """Clock ticks between boot and the process's start (proc(5), field 22), "" when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _stop(pids: list[int]) -> None:
    """SIGTERM to all, and after a while SIGKILL to what is left; returns when all have ended."""
    handles = []
    for pid in set(pids) - {os.getpid()}:
        with contextlib.suppress(ProcessLookupError):
            handles.append(os.pidfd_open(pid))
    for number, seconds in ((signal.SIGTERM, _STOP_SECONDS), (signal.SIGKILL, 5.0)):
        for handle in handles:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, number)
        handles = _still_running(handles, time.monotonic() + seconds)
    for handle in handles:
        os.close(handle)
    _reap()


def _still_running(handles: list[int], deadline: float) -> list[int]:
    while handles:
        ended, _, _ = select.select(handles, [], [], max(0.0, deadline - time.monotonic()))
        if not ended:
            break
        for handle in ended:
            handles.remove(handle)
            os.close(handle)
    return handles


def _reap() -> None:
    """Collect those of our children that have ended, so that none stays as a zombie."""
    _CHILDREN[:] = [child for child in _CHILDREN if child.poll() is None]


def _mounts_below(folder: Path) -> list[str]:
    """Mount points in `folder`, outermost first (proc(5), mountinfo field 5)."""
    points = (line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return [point for point in points if point.startswith(f"{folder}/")]


@contextlib.contextmanager
def _lock(lab: Lab) -> Iterator[None]:
    """One `up` or `down` of a lab at a time."""
    path = lab.run_dir.with_name(lab.run_dir.name + ".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LabError("another `exeat lab` command is at work: wait for it") from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
