"""Debian or Ubuntu hosts with a systemd of their own, on a bridge of their own, reached by ssh.

    control (10.77.0.1) == bridge == h1 (10.77.0.11), h2 (10.77.0.12), ...

Nothing else is on the bridge and there is no way out. The tree they run from is made once by
mmdebstrap and kept in CACHE; each host writes to memory only (`--volatile=overlay`).
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import signal
import subprocess
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.running import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

CACHE = Path("/var/cache/exeat-dev")
PACKAGES = [
    *("systemd", "systemd-sysv", "dbus", "openssh-server", "python3", "python3-venv", "util-linux", "procps"),
    *("nftables", "libnftables1", "iproute2", "crun", "ca-certificates"),
]
CAPABILITIES = "CAP_NET_ADMIN,CAP_NET_RAW,CAP_SYS_ADMIN"
CGROUPS = Path("/sys/fs/cgroup")


def run(*words: object, timeout: float = 60) -> str:
    """The standard output of a command that succeeds; otherwise AssertionError with what it said."""
    command = [str(word) for word in words]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


@contextlib.contextmanager
def cached(key: str, make: Callable[[Path], object]) -> Iterator[Path]:
    """CACHE/`key`, made by `make` in a folder beside it if it is not there; held while it is used."""
    CACHE.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (CACHE / f"{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        place = CACHE / key
        if not place.is_dir():
            with tempfile.TemporaryDirectory(dir=CACHE) as folder:
                made = Path(folder) / "made"
                make(made)
                made.rename(place)
        fcntl.flock(lock, fcntl.LOCK_SH)  # others may use it as well
        yield place


def release() -> dict[str, str]:
    """What /etc/os-release says of this machine (os-release(5))."""
    lines = Path("/etc/os-release").read_text().splitlines()
    return {key: value.strip('"') for key, _, value in (line.partition("=") for line in lines) if key}


def make_tree(place: Path) -> None:
    """A minimal system of this machine's own suite, so that one wheel fits both."""
    about = release()
    areas = ["--components=main,universe"] if about["ID"] == "ubuntu" else []
    include = f"--include={','.join(PACKAGES)}"
    tool = ["mmdebstrap", "--quiet", "--variant=minbase", include, *areas]
    run(*tool, about["VERSION_CODENAME"], place, timeout=900)
    for name in ("etc/hostname", "etc/machine-id", "etc/resolv.conf"):
        (place / name).unlink(missing_ok=True)
    place.chmod(0o755)


@contextlib.contextmanager
def tree() -> Iterator[Path]:
    """The root filesystem of a host, not to be written to."""
    said = f"{release()['VERSION_CODENAME']} {PACKAGES}"
    with cached(f"tree-{hashlib.sha256(said.encode()).hexdigest()[:12]}", make_tree) as place:
        yield place


def hierarchies() -> list[Path]:
    """Where systemd-nspawn wants a cgroup that is the host's own: cgroup v2, and v1's own hierarchy."""
    if (CGROUPS / "cgroup.procs").exists():
        return [CGROUPS]
    return [place for place in (CGROUPS / "unified", CGROUPS / "systemd") if place.is_dir()]


class Host:
    """One booted host. `machine` is also its namespace, `address` where its sshd listens."""

    def __init__(self, name: str, machine: str, root: Path, address: str, log: Path) -> None:
        self.name, self.address = name, address
        self._cgroups = [place / machine for place in hierarchies()]
        for place in self._cgroups:
            place.mkdir()
        # Its own cgroup first: on the second boot the old one would still be in the way (EBUSY).
        enter = "".join(f"echo $$ > {place}/cgroup.procs; " for place in self._cgroups)
        nspawn = (
            f"exec systemd-nspawn --quiet --directory={root} --volatile=overlay --register=no --keep-unit "
            f"--network-namespace-path=/run/netns/{machine} --machine={machine} --hostname={name} "
            f"--console=pipe --link-journal=no --settings=no --capability={CAPABILITIES} --boot "
            "--system-call-filter=@keyring"  # crun makes a keyring for each container
        )
        self._log = log
        with log.open("w") as said:
            self._process = subprocess.Popen(
                ["sh", "-c", enter + nspawn],
                env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )

    def inside(self, *words: object, timeout: float = 60) -> str:
        """What a command says that runs on it and succeeds."""
        enter = ("nsenter", f"--target={self._init()}", "-m", "-p", "-u", "-i", "-n", "-C")
        clean = ("--root", "--wd=/", "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin")
        return run(*enter, *clean, *words, timeout=timeout)

    def write(self, path: str, text: str) -> None:
        """A file on it, for everybody to read."""
        target = Path(f"/proc/{self._init()}/root{path}")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def wait_booted(self) -> None:
        def booted() -> bool:
            assert self._process.poll() is None, self._log.read_text()
            with contextlib.suppress(AssertionError, OSError):
                return self.inside("systemctl", "is-active", "ssh.service").strip() == "active"
            return False

        wait_for(booted, seconds=60)

    def _init(self) -> int:
        """The pid here of its first process."""
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        assert children, "it has not started"
        return int(children[0])

    def close(self) -> None:
        with contextlib.suppress(AssertionError, OSError, ValueError):
            os.kill(self._init(), signal.SIGKILL)  # the kernel ends all that is in its pid namespace
        self._process.kill()
        self._process.wait()
        for place in self._cgroups:
            wait_for(functools.partial(remove_cgroup, place), seconds=30)


def remove_cgroup(place: Path) -> bool:
    """Remove it and those below it. False while something in there is still ending."""
    for folder in sorted((path for path in place.rglob("*") if path.is_dir()), reverse=True):
        with contextlib.suppress(OSError):
            folder.rmdir()
    with contextlib.suppress(OSError):
        place.rmdir()
    return not place.exists()


class Hosts:
    """Some hosts, and the namespace `control` from which they are reached."""

    def __init__(self, names: Iterable[str], root: Path, key: Path) -> None:
        tag = uuid.uuid4().hex[:6]
        self.control = f"exl-{tag}-c"
        self.hosts: dict[str, Host] = {}
        self.closing = contextlib.ExitStack()
        try:
            self._network()
            for number, name in enumerate(names, start=11):
                machine = f"exl-{tag}-{name}"
                self._plug(machine, number)
                host = Host(name, machine, root, f"10.77.0.{number}", key.with_name(f"{name}.log"))
                self.closing.callback(host.close)
                self.hosts[name] = host
            for host in self.hosts.values():
                host.wait_booted()
                host.write("/root/.ssh/authorized_keys", key.with_suffix(".pub").read_text())
        except BaseException:
            self.close()
            raise

    def _network(self) -> None:
        self._namespace(self.control)
        ip = ("ip", "-n", self.control)
        run(*ip, "link", "add", "bridge", "type", "bridge")
        run(*ip, "address", "add", "10.77.0.1/24", "dev", "bridge")
        run(*ip, "link", "set", "bridge", "up")

    def _plug(self, namespace: str, number: int) -> None:
        """A namespace whose eth0 is on the bridge."""
        self._namespace(namespace)
        run(
            "ip",
            "-n",
            self.control,
            "link",
            "add",
            f"to{number}",
            "type",
            "veth",
            "peer",
            "eth0",
            "netns",
            namespace,
        )
        run("ip", "-n", self.control, "link", "set", f"to{number}", "master", "bridge", "up")
        run("ip", "-n", namespace, "address", "add", f"10.77.0.{number}/24", "dev", "eth0")
        run("ip", "-n", namespace, "link", "set", "eth0", "up")

    def _namespace(self, name: str) -> None:
        run("ip", "netns", "add", name)
        self.closing.callback(run, "ip", "netns", "del", name)
        run("ip", "-n", name, "link", "set", "lo", "up")

    def close(self) -> None:
        self.closing.close()
