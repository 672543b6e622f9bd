"""What the kernel says of each TCP connection when it ends: its last TCP_INFO, told to whoever listens.

NETLINK_SOCK_DIAG's groups for destroyed sockets (include/uapi/linux/sock_diag.h, SKNLGRP_*; net/core/
sock_diag.c). Needs no privilege, and no help of the process whose socket it was: a book of its own.
Only sockets of this network namespace, and only those that end while somebody listens.
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from exeat.ledger.netlink_news import told

if TYPE_CHECKING:
    from collections.abc import Iterator

_NETLINK_SOCK_DIAG: Final = 4
_SOL_NETLINK, _ADD_MEMBERSHIP, _SO_RCVBUFFORCE = 270, 1, 33
_TCP4_DESTROY, _TCP6_DESTROY = 1, 3  # groups
_BUFFER: Final = 8 * 1024 * 1024
_HEADER: Final = struct.Struct("=IHHII")
_MESSAGE: Final = struct.Struct("=BBBB2s2s16s16sIQIIIII")  # inet_diag_msg; the ports are big-endian
_ATTRIBUTE: Final = struct.Struct("=HH")
_INFO: Final = 2  # INET_DIAG_INFO
_COUNTS: Final = struct.Struct("=QQII")  # bytes_acked, bytes_received, segs_out, segs_in of struct tcp_info
_COUNTS_AT: Final = 120


class End(NamedTuple):
    """A connection that is over. `acked` and `received` count sequence numbers: SYN and FIN are in them."""

    cookie: int
    uid: int
    port: int  # its own
    peer: bytes  # 16 bytes as the kernel has them: an IPv4 address is the first four
    peer_port: int
    acked: int
    received: int
    segs_out: int
    segs_in: int


class SocketEnds:
    """Listens from now on. `lost` is how often the kernel had to drop some, because nobody read."""

    def __init__(self) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        self._sock = socket.socket(socket.AF_NETLINK, kind, _NETLINK_SOCK_DIAG)
        self.lost = 0
        with suppress(OSError):  # more than the machine's limit only for root
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            self._sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        self._sock.bind((0, 0))
        for group in (_TCP4_DESTROY, _TCP6_DESTROY):
            self._sock.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
        self._sock.setblocking(False)

    def fileno(self) -> int:
        return self._sock.fileno()

    def read(self) -> Iterator[End]:
        """All that have been told by now."""
        for data in told(self._sock, self._lose):
            yield from parse(data)

    def _lose(self) -> None:
        self.lost += 1

    def close(self) -> None:
        self._sock.close()


def parse(data: bytes) -> Iterator[End]:
    """The ends in one datagram; what is cut short is left out."""
    at = 0
    while at + _HEADER.size + _MESSAGE.size <= len(data):
        length = _HEADER.unpack_from(data, at)[0]
        if length < _HEADER.size + _MESSAGE.size or at + length > len(data):
            return
        end = _end(data[at + _HEADER.size : at + length])
        if end is not None:
            yield end
        at += length + 3 & ~3


def _end(body: bytes) -> End | None:
    *_, port, peer_port, _own, peer, _interface, cookie, _expires, _rq, _wq, uid, _inode = (
        _MESSAGE.unpack_from(body)
    )
    info = _info(body)
    if len(info) < _COUNTS_AT + _COUNTS.size:
        return None
    counts = _COUNTS.unpack_from(info, _COUNTS_AT)
    return End(cookie, uid, int.from_bytes(port, "big"), peer, int.from_bytes(peer_port, "big"), *counts)


def _info(body: bytes) -> bytes:
    at = _MESSAGE.size
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if length < _ATTRIBUTE.size:
            break
        if kind == _INFO:
            return body[at + _ATTRIBUTE.size : at + length]
        at += length + 3 & ~3
    return b""
