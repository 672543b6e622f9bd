"""What the warden may be asked, as checked values (pure).

The warden runs as root and its caller does not: a request is judged here as if control had been
taken over. Only values that passed leave this module; nothing in the warden reads raw JSON.
Whether a path is a symlink is the kernel's knowledge and judged when the warden opens it.
"""

from __future__ import annotations

import posixpath
import re
import socket  # constants only
import stat
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from exeat.sandbox.device import NAME, SOCKET, Device
from exeat.sandbox.limits import Limits, needs_cgroup, parse_limits
from exeat.sandbox.names import JailName, SpecError, parse_name
from exeat.sandbox.routing import parse_pinholes
from exeat.sandbox.rules import Pinhole, Table

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path, PurePath

WORK: Final = "/work"  # the job's own folder, inside the container
GATEWAY: Final = "/run/exeat"  # holds proxy.sock, inside the container
IMAGES: Final = "images"  # below the state folder: the trees of images, which root made
MIN_UID: Final = 1000  # below are the system's own users

MAX_ARGS: Final = 4096
MAX_ENV: Final = 1024
MAX_MOUNTS: Final = 64
MAX_STRING: Final = 128 * 1024  # bytes; the kernel's MAX_ARG_STRLEN (execve(2))
MAX_TOTAL: Final = 1024 * 1024  # bytes of argv and env together; half of what a default stack takes
MAX_JAILS: Final = 8  # whose rules are listed in one request: the warden does nothing else meanwhile
MAX_PATH: Final = 4095  # bytes; PATH_MAX without its NUL

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}", re.ASCII)

# Inside the container these belong to the jail; a mount on, or above, one of them would replace it.
_TAKEN: Final = tuple(
    "/usr /etc /proc /sys /dev /bin /sbin /lib /lib64 /lib32 /libx32 /run/exeat".split()  # noqa: SIM905
)
_EXACT: Final = ("/", "/run", "/tmp", WORK)  # noqa: S108 - the container's own

# null, zero, full, random and urandom: major 1 (linux/Documentation/admin-guide/devices.txt), as st_rdev.
_HARMLESS: Final = tuple(1 << 8 | minor for minor in (3, 5, 7, 8, 9))

# name -> (family, type, address, port). UDP is bound to one address, so that an answer leaves from
# the address that was asked.
INET_SOCKETS: Final = {
    f"{name}{version}": (family, kind, address, port)
    for name, kind, port in (
        ("proxy", socket.SOCK_STREAM, 3128),
        ("socks", socket.SOCK_STREAM, 1080),
        ("trans", socket.SOCK_STREAM, 3129),
        ("udp", socket.SOCK_DGRAM, 3128),
        ("dnsu", socket.SOCK_DGRAM, 53),
        ("dnst", socket.SOCK_STREAM, 53),
    )
    for version, family, address in ((4, socket.AF_INET, "127.0.0.1"), (6, socket.AF_INET6, "::1"))
}
SOCKETS: Final = (
    *("proxy4", "proxy6", "proxyu", "socks4", "socks6", "trans4", "trans6"),
    *("udp4", "udp6", "dnsu4", "dnsu6", "dnst4", "dnst6"),
)

# verb -> (arguments that must be there, arguments that may be there)
VERBS: Final[dict[str, tuple[frozenset[str], frozenset[str]]]] = {
    "jail.create": (frozenset({"jail"}), frozenset({"names"})),
    "jail.sockets": (frozenset({"jail"}), frozenset({"names"})),
    "jail.destroy": (frozenset({"jail"}), frozenset()),
    "jail.list": (frozenset(), frozenset()),
    "job.start": (
        frozenset({"job", "argv", "env", "mounts", "cwd", "profile", "user"}),
        frozenset({"limits", "root", "device"}),
    ),
    "job.wait": (frozenset({"job"}), frozenset()),
    "job.kill": (frozenset({"job"}), frozenset()),
    "job.pause": (frozenset({"job"}), frozenset()),
    "job.resume": (frozenset({"job"}), frozenset()),
    "job.remove": (frozenset({"job"}), frozenset()),
    "job.list": (frozenset(), frozenset()),
    "routing.set": (frozenset({"pinholes"}), frozenset()),
    "routing.status": (frozenset(), frozenset({"jails"})),
}
_ENVELOPE: Final = frozenset({"id", "verb", "fds"})


class Profile(StrEnum):
    """Which system calls a job may make (`seccomp.py`)."""

    STRICT = "strict"
    STANDARD = "standard"
    STANDARD_NET = "standard-net"


@dataclass(frozen=True, slots=True)
class Mount:
    """A host path that the job sees under the same name. Canonical and under one of the roots."""

    path: str
    writable: bool
    edited: bool = False  # the job's changes go to a layer of its own, and the path keeps what it has

    @property
    def owned(self) -> bool:
        """Must it belong to the job's user?"""
        return self.writable or self.edited


@dataclass(frozen=True, slots=True)
class JobSpec:
    """One job. `uid` is None for a fresh one, otherwise at least MIN_UID."""

    job: JailName
    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    mounts: tuple[Mount, ...]
    cwd: str
    profile: Profile
    uid: int | None
    limits: Limits = field(default_factory=Limits)
    root: str = ""  # the tree it sees as /, a folder under one of the roots; "" for the host's /usr
    device: Device | None = None  # opened by the launcher, as its standard input
    needs_cgroup: bool = False  # somebody asked for what only cgroups hold: without them it must not start


@dataclass(frozen=True, slots=True)
class Request:
    """A judged request. `name` is the jail or job it is about ("" for the lists)."""

    verb: str
    name: JailName
    sockets: tuple[str, ...] = SOCKETS
    job: JobSpec | None = None
    pinholes: tuple[Pinhole, ...] = ()
    jails: tuple[JailName, ...] = ()  # whose rules are to be looked at


@dataclass(frozen=True)
class WardenSettings:
    """`roots`: the folders below which a job's mounts must lie. The uids are those of fresh users.

    `table` is the host's; it is root's configuration, so control can open pinholes and nothing else.
    """

    run_dir: Path
    state_dir: Path
    control_uid: int
    uid_base: int
    uid_count: int
    roots: tuple[Path, ...]
    runtime: str = "crun"
    limits: Limits = field(default_factory=Limits)
    disks: tuple[tuple[int, int], ...] = ()  # major, minor; those that a limit of `io` is about
    table: Table = field(default_factory=Table)
    devices: tuple[Device, ...] = ()
    hook: str = ""  # a program that clears accelerators before each job

    @property
    def fresh_uids(self) -> range:
        return range(self.uid_base, self.uid_base + self.uid_count)

    def parse(self, message: Mapping[str, Any], fds: int) -> Request:
        """As `parse_request`; a job's own tree may be that of an image, too."""
        images = (self.state_dir / IMAGES,)
        return parse_request(message, fds, self.roots, self.limits, images, self.devices)


def parse_request(
    message: Mapping[str, Any],
    fds: int,
    roots: Sequence[PurePath],
    ceiling: Limits,
    trees: Sequence[PurePath] = (),
    devices: Sequence[Device] = (),
) -> Request:
    """A message that came with `fds` descriptors, as a Request. Raises SpecError.

    A job's mounts lie below `roots`, a tree of its own below `roots` or `trees`.
    """
    verb = message.get("verb")
    if not isinstance(verb, str) or verb not in VERBS:
        raise SpecError("verb", "unknown verb")
    must, may = VERBS[verb]
    given = frozenset(message) - _ENVELOPE
    if must - given:
        raise SpecError("argument", f"missing: {', '.join(sorted(must - given))}")
    if given - must - may:
        raise SpecError("argument", f"{len(given - must - may)} unknown argument(s)")
    if fds != (3 if verb == "job.start" else 0):
        raise SpecError("argument", "wrong number of descriptors")
    if verb == "job.start":
        job = parse_job(message, roots, ceiling, trees, devices)
        return Request(verb, job.job, job=job)
    if verb == "routing.set":
        return Request(verb, JailName(""), pinholes=parse_pinholes(message["pinholes"]))
    if verb == "routing.status":
        return Request(verb, JailName(""), jails=_jails(message.get("jails", [])))
    about = next((key for key in ("jail", "job") if key in must), "")
    name = parse_name(message[about]) if about else JailName("")
    return Request(verb, name, parse_socket_names(message.get("names")))


def _jails(raw: object) -> tuple[JailName, ...]:
    if not isinstance(raw, list) or len(raw) > MAX_JAILS:
        raise SpecError("argument", f"jails is a list of at most {MAX_JAILS} names")
    return tuple(map(parse_name, raw))


def choose_uid(asked: int | None, taken: Collection[int], fresh: range, control: int) -> int:
    """The uid of a job: the one asked for, or one of `fresh` that no job has. Raises SpecError."""
    if asked is None:
        free = next((uid for uid in fresh if uid not in taken), None)
        if free is None:
            raise SpecError("uid.exhausted", f"all {len(fresh)} uids for jobs are in use")
        return free
    if asked in fresh or asked == control:
        raise SpecError("argument", "that user is exeat's own")
    return asked


def may_be_shared(mode: int, device: int, *, terminal: bool) -> bool:
    """May a job have a file of this mode (st_mode) and device (st_rdev)? Not a folder or a disk."""
    if stat.S_ISCHR(mode):
        return terminal or device in _HARMLESS
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def why_not_bound(source: str, mode: int, uid: int, owner: int | None) -> str:
    """Why a job may not have `source`, of this mode (st_mode) and owner, as a mount; "" if it may."""
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        return f"{source} is neither a folder nor a regular file"
    return "" if owner in (None, uid) else f"{source} does not belong to uid {owner}"


def parse_socket_names(raw: object) -> tuple[str, ...]:
    """Which of SOCKETS are asked for, in the order asked; None means all. Raises SpecError."""
    if raw is None:
        return SOCKETS
    if not isinstance(raw, list) or not raw or len(set(map(repr, raw))) != len(raw):
        raise SpecError("argument", "names must be a list of different socket names")
    if not all(isinstance(name, str) and (name in SOCKETS or _is_of_device(name)) for name in raw):
        raise SpecError("argument", f"a socket name is one of {' '.join(SOCKETS)}")
    return tuple(raw)


def socket_file(name: str) -> str:
    """The file, in the folder that a job sees as /run/exeat, of the socket with this name."""
    return "proxy.sock" if name == "proxyu" else f"{name}.sock"


def _is_of_device(name: str) -> bool:
    return name.startswith(SOCKET) and NAME.fullmatch(name.removeprefix(SOCKET)) is not None


def parse_job(
    raw: Mapping[str, Any],
    roots: Sequence[PurePath],
    ceiling: Limits,
    trees: Sequence[PurePath] = (),
    devices: Sequence[Device] = (),
) -> JobSpec:
    """A `job.start` request as a JobSpec. Raises SpecError."""
    argv = _strings(raw["argv"], "argv", MAX_ARGS)
    if not argv or not argv[0]:
        raise SpecError("argument", "argv must name a command")
    env = _environment(raw["env"])
    total = sum(len(text.encode()) for text in argv) + sum(len((k + v).encode()) for k, v in env)
    if total > MAX_TOTAL:
        raise SpecError("argument", f"argv and env are over {MAX_TOTAL} bytes")
    mounts = _mounts(raw["mounts"], roots)
    uid = _user(raw["user"])
    limits = parse_limits(raw.get("limits", {}), ceiling)
    if uid is None and any(mount.owned for mount in mounts):
        raise SpecError("argument", "a writable mount needs the user who owns it, not a fresh one")
    return JobSpec(
        job=parse_name(raw["job"]),
        argv=argv,
        env=env,
        mounts=mounts,
        cwd=_cwd(raw["cwd"], mounts),
        profile=_profile(raw["profile"]),
        uid=uid,
        limits=limits,
        root=_root(raw.get("root", ""), (*roots, *trees)),
        device=_device(raw.get("device", ""), devices),
        needs_cgroup=needs_cgroup(raw.get("limits", {})),
    )


def _device(raw: object, devices: Sequence[Device]) -> Device | None:
    found = next((device for device in devices if device.name == raw), None)
    if raw != "" and found is None:
        raise SpecError("argument", "no such device is configured")
    return found


def _text(raw: object, what: str, limit: int = MAX_STRING) -> str:
    if not isinstance(raw, str):
        raise SpecError("argument", f"{what} must be text")
    try:
        size = len(raw.encode())
    except UnicodeEncodeError:
        raise SpecError("argument", f"{what} is not Unicode text") from None
    if "\0" in raw or size >= limit:
        raise SpecError("argument", f"{what} holds a NUL or is too long")
    return raw


def _strings(raw: object, what: str, limit: int) -> tuple[str, ...]:
    if not isinstance(raw, list) or len(raw) > limit:
        raise SpecError("argument", f"{what} must be a list of at most {limit} strings")
    return tuple(_text(item, what) for item in raw)


def _environment(raw: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(raw, dict) or len(raw) > MAX_ENV:
        raise SpecError("argument", f"env must be an object of at most {MAX_ENV} names")
    for name in raw:
        if not isinstance(name, str) or not _ENV_NAME.fullmatch(name):
            raise SpecError("argument", "env holds a name that is not [A-Za-z_][A-Za-z0-9_]*")
    return tuple((name, _text(value, f"env {name}")) for name, value in raw.items())


def parse_path(raw: object) -> str:
    """An absolute path in its one canonical spelling. Raises SpecError."""
    path = _text(raw, "path", MAX_PATH + 1)
    if not path.startswith("/") or path.startswith("//") or posixpath.normpath(path) != path:
        raise SpecError("argument", "a path must be absolute and normalised")
    if any(ord(char) < 0x20 or ord(char) == 0x7F for char in path):
        raise SpecError("argument", "a path holds a control character")
    return path


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _mounts(raw: object, roots: Sequence[PurePath]) -> tuple[Mount, ...]:
    if not isinstance(raw, list) or len(raw) > MAX_MOUNTS:
        raise SpecError("argument", f"mounts must be a list of at most {MAX_MOUNTS}")
    mounts = tuple(_mount(item, roots) for item in raw)
    if len({mount.path for mount in mounts}) != len(mounts):
        raise SpecError("argument", "a path is mounted twice")
    if sum(mount.edited for mount in mounts) > 1:
        raise SpecError("argument", "a job edits one folder")
    return tuple(sorted(mounts, key=lambda mount: mount.path))  # parents before what lies in them


def _mount(raw: object, roots: Sequence[PurePath]) -> Mount:
    if not isinstance(raw, dict) or set(raw) != {"path", "mode"}:
        raise SpecError("argument", "a mount is {path, mode}")
    path, mode = parse_path(raw["path"]), raw["mode"]
    if mode not in ("ro", "rw", "edit"):
        raise SpecError("argument", "a mount's mode is ro, rw or edit")
    _check_outside(path, roots)
    if path in _EXACT or any(_inside(path, taken) for taken in _TAKEN):
        raise SpecError("argument", "a mount would replace a part of the container")
    return Mount(path, mode == "rw", mode == "edit")


def _root(raw: object, roots: Sequence[PurePath]) -> str:
    if raw == "":
        return ""
    path = parse_path(raw)
    _check_outside(path, roots)
    return path


def _check_outside(path: str, roots: Sequence[PurePath]) -> None:
    if not any(_inside(path, str(root)) for root in roots):
        raise SpecError("argument", "a mount lies outside the configured roots")


def _cwd(raw: object, mounts: tuple[Mount, ...]) -> str:
    cwd = parse_path(raw)
    allowed = (WORK, "/tmp", *(mount.path for mount in mounts))  # noqa: S108 - the container's own
    if not any(_inside(cwd, folder) for folder in allowed):
        raise SpecError("argument", f"cwd must be in {WORK}, /tmp or a mount")
    return cwd


def _profile(raw: object) -> Profile:
    if not isinstance(raw, str) or raw not in tuple(Profile):
        raise SpecError("argument", f"profile is one of {', '.join(Profile)}")
    return Profile(raw)


def _user(raw: object) -> int | None:
    if raw == "fresh":
        return None
    if type(raw) is not int or not MIN_UID <= raw < 2**32 - 1:
        raise SpecError("argument", f"user is `fresh` or a uid of at least {MIN_UID}")
    return raw
