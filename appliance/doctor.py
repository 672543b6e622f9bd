"""What this machine lacks before exeat can run on it, each with the command that cures it.

A check is a small function from facts (texts, numbers, paths) to a `Check`; `examine` gathers
the facts. Nothing is changed and nothing is sent. The floor of each tool is the version that
the confinement tests ran on; distributions keep it and patch it.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import re
import resource
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import exeat
from exeat.appliance.preflight import RUNTIMES, first_unreadable, runtime
from exeat.policy.addresses import format_address, parse_address
from exeat.policy.names import MalformedError
from exeat.proxy import relays

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from exeat.appliance.config import Config

SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MIB = 1024 * 1024

# capabilities(7): what the warden and the supervisor use, by bit number.
CAPABILITIES = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_SETPCAP": 8,
    "CAP_NET_BIND_SERVICE": 10,
    "CAP_NET_ADMIN": 12,
    "CAP_SYS_CHROOT": 18,
    "CAP_SYS_ADMIN": 21,
    "CAP_MKNOD": 27,
}


class Status(StrEnum):
    OK = "ok"
    WARN = "warn"  # works, with a limit that is named
    FAIL = "fail"  # exeat cannot start or cannot confine


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. `fix` is the next thing to do, "" when there is nothing."""

    name: str
    status: Status
    detail: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Tool:
    """A program we start: its Debian package, and the oldest version that was tested."""

    name: str
    package: str
    minimum: tuple[int, ...]
    arguments: tuple[str, ...] = ("--version",)


RUNTIME_TOOLS = {"crun": Tool("crun", "crun", (1, 8)), "runc": Tool("runc", "runc", (1, 1))}
TOOLS = (
    Tool("nft", "nftables", (1, 0, 6)),
    Tool("ip", "iproute2", (6, 1), ("-V",)),
    Tool("unshare", "util-linux", (2, 38)),
)


def ok(name: str, detail: str) -> Check:
    return Check(name, Status.OK, detail)


def warn(name: str, detail: str, fix: str) -> Check:
    return Check(name, Status.WARN, detail, fix)


def fail(name: str, detail: str, fix: str) -> Check:
    return Check(name, Status.FAIL, detail, fix)


def check_root(euid: int) -> Check:
    if euid == 0:
        return ok("root", "running as root")
    return fail("root", f"running as uid {euid}; namespaces need root", "sudo exeat doctor")


def check_capabilities(proc_status: str) -> Check:
    """`proc_status` is /proc/self/status: root in a container often lacks some of root's powers."""
    match = re.search(r"^CapEff:\s*([0-9a-f]+)$", proc_status, re.MULTILINE)
    held = int(match.group(1), 16) if match else 0
    lacking = [name for name, bit in CAPABILITIES.items() if not held >> bit & 1]
    if not lacking:
        return ok("capabilities", "all that the warden needs")
    return fail(
        "capabilities",
        f"not held: {' '.join(lacking)}",
        "run on a machine (or in a container with these capabilities) instead",
    )


def check_python(version: tuple[int, ...]) -> Check:
    text = ".".join(str(part) for part in version)
    if version >= (3, 11):
        return ok("python", text)
    return fail("python", f"{text}, needs 3.11", "use Debian 12 or Ubuntu 24.04, or newer")


def check_namespaces() -> Check:
    done = _run(["unshare", "--net", "--mount", "true"])
    if done is not None and done.returncode == 0:
        return ok("namespaces", "network and mount namespaces can be made")
    reason = done.stderr.strip() if done else "unshare did not run"
    return fail("namespaces", reason, "run as root on a kernel with CONFIG_NET_NS")


def check_ipv6(proc_net: Path, disable_parameter: Path) -> Check:
    """A jail has sockets on ::1; a kernel without IPv6 (or with ipv6.disable=1) has no ::1."""
    disabled = disable_parameter.is_file() and disable_parameter.read_text().strip() != "0"
    if (proc_net / "if_inet6").exists() and not disabled:
        return ok("ipv6", "available for the jails' own ::1")
    return fail("ipv6", "switched off in the kernel", "remove ipv6.disable=1 from the kernel command line")


def check_seccomp(actions: str) -> Check:
    """`actions` is /proc/sys/kernel/seccomp/actions_avail."""
    if {"errno", "allow"} <= set(actions.split()):
        return ok("seccomp", "filters are available")
    return fail("seccomp", "no filters in this kernel", "use a kernel with CONFIG_SECCOMP_FILTER")


def check_landlock(abi: int) -> Check:
    """`abi` is the answer of landlock_create_ruleset(2) to the question for its version."""
    if abi > 0:
        return ok("landlock", f"ABI {abi}, over the mounts of jobs that are given files")
    return warn("landlock", "not in this kernel: mounts alone confine files", "boot with lsm=landlock,...")


def check_cgroups(mountinfo: str) -> Check:
    """`mountinfo` is /proc/self/mountinfo."""
    mounts = [line.split(" - ", 1) for line in mountinfo.splitlines() if " - " in line]
    kinds = [(left.split()[4], right.split()[0]) for left, right in mounts]
    if ("/sys/fs/cgroup", "cgroup2") in kinds:
        return ok("cgroups", "version 2")
    names = {kind for _, kind in kinds}
    if "cgroup" in names:
        layout = "hybrid (version 1 with a version 2 tree)" if "cgroup2" in names else "version 1"
        return warn(
            "cgroups",
            f"{layout}: job limits go through version 1",
            "boot with systemd.unified_cgroup_hierarchy=1",
        )
    return warn(
        "cgroups", "none mounted: jobs have no memory or process limits", "mount cgroup2 on /sys/fs/cgroup"
    )


def check_reuseport() -> Check:
    """Two listeners on one port: how a restarted gateway takes over a live jail."""
    with socket.socket() as first, socket.socket() as second:
        try:
            for sock in (first, second):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            first.bind(("127.0.0.1", 0))
            second.bind(first.getsockname())
        except OSError as error:
            return fail("reuseport", f"SO_REUSEPORT: {error.strerror}", "use a Linux kernel of this decade")
    return ok("reuseport", "two sockets can share a port")


def check_splice() -> Check:
    """Socket to pipe in the kernel: how the relay moves bytes."""
    near, far = socket.socketpair()
    read, write = os.pipe()
    try:
        far.send(b"exeat")
        moved = os.splice(near.fileno(), write, 5)
    except OSError as error:
        return fail(
            "splice", f"splice: {error.strerror}", "allow the splice system call (a seccomp profile?)"
        )
    finally:
        near.close()
        far.close()
        os.close(read)
        os.close(write)
    return ok("splice", "works") if moved == 5 else fail("splice", f"moved {moved} of 5 bytes", "report this")


def check_relay(wanted: str) -> Check:
    """What moves the bytes; both do the same, one takes less of the machine."""
    try:
        found = relays.in_use(wanted)
    except relays.NotBuiltError as error:
        return fail(
            "relay", str(error), "apt-get install gcc libc6-dev python3-dev, then install exeat again"
        )
    if found == relays.PYTHON and wanted == relays.AUTO:
        return warn(
            "relay",
            "in Python; the compiled one was not built and would take less CPU",
            "apt-get install gcc libc6-dev python3-dev, then install exeat again",
        )
    return ok("relay", found)


def check_tool(tool: Tool) -> Check:
    install = f"apt-get install {tool.package}"
    path = shutil.which(tool.name, path=SEARCH_PATH)
    done = _run([path, *tool.arguments]) if path else None
    if path is None or done is None:
        return fail(tool.name, "not found", install)
    match = re.search(r"\d+(?:\.\d+)+", done.stdout + done.stderr)
    version = tuple(int(part) for part in match.group().split(".")) if match else ()
    if match and version >= tool.minimum:
        return ok(tool.name, f"{match.group()} ({path})")
    floor = ".".join(str(part) for part in tool.minimum)
    return fail(
        tool.name, f"{match.group() if match else 'unknown version'}, tested from {floor} on", install
    )


def check_runtime(configured: str) -> Check:
    """The program that jobs run in: the configured one, or the one that would be chosen."""
    name = runtime(configured)
    check = check_tool(RUNTIME_TOOLS.get(name, Tool(name, name, (1,))))
    if check.status is Status.OK and not configured and name != RUNTIMES[0]:
        cure = f"apt-get install {RUNTIMES[0]}"
        return warn(name, f"{check.detail}: jobs start more slowly in it than in {RUNTIMES[0]}", cure)
    return check


def check_users(names: Iterable[str], known: Callable[[str], object] = pwd.getpwnam) -> Check:
    missing = []
    for name in names:
        try:
            known(name)
        except KeyError:
            missing.append(name)
    if not missing:
        return ok("users", "the service users exist")
    make = "useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin"
    return fail("users", f"not there: {' '.join(missing)}", " && ".join(f"{make} {name}" for name in missing))


def check_readable(name: str, paths: Iterable[Path]) -> Check:
    """May the service users, who are others to every file here, read all of `paths`?"""
    wanted = list(paths)
    for path in wanted:
        try:
            blocker = first_unreadable(path)
        except OSError as error:
            return fail(name, f"{path}: {error.strerror}", "install exeat again")
        if blocker is not None:
            return fail(
                name,
                f"{path} is closed to the service users by {blocker}",
                f"install exeat outside {blocker} with /usr/bin/python3, as ./dev setup does",
            )
    return ok(name, f"{len(wanted)} paths readable by the service users")


def check_folder(name: str, folder: Path) -> Check:
    """Can `folder` be made or written? As root the question is a read-only or odd file system."""
    existing = _existing(folder)
    if not existing.is_dir():
        return fail(name, f"{existing} is not a folder", f"move {existing} away")
    if not os.access(existing, os.W_OK | os.X_OK):
        return fail(
            name, f"{existing} cannot be written", f"make {existing} writable, or choose another folder"
        )
    return ok(name, str(folder) if existing == folder else f"{folder} (can be made)")


def check_disk(free_bytes: int, free_files: int) -> Check:
    """Room where the ledger lives: when it is full, new flows are refused. `free_files` 0: no such limit."""
    detail = f"{free_bytes // MIB} MiB free"
    if free_bytes < 64 * MIB or 0 < free_files < 100:
        return fail("disk", f"{detail}, {free_files} files: the ledger cannot record", "free some space")
    if free_bytes < 1024 * MIB:
        return warn("disk", f"{detail}: the ledger refuses flows when it is full", "free some space")
    return ok("disk", detail)


def check_clock(now: float, newest: float) -> Check:
    """Leases end by the clock. It cannot be earlier than the newest file of exeat itself."""
    text = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now + 86_400 < newest:
        return fail("clock", f"{text} is before exeat was installed", "timedatectl set-ntp true")
    return ok("clock", text)


def check_resolver(configured: Sequence[str], resolv_conf: str) -> Check:
    if configured:
        return ok("resolver", " ".join(configured))
    found = list(_nameservers(resolv_conf))
    example = ", ".join(f'"{each}"' for each in found) or '"ADDRESS:53"'
    return fail(
        "resolver",
        "no upstream configured: the guard has nobody to ask, and does not start",
        f"write `upstream = [{example}]` under [dns] in /etc/exeat/exeat.toml",
    )


def check_descriptors(hard: int) -> Check:
    """RLIMIT_NOFILE: a flow takes two sockets and, in bulk, two pipes."""
    if hard == resource.RLIM_INFINITY or hard >= 16_384:
        return ok("descriptors", f"limit {'none' if hard == resource.RLIM_INFINITY else hard}")
    verdict = warn if hard >= 4096 else fail
    return verdict(
        "descriptors", f"limit {hard}: about {max(hard - 100, 0) // 6} flows at once", "ulimit -n 65536"
    )


def check_lab(treat_as_public: Sequence[str]) -> Check:
    if not treat_as_public:
        return ok("lab", "no test network is trusted")
    return warn(
        "lab", f"treated as public: {' '.join(treat_as_public)}", "remove [lab] unless this is a test network"
    )


def check_table(*, wanted: bool, loaded: bool) -> Check:
    """The host's table outlives exeat on purpose (docs/routing.md)."""
    if loaded and not wanted:
        return warn(
            "host table",
            "confines what no [[routing.host]] or [[routing.veth]] names any more",
            "nft delete table inet exeat",
        )
    return ok("host table", "loaded" if loaded else "none is loaded")


def examine(config: Config) -> list[Check]:
    """All checks, in the order in which a person would repair them."""
    return list(_examine(config))


def _examine(config: Config) -> Iterator[Check]:
    yield check_root(os.geteuid())
    if os.geteuid() == 0:  # for anyone else these would fail for that one reason
        yield check_capabilities(_text("/proc/self/status"))
        yield check_namespaces()
        yield check_folder("run folder", config.run_dir)
        yield check_folder("state folder", config.state_dir)
    yield check_python(sys.version_info[:3])
    yield check_runtime(config.sandbox.runtime)
    yield from (check_tool(tool) for tool in TOOLS)
    yield check_ipv6(Path("/proc/net"), Path("/sys/module/ipv6/parameters/disable"))
    yield check_seccomp(_text("/proc/sys/kernel/seccomp/actions_avail"))
    # landlock_create_ruleset has this number everywhere (uapi/asm-generic/unistd.h).
    yield check_landlock(ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1))
    yield check_cgroups(_text("/proc/self/mountinfo"))
    yield check_reuseport()
    yield check_splice()
    yield check_relay(config.proxy.relay)
    users = config.users
    optional = [users.export] if config.exports else []
    optional += [users.console] if config.console.listen else []
    yield check_users((users.gateway, users.ledger, users.control, *optional))
    yield check_readable("interpreter", (Path(sys.executable), Path(os.__file__)))
    sources = list(_sources())
    yield check_readable("package", sources)
    stats = os.statvfs(_existing(config.state_dir))
    yield check_disk(stats.f_bavail * stats.f_frsize, stats.f_favail)
    yield check_clock(time.time(), max(path.stat().st_mtime for path in sources))
    yield check_resolver(config.dns.upstream, _text("/etc/resolv.conf"))
    yield check_descriptors(resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    yield check_lab(config.lab.treat_as_public)
    listed = _run(["nft", "list", "table", "inet", "exeat"])
    loaded = listed is not None and listed.returncode == 0
    yield check_table(wanted=bool(config.routing.members), loaded=loaded)


def _sources() -> Iterator[Path]:
    """Every module of the package, through the links of an editable install."""
    for root in exeat.__path__:
        for folder, _, names in os.walk(root, followlinks=True):
            yield from (Path(folder) / name for name in names if name.endswith(".py"))


def _nameservers(resolv_conf: str) -> Iterator[str]:
    for line in resolv_conf.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                address = parse_address(words[1])
            except MalformedError:
                continue
            text = format_address(address)
            yield f"[{text}]:53" if address.family == 6 else f"{text}:53"


def _existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that is there."""
    return next(each for each in (path, *path.parents) if each.exists())


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _run(command: list[str]) -> subprocess.CompletedProcess[str] | None:
    environment = {"PATH": SEARCH_PATH, "LANG": "C.UTF-8"}
    try:
        return subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
