"""Whose is the other end of a connection on this machine? The kernel says (sock_diag(7)).

It lives in the ledger area because that is the lowest layer that does I/O. Needs no privilege.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

_NETLINK_SOCK_DIAG: Final = 4
_BY_FAMILY, _REQUEST, _DUMP = 20, 0x1, 0x300
_ALL: Final = 0xFFFFFFFF  # states
_BYTECODE: Final = 1  # INET_DIAG_REQ_BYTECODE
_PORT_IS: Final = struct.pack("=BBH", 11, 8, 12)  # INET_DIAG_BC_S_EQ: else jump behind the end, which is no
_HEADER: Final = struct.Struct("=IHHII")
_ASK: Final = struct.Struct("=BBBBI")  # inet_diag_req_v2 up to its inet_diag_sockid
_ID: Final = struct.Struct("!HH16s16s")  # ports and addresses; interface and cookie follow
_ANY_COOKIE: Final = struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)
_ANSWER: Final = struct.Struct("=BBBB4s16s28sIIIII")  # inet_diag_msg: 28 are destination, interface, cookie
_CGROUP_ID: Final = 21  # INET_DIAG_CGROUP_ID, since Linux 5.7
# Of a socket that may have asked: established, FIN_WAIT1 and 2 (it has shut down its side), closed (a
# UDP socket that is not connected), CLOSE_WAIT. Not of one that only listens or is connecting.
_HELD: Final = frozenset({1, 4, 5, 7, 8})

MAX_GONE: Final = 1024  # remembered cgroups that are not there any more

Place = tuple[str, int]  # address text (IPv6 without a zone) and port


class Owner(NamedTuple):
    """Who made a socket: the uid, and the id of the cgroup (its folder's inode number)."""

    uid: int
    cgroup: int


class Found(NamedTuple):
    """A socket: its family, (own port, peer's port), own address in 16 bytes, and whose it is."""

    family: int
    ports: tuple[int, int]
    source: bytes
    owner: Owner

    def is_at(self, family: int, address: str) -> bool:
        """Does it send from this address? One that is bound to none does."""
        packed = socket.inet_pton(family, address)
        if self.family == socket.AF_INET6 and family == socket.AF_INET:
            return self.source in (bytes(16), bytes(10) + b"\xff\xff" + packed)
        return self.source[: len(packed)] in (packed, bytes(len(packed)))


class SocketOwners:
    """Asks the kernel about sockets of this network namespace."""

    def __init__(self) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        self._sock = socket.socket(socket.AF_NETLINK, kind, _NETLINK_SOCK_DIAG)
        self._sock.setblocking(False)  # the kernel has answered by the time send returns
        self._number = 0

    def of_tcp(self, family: int, client: Place, server: Place) -> Owner | None:
        """The owner of the socket at `client` that is connected to `server`, None if nobody holds one.

        `server` is where the client connected to, before any redirect.
        """
        where = _ID.pack(client[1], server[1], _packed(family, client), _packed(family, server))
        found = self._ask(_ASK.pack(family, socket.IPPROTO_TCP, 0, 0, _ALL) + where + _ANY_COOKIE, _REQUEST)
        return found[0].owner if len(found) == 1 and found[0].ports == (client[1], server[1]) else None

    def of_udp(self, family: int, client: Place) -> Owner | None:
        """The owner of all sockets at `client`, wherever they are connected to; None if there is not one.

        Slower than `of_tcp`, for it goes through a table.
        """
        owners = set()
        for inside in (socket.AF_INET, socket.AF_INET6) if family == socket.AF_INET else (family,):
            where = _ID.pack(client[1], 0, bytes(16), bytes(16)) + _ANY_COOKIE
            size = 4 + len(_PORT_IS) + 4
            only = struct.pack("=HH", size, _BYTECODE) + _PORT_IS + struct.pack("=HH", 0, client[1])
            for found in self._ask(
                _ASK.pack(inside, socket.IPPROTO_UDP, 0, 0, _ALL) + where + only, _REQUEST | _DUMP
            ):
                if found.ports[0] == client[1] and found.is_at(family, client[0]):
                    owners.add(found.owner)
        return owners.pop() if len(owners) == 1 else None

    def _ask(self, body: bytes, flags: int) -> list[Found]:
        self._number = (self._number + 1) & 0xFFFFFFFF
        size = _HEADER.size + len(body)
        found: list[Found] = []
        with contextlib.suppress(OSError, struct.error):
            self._sock.send(_HEADER.pack(size, _BY_FAMILY, flags, self._number, 0) + body)
            while True:
                for kind, number, data in _messages(self._sock.recv(65536)):
                    if number != self._number:
                        continue  # of an earlier question that was given up
                    if kind != _BY_FAMILY:  # the end, or an error
                        return found
                    answer = parse_answer(data)
                    if answer is not None:
                        found.append(answer)
                    if not flags & _DUMP:
                        return found
        return []

    def close(self) -> None:
        self._sock.close()


def _packed(family: int, place: Place) -> bytes:
    return socket.inet_pton(family, place[0]).ljust(16, b"\0")


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(type, sequence number, body) of each netlink message. Raises struct.error."""
    while data:
        size, kind, _, number, _ = _HEADER.unpack_from(data)
        yield kind, number, data[_HEADER.size : size]
        data = data[max(_HEADER.size, (size + 3) & ~3) :]


def parse_answer(data: bytes) -> Found | None:
    """What an inet_diag_msg says, None when no process holds the socket. Raises struct.error."""
    family, state, _, _, ports, source, _, _, _, _, uid, inode = _ANSWER.unpack_from(data)
    if state not in _HELD or not inode:
        return None
    for kind, value in _attributes(data[_ANSWER.size :]):
        if kind == _CGROUP_ID and len(value) == 8:
            owner = Owner(uid, struct.unpack("=Q", value)[0])
            return Found(family, struct.unpack("!HH", ports), source, owner)
    return None


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        size, kind = struct.unpack_from("=HH", data)
        if size < 4:
            return
        yield kind, data[4:size]
        data = data[(size + 3) & ~3 :]


def is_local(family: int, address: str) -> bool:
    """Is this one of the machine's own addresses? What cannot be told is taken for one."""
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((address, 0))
        except OSError as error:
            return error.errno != errno.EADDRNOTAVAIL
    return True


class Cgroups:
    """Paths of cgroups by their ids, below the root of the v2 tree.

    A cgroup never moves to another parent and ids are never used again, so what was found stays
    true, and so does that one is nowhere in the tree any more.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._paths: dict[int, str | None] = {}

    def path(self, number: int) -> str | None:
        """Such as `/agents.slice/a`, None when there is no such cgroup (any more)."""
        if number not in self._paths:
            gone = [known for known, path in self._paths.items() if path is None][-MAX_GONE:]
            self._paths = {**dict.fromkeys(gone), number: None, **dict(self._walk())}
        return self._paths[number]

    def _walk(self) -> Iterator[tuple[int, str]]:
        start = len(os.fspath(self._root))
        for folder, _, _ in os.walk(self._root):
            with contextlib.suppress(OSError):
                yield os.stat(folder).st_ino, folder[start:] or "/"


def cgroup_root() -> Path:
    """Where the v2 tree is mounted: alone, or beside v1 hierarchies."""
    hybrid = Path("/sys/fs/cgroup/unified")
    return hybrid if (hybrid / "cgroup.procs").exists() else Path("/sys/fs/cgroup")
