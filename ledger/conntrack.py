"""What connection tracking counted of connections with a mark: a book that no process of exeat keeps.

Netlink (nfnetlink_conntrack: include/uapi/linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h), in this
network namespace; needs CAP_NET_ADMIN. Bytes are those of IP packets, headers included. The kernel counts
only connections that began while `net.netfilter.nf_conntrack_acct` was 1.
"""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from exeat.ledger.netlink_news import told

if TYPE_CHECKING:
    from collections.abc import Iterator

SWITCH: Final = Path("/proc/sys/net/netfilter/nf_conntrack_acct")
_NETLINK_NETFILTER: Final = 12
_SOL_NETLINK, _ADD_MEMBERSHIP, _BROADCAST_ERROR, _SO_RCVBUFFORCE = 270, 1, 4, 33
_DESTROYED: Final = 3  # NFNLGRP_CONNTRACK_DESTROY
_SUBSYSTEM: Final = 1 << 8  # NFNL_SUBSYS_CTNETLINK
_NEW, _GET, _DELETE = _SUBSYSTEM, _SUBSYSTEM | 1, _SUBSYSTEM | 2
_DONE, _ERROR = 3, 2  # NLMSG_DONE, NLMSG_ERROR
_REQUEST, _DUMP = 0x1, 0x300
_BUFFER: Final = 8 * 1024 * 1024
_PATIENCE_S: Final = 5.0
_HEADER: Final = struct.Struct("=IHHII")
_FAMILY: Final = struct.Struct("=BBH")  # nfgenmsg
_ATTRIBUTE: Final = struct.Struct("=HH")
_TYPE: Final = 0x3FFF  # without the bits for nested and big-endian
_MARK, _OUT, _IN, _MASK = 8, 9, 10, 21  # CTA_MARK, CTA_COUNTERS_ORIG and _REPLY, CTA_MARK_MASK
_BYTES: Final = 2  # CTA_COUNTERS_BYTES


class Tracked(NamedTuple):
    """A connection: bytes of its packets, from who began it (`out`) and back; None where nobody counts."""

    mark: int
    out: int | None
    into: int | None


class Conntrack:
    """Hears of connections that end from now on, and can ask for those that are there.

    `lost` is how often the kernel had to drop some news, because nobody read. Raises OSError, as without
    the right.
    """

    def __init__(self) -> None:
        self.lost = 0
        self._ends, self._asks = _open(), _open()
        self._ends.setsockopt(_SOL_NETLINK, _BROADCAST_ERROR, 1)  # what could not be told is told again
        self._ends.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _DESTROYED)
        self._ends.setblocking(False)
        self._asks.settimeout(_PATIENCE_S)

    def fileno(self) -> int:
        return self._ends.fileno()

    def ended(self) -> Iterator[Tracked]:
        """All that have been told by now."""
        for data in told(self._ends, self._lose):
            for kind, body in _messages(data):
                if kind == _DELETE:
                    yield tracked(body)

    def _lose(self) -> None:
        self.lost += 1

    def living(self, mark: int, mask: int) -> list[Tracked]:
        """The connections that are there now, of those whose mark is `mark` where `mask` has bits."""
        filters = _attribute(_MARK, mark.to_bytes(4, "big")) + _attribute(_MASK, mask.to_bytes(4, "big"))
        body = _FAMILY.pack(socket.AF_UNSPEC, 0, 0) + filters
        self._asks.send(_HEADER.pack(_HEADER.size + len(body), _GET, _REQUEST | _DUMP, 1, 0) + body)
        found = list[Tracked]()
        while True:
            for kind, answer in _messages(self._asks.recv(1 << 16)):
                if kind == _DONE:
                    return found
                if kind == _ERROR:
                    code = -struct.unpack_from("=i", answer)[0]
                    raise OSError(code, os.strerror(code))
                if kind == _NEW:
                    found.append(tracked(answer))

    def close(self) -> None:
        self._ends.close()
        self._asks.close()


def counts() -> bool:
    """Whether the kernel counts the bytes of connections that begin now."""
    try:
        return SWITCH.read_text().strip() == "1"
    except OSError:
        return False


def _open() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    with suppress(OSError):  # more than the machine's limit only for root
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
    sock.bind((0, 0))
    return sock


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and body of each message in a datagram; what is cut short is left out."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size or at + length > len(data):
            return
        yield kind, data[at + _HEADER.size : at + length]
        at += length + 3 & ~3


def tracked(body: bytes) -> Tracked:
    """What a message of conntrack says; its mark is 0 if it says none."""
    said = _attributes(body[_FAMILY.size :])
    mark = said.get(_MARK, b"")
    return Tracked(
        int.from_bytes(mark, "big") if len(mark) == 4 else 0, _count(said.get(_OUT)), _count(said.get(_IN))
    )


def _count(counters: bytes | None) -> int | None:
    value = _attributes(counters).get(_BYTES, b"") if counters is not None else b""
    return int.from_bytes(value, "big") if len(value) == 8 else None


def _attributes(data: bytes) -> dict[int, bytes]:
    found, at = dict[int, bytes](), 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size or at + length > len(data):
            break
        found[kind & _TYPE] = data[at + _ATTRIBUTE.size : at + length]
        at += length + 3 & ~3
    return found


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value
