"""The doors for clients outside jails: opened once, before anything starts, and handed down.

`exeat up` opens them as root, so that port 53 works, a taken port is found before anything is made,
and clients wait in the backlog while a gateway process is being started again. A process that was
not given them (a systemd unit without `exeat up`) opens its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
from typing import TYPE_CHECKING, NamedTuple

from exeat.appliance.sections import endpoints
from exeat.ledger import ipc

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from exeat.appliance.config import Config

ENVIRONMENT = "EXEAT_LISTENERS"  # of a child: JSON, a list of [door, name, descriptor]
BACKLOG = 4096  # the kernel's limit, net.core.somaxconn, may be lower


class ListenError(Exception):
    """A door cannot be opened; the message is one line that says which and why."""


class Listener(NamedTuple):
    """`door` is http, socks, unix, transparent (the proxy's), udp or tcp (the guard's), or console; `name`
    its place."""

    door: str
    name: str
    sock: socket.socket


PROXY_DOORS = frozenset({"http", "socks", "unix", "transparent"})
GUARD_DOORS = frozenset({"udp", "tcp"})
CONSOLE_DOORS = frozenset({"console"})
ALL_DOORS = PROXY_DOORS | GUARD_DOORS | CONSOLE_DOORS


def wanted(config: Config) -> list[tuple[str, str, tuple[str, int] | Path]]:
    """(door, name, where) of every door in the configuration."""
    found: list[tuple[str, str, tuple[str, int] | Path]] = []
    for door, places in (
        ("http", config.proxy.listen),
        ("socks", config.proxy.listen_socks),
        ("transparent", config.proxy.transparent),
        ("udp", config.dns.listen),
        ("tcp", config.dns.listen),
    ):
        found += ((door, name, place) for name, place in zip(places, endpoints(places), strict=True))
    found += (("unix", str(path), path) for path in config.proxy.listen_unix)
    if (place := config.console.place()) is not None:
        found.append(("console", config.console.listen, place))
    return found


def open_all(config: Config, doors: Iterable[str] = ALL_DOORS) -> list[Listener]:
    """Open the configured doors of these kinds, all or none. Raises ListenError."""
    opened: list[Listener] = []
    try:
        for door, name, where in wanted(config):
            if door in doors:
                opened.append(Listener(door, name, _open(door, where)))
    except OSError as error:
        close_all(opened)
        section = "dns" if door in GUARD_DOORS else door if door in CONSOLE_DOORS else "proxy"
        raise ListenError(f"[{section}] cannot listen on {name}: {error.strerror or error}") from None
    return opened


def close_all(listeners: Iterable[Listener]) -> None:
    """Close them and remove the paths of Unix sockets."""
    for door, name, sock in listeners:
        sock.close()
        if door == "unix":
            with contextlib.suppress(OSError):
                os.unlink(name)


def handed_down(listeners: Iterable[Listener]) -> tuple[str, tuple[int, ...]]:
    """The value of ENVIRONMENT for a child process, and the descriptors it must inherit."""
    given = [(door, name, sock.fileno()) for door, name, sock in listeners]
    return json.dumps(given), tuple(fd for _, _, fd in given)


def take(config: Config, doors: frozenset[str]) -> list[Listener]:
    """In a gateway process: the doors it was given, or its own. Raises ListenError."""
    given = os.environ.pop(ENVIRONMENT, None)
    if given is None:
        return open_all(config, doors)
    return [Listener(door, name, socket.socket(fileno=fd)) for door, name, fd in json.loads(given)]


def _open(door: str, where: tuple[str, int] | Path) -> socket.socket:
    if not isinstance(where, tuple):
        return _open_unix(where)
    family = socket.AF_INET6 if ":" in where[0] else socket.AF_INET
    kind = socket.SOCK_DGRAM if door == "udp" else socket.SOCK_STREAM
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
    try:
        if family == socket.AF_INET6:
            # One socket, one family: an IPv4 client must not show up as ::ffff:a.b.c.d.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
        if kind == socket.SOCK_STREAM:
            sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _open_unix(path: Path) -> socket.socket:
    """Replaces what a crash left behind; what still answers, or is no socket, is somebody's."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(17, "File exists and is no socket")
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(path)) == 0:
                raise OSError(98, "Address already in use")
    # Open to all on purpose: the proxy judges every client by its uid.
    return ipc.listen(path)
