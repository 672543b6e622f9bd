"""Jails in the kernel: namespaces with only `lo`, the sockets inside them, and safe bind mounts.

Privileged code. Every name and path that reaches a function here is a checked value (spec.py), or
lies below the warden's own folders.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import stat
import struct
import threading
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

T = TypeVar("T")

CLONE_NEWNET: Final = 0x40000000
_MS_BIND, _MNT_DETACH, _UMOUNT_NOFOLLOW = 0x1000, 0x2, 0x8
_SIOCSIFFLAGS, _IFF_UP_RUNNING = 0x8914, 0x41
_NSFS_MAGIC_DEVICE: Final = "/proc/self/ns/net"
_PORTS: Final = {"proxy": 3128, "socks": 1080, "dnsu": 53, "dnst": 53}
_BACKLOG: Final = 1024
_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: bytes | int | None) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _in_thread(work: Callable[[], T]) -> T:
    """Run `work` in a thread of its own, so that a changed namespace ends with it."""
    done: list[T | BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:
            done.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(done[0], BaseException):
        raise done[0]
    return done[0]


def create(path: Path) -> None:
    """Make a network namespace with `lo` up, held by a bind mount at `path`. Raises OSError."""

    def work() -> None:
        _call("unshare", CLONE_NEWNET)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _IFF_UP_RUNNING))
        _enable_ipv6()
        _call("mount", b"/proc/thread-self/ns/net", os.fsencode(path), None, _MS_BIND, None)

    path.touch(mode=0o600, exist_ok=False)
    try:
        _in_thread(work)
    except BaseException:
        path.unlink()
        raise


def _enable_ipv6() -> None:
    # Inherited from the host when net.core.devconf_inherit_init_net says so.
    with open("/proc/sys/net/ipv6/conf/lo/disable_ipv6", "r+") as setting:
        if setting.read().strip() != "0":
            setting.seek(0)
            setting.write("0")


def is_alive(path: Path) -> bool:
    """Is a namespace mounted at `path`?"""
    try:
        return os.lstat(path).st_dev == os.stat(_NSFS_MAGIC_DEVICE).st_dev
    except FileNotFoundError:
        return False


def destroy(path: Path) -> None:
    """Let go of the namespace at `path`; it ends with its last process and socket."""
    if is_alive(path):
        unmount(path)
    path.unlink(missing_ok=True)


def listen(path: Path, folder: Path, names: Sequence[str]) -> list[socket.socket]:
    """Listening sockets inside the namespace at `path`, in the order of `names`. Raises OSError.

    `proxyu` is a new inode at `folder`/proxy.sock: jobs see the folder, so they find the new one.
    """
    made: list[socket.socket] = []

    def work() -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _call("setns", fd, CLONE_NEWNET)
        finally:
            os.close(fd)
        made.extend(_unix(folder / "proxy.sock") if name == "proxyu" else _inet(name) for name in names)

    try:
        _in_thread(work)
    except BaseException:
        for sock in made:
            sock.close()
        raise
    return made


def _unix(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    sock.bind(os.fsencode(fresh))
    fresh.chmod(0o666)  # the folder is reachable from the one jail only
    sock.listen(_BACKLOG)
    fresh.rename(path)
    return sock


def _inet(name: str) -> socket.socket:
    kind, version = name[:-1], name[-1]
    family = socket.AF_INET if version == "4" else socket.AF_INET6
    stream = kind != "dnsu"
    sock = socket.socket(family, (socket.SOCK_STREAM if stream else socket.SOCK_DGRAM) | socket.SOCK_NONBLOCK)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if version == "6":
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind(("127.0.0.1" if version == "4" else "::1", _PORTS[kind]))
    if stream:
        sock.listen(_BACKLOG)
    return sock


def open_beneath(path: str, *, uid: int | None) -> int:
    """An O_PATH descriptor of a folder or regular file, no symlink anywhere on the way.

    With `uid`, that user must own it. Raises PermissionError or another OSError.
    """
    fd = os.open("/", os.O_PATH | os.O_DIRECTORY)
    try:
        for part in path.strip("/").split("/"):
            if not stat.S_ISDIR(os.fstat(fd).st_mode):
                raise NotADirectoryError(f"{path}: leads through something that is not a folder")
            inner = os.open(part, os.O_PATH | os.O_NOFOLLOW, dir_fd=fd)
            os.close(fd)
            fd = inner
        info = os.fstat(fd)
        if not (stat.S_ISDIR(info.st_mode) or stat.S_ISREG(info.st_mode)):
            raise PermissionError(f"{path}: is neither a folder nor a regular file")
        if uid is not None and info.st_uid != uid:
            raise PermissionError(f"{path}: is not owned by uid {uid}")
    except OSError:
        os.close(fd)
        raise
    return fd


def bind(fd: int, target: Path) -> None:
    """Bind what `fd` holds (and nothing mounted below it) at `target`, which is made. Raises OSError."""
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        target.mkdir(mode=0o700)
    else:
        target.touch(mode=0o600, exist_ok=False)
    _call("mount", b"/proc/self/fd/%d" % fd, os.fsencode(target), None, _MS_BIND, None)


def unmount(path: Path) -> None:
    _call("umount2", os.fsencode(path), _MNT_DETACH | _UMOUNT_NOFOLLOW)
