"""Many datagrams for one system call, and at once the replies that are remembered.

Three ways to the same: in C (`_fast.c`, where it was compiled), recvmmsg(2) and sendmmsg(2) by way
of ctypes, and one call per datagram where neither can be. One buffer serves all sockets of a family
in turn; it is filled, answered and flushed within one callback.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from exeat.dns.journal import Sight


class Hot(NamedTuple):
    """A reply without its id, good until `expires` (seconds of CLOCK_BOOTTIME)."""

    tail: bytes
    expires: float
    sight: Sight


Table = dict[bytes, Hot]  # by the octets of a query behind its id
Peers = dict[bytes, Table]  # by the packed address of a client
Miss = tuple[bytes, Any]  # a datagram without a remembered reply, and where it came from
Served = tuple[list[Miss], list["Sight"]]
# Take what is there (at most SLOTS datagrams), answer from `table` (None: from that of the peer), give
# back the others, and what the answered ones were.
Serve = Callable[[int, Table | None, Peers, float], Served]

compiled: Serve | None
try:
    from exeat.dns._fast import serve as compiled
except ImportError:
    compiled = None

SLOTS = 16  # datagrams in one call: a short wait for the other sockets
SIZE = 4096  # octets of one datagram
_DONTWAIT = 0x40
# struct mmsghdr on 64-bit Linux: name, namelen, iov, iovlen, control, controllen, flags, len.
_HEADER = struct.Struct("=QI4xQQQQi4xI4x")
_LENGTH_AT = 56 // 4  # of the datagram, in u32
_STEP = _HEADER.size // 4
_NAME = struct.Struct("=QI")
_PART = struct.Struct("=QQ")  # struct iovec
_NAME_SIZE: dict[int, int] = {socket.AF_INET: 16, socket.AF_INET6: 28}
_NAME_STEP = 32


def remembered(table: Table | None, data: bytes, now: float) -> Hot | None:
    """The entry for exactly these octets, if it has not ended."""
    if table is None or len(data) <= 2:
        return None
    entry = table.get(data[2:])
    return entry if entry is not None and now < entry.expires else None


class Batch:
    """Buffers for SLOTS datagrams of one family in each direction."""

    def __init__(self, family: int, library: ctypes.CDLL) -> None:
        self._recvmmsg, self._sendmmsg = library.recvmmsg, library.sendmmsg
        self._recvmmsg.argtypes = [
            ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p
        ]  # fmt: skip
        self._sendmmsg.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int]
        self._family = family
        self._name_size = _NAME_SIZE[family]
        self._keep: list[Any] = []
        self._in, in_at = self._buffer(SLOTS * SIZE)
        self._out, self._out_at = self._buffer(SLOTS * SIZE)
        self._names, self._names_at = self._buffer(SLOTS * _NAME_STEP)
        in_parts, in_parts_at = self._buffer(SLOTS * _PART.size)
        self._out_parts, out_parts_at = self._buffer(SLOTS * _PART.size)
        in_heads, self._in_heads_at = self._buffer(SLOTS * _HEADER.size)
        self._out_heads, self._out_heads_at = self._buffer(SLOTS * _HEADER.size)
        for i in range(SLOTS):
            name = self._names_at + i * _NAME_STEP
            _PART.pack_into(in_parts, i * _PART.size, in_at + i * SIZE, SIZE)
            for heads, parts_at in ((in_heads, in_parts_at), (self._out_heads, out_parts_at)):
                _HEADER.pack_into(
                    heads, i * _HEADER.size, name, self._name_size, parts_at + i * _PART.size, 1, 0, 0, 0, 0
                )
        self._lengths = in_heads.cast("I")
        self._queued = 0

    def _buffer(self, size: int) -> tuple[memoryview, int]:
        """Memory that stays where it is, and where that is."""
        block = (ctypes.c_char * size)()
        self._keep.append(block)
        return memoryview(block).cast("B"), ctypes.addressof(block)

    def serve(self, fd: int, table: Table | None, peers: Peers, now: float) -> Served:
        """See `Serve`."""
        misses: list[Miss] = []
        hits: list[Sight] = []
        for slot in range(self.receive(fd)):
            data = self.data(slot)
            mine = table if table is not None else peers.get(self.address(slot))
            entry = remembered(mine, data, now)
            if entry is None:
                misses.append((data, self.peer(slot)))
                continue
            self.reply(slot, data[:2] + entry.tail)
            hits.append(entry.sight)
        self.flush(fd)
        return misses, hits

    def receive(self, fd: int) -> int:
        """Take what is there, at most SLOTS datagrams; how many that were."""
        self._queued = 0
        count: int = self._recvmmsg(fd, self._in_heads_at, SLOTS, _DONTWAIT, None)
        return max(0, count)

    def data(self, slot: int) -> bytes:
        start = slot * SIZE
        return bytes(self._in[start : start + self._lengths[slot * _STEP + _LENGTH_AT]])

    def address(self, slot: int) -> bytes:
        """The packed address that the datagram in `slot` came from."""
        start = slot * _NAME_STEP
        if self._family == socket.AF_INET:
            return bytes(self._names[start + 4 : start + 8])
        return bytes(self._names[start + 8 : start + 24])

    def peer(self, slot: int) -> Any:
        """Where the datagram in `slot` came from, as the socket module says it."""
        start = slot * _NAME_STEP
        name = bytes(self._names[start : start + self._name_size])
        port = int.from_bytes(name[2:4], "big")
        if self._family == socket.AF_INET:
            return socket.inet_ntop(socket.AF_INET, name[4:8]), port
        flow, scope = int.from_bytes(name[4:8], "big"), struct.unpack_from("=I", name, 24)[0]
        return socket.inet_ntop(socket.AF_INET6, name[8:24]), port, flow, scope

    def reply(self, slot: int, data: bytes) -> None:
        """Queue `data`, at most SIZE octets, for whoever sent what is in `slot`; once per slot."""
        index, size = self._queued, len(data)
        start = index * SIZE
        self._out[start : start + size] = data
        _PART.pack_into(self._out_parts, index * _PART.size, self._out_at + start, size)
        name = self._names_at + slot * _NAME_STEP
        _NAME.pack_into(self._out_heads, index * _HEADER.size, name, self._name_size)
        self._queued = index + 1

    def flush(self, fd: int) -> None:
        """Send what is queued. What cannot be sent is dropped: its client will ask again."""
        sent = 0
        while sent < self._queued:
            at = self._out_heads_at + sent * _HEADER.size
            sent += max(1, self._sendmmsg(fd, at, self._queued - sent, _DONTWAIT))
        self._queued = 0


def one_by_one(fd: int, table: Table | None, peers: Peers, now: float) -> Served:
    """See `Serve`: with two system calls for each datagram, on any machine."""
    misses: list[Miss] = []
    hits: list[Sight] = []
    with socket.socket(fileno=os.dup(fd)) as sock:
        for _ in range(SLOTS):
            try:
                data, peer = sock.recvfrom(SIZE)
            except OSError:  # drained, or an ICMP error of an earlier reply
                break
            mine = table if table is not None else peers.get(socket.inet_pton(sock.family, peer[0]))
            entry = remembered(mine, data, now)
            if entry is None:
                misses.append((data, peer))
                continue
            hits.append(entry.sight)
            with suppress(OSError):
                sock.sendto(data[:2] + entry.tail, peer)
    return misses, hits


@cache
def batch_for(family: int) -> Batch | None:
    """The batch of all sockets of `family`; None where there can be none."""
    if ctypes.sizeof(ctypes.c_void_p) != 8 or ctypes.sizeof(ctypes.c_size_t) != 8:
        return None
    try:
        return Batch(family, ctypes.CDLL(None))
    except (OSError, AttributeError, KeyError):
        return None


def serve_for(family: int) -> Serve:
    """The fastest way there is for sockets of `family`."""
    if compiled is not None:
        return compiled
    batch = batch_for(family)
    return batch.serve if batch is not None else one_by_one
