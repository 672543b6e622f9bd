"""Jails in the kernel: namespaces with only `lo`, the sockets inside them, and safe bind mounts.

Privileged code. Every name and path that reaches a function here is a checked value (spec.py), or
lies below the warden's own folders. All of them raise OSError.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import stat
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

from exeat.sandbox import redirect
from exeat.sandbox.spec import INET_SOCKETS, may_be_shared, socket_file, why_not_bound
from exeat.sandbox.steps import ENV

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from exeat.sandbox.steps import Command, Done

_CLONE_NEWNET: Final = 0x40000000
_MS_NOSUID_NODEV, _MS_BIND, _MNT_DETACH, _UMOUNT_NOFOLLOW = 0x6, 0x1000, 0x2, 0x8
_SYS_OPENAT2, _AT_FDCWD, _RESOLVE_NO_MAGICLINKS, _RESOLVE_NO_SYMLINKS = 437, -100, 0x2, 0x4
_DISABLE_IPV6: Final = Path("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
_BACKLOG: Final = 1024
_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: bytes | int | None) -> int:
    result: int = getattr(_libc, name)(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def create(path: Path) -> None:
    """Make a network namespace with `lo` up and redirected (redirect.py), held by a bind mount at `path`."""

    def work() -> None:
        _call("unshare", _CLONE_NEWNET)
        # Inherited from the host when net.core.devconf_inherit_init_net says so.
        if _DISABLE_IPV6.read_text().strip() != "0":
            _DISABLE_IPV6.write_text("0")
        for exchange in redirect.exchanges():
            _netlink(exchange)
        _call("mount", b"/proc/thread-self/ns/net", os.fsencode(path), None, _MS_BIND, None)

    path.touch(mode=0o600, exist_ok=False)
    with ThreadPoolExecutor(1) as thread:  # of its own, so that the changed namespace ends with it
        thread.submit(work).result()


def _netlink(exchange: redirect.Exchange) -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, exchange.protocol) as sock:
        sock.send(exchange.data)
        failure = None
        while failure is None:  # the kernel has answered all of it by the time send returns
            failure = redirect.failure(sock.recv(65536, socket.MSG_DONTWAIT), exchange.last)
    if failure:
        raise OSError(failure, f"netlink {exchange.protocol}: {os.strerror(failure)}")


def is_alive(path: Path) -> bool:
    """Is a namespace mounted at `path`?"""
    return path.exists() and path.stat().st_dev == os.stat("/proc/self/ns/net").st_dev


def destroy(path: Path) -> None:
    """Let go of the namespace at `path`, if any; it ends with its last process and socket."""
    if is_alive(path):
        unmount(path)
    path.unlink(missing_ok=True)


def listen(path: Path, folder: Path, names: Sequence[str]) -> list[socket.socket]:
    """Listening sockets inside the namespace at `path`, in the order of `names`.

    Those that are files are new inodes in `folder`: jobs see the folder, so they find the new ones.
    """

    def work() -> list[socket.socket]:
        with path.open() as handle:
            _call("setns", handle.fileno(), _CLONE_NEWNET)
        return [_inet(name) if name in INET_SOCKETS else _unix(folder / socket_file(name)) for name in names]

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()


def _unix(path: Path) -> socket.socket:
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    sock.bind(os.fsencode(fresh))
    sock.listen(_BACKLOG)
    fresh.chmod(0o666)  # only root and the one jail can reach the folder
    fresh.rename(path)
    return sock


def _inet(name: str) -> socket.socket:
    family, kind, address, port = INET_SOCKETS[name]
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind((address, port))
    if kind == socket.SOCK_STREAM:
        sock.listen(_BACKLOG)
    return sock


def bind(source: str, target: Path, *, owner: int | None) -> None:
    """Bind the folder or regular file `source` (and nothing mounted below it) at `target`, a new path.

    No symlink anywhere on the way (openat2(2)); with `owner`, that uid must own it.
    """
    how = struct.pack("QQQ", os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS)
    fd = _call("syscall", _SYS_OPENAT2, _AT_FDCWD, os.fsencode(source), how, len(how))
    try:
        info = os.fstat(fd)
        if said := why_not_bound(source, info.st_mode, info.st_uid, owner):
            raise PermissionError(said)
        target.mkdir(mode=0o700) if stat.S_ISDIR(info.st_mode) else target.touch(mode=0o600, exist_ok=False)
        _call("mount", b"/proc/self/fd/%d" % fd, os.fsencode(target), None, _MS_BIND, None)
    finally:
        os.close(fd)


def overlay(target: Path, options: str) -> None:
    """Mount an overlay at the folder `target`; no name of a job's or a person's is in `options`."""
    _call("mount", b"overlay", os.fsencode(target), b"overlay", _MS_NOSUID_NODEV, os.fsencode(options))


def unmount(path: Path) -> None:
    """Detach what is mounted at `path`, and only there."""
    _call("umount2", os.fsencode(path), _MNT_DETACH | _UMOUNT_NOFOLLOW)


def may_be_stdio(fd: int) -> bool:
    """May a job have this as a standard descriptor? Not what leads out of its jail again.

    A folder would, and so would a socket of another network namespace, but for a connected stream.
    """
    info = os.fstat(fd)
    if stat.S_ISSOCK(info.st_mode):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as sock:
            sock.getpeername()
            return sock.family == socket.AF_UNIX and sock.type == socket.SOCK_STREAM
        return False
    return may_be_shared(info.st_mode, info.st_rdev, terminal=os.isatty(fd))


def run(steps: Generator[Command, Done, object]) -> None:
    """Run the commands that pure code asks for. Raises what the steps raise."""
    with contextlib.suppress(StopIteration):
        step = next(steps)
        while True:
            # A short-lived child has few descriptors: with more than 1,024, libnftables aborts.
            argv = ["timeout", str(step.seconds), *step.argv]
            end = subprocess.run(argv, input=step.stdin, env=ENV, capture_output=True, text=True, check=False)
            step = steps.send(end)
