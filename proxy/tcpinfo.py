"""The kernel's own count of a TCP connection, turned into payload bytes.

Two books that must agree. Ours counts bytes when the kernel took them from us (or gave them to
the other side). The kernel's is read here from TCP_INFO and the queue sizes:

    sent     = tcpi_bytes_acked - SYN - FIN + SIOCOUTQ
    received = tcpi_bytes_received - FIN - SIOCINQ

`tcpi_bytes_acked` counts acknowledged sequence numbers: payload, plus 1 for the SYN of a socket
that connected (an accepted one does not count it), plus 1 for an acknowledged FIN. SIOCOUTQ is
what has not been acknowledged (an unacknowledged FIN among it), so the FIN is in the sum exactly
when it was sent. `tcpi_bytes_received` counts payload that arrived in order, plus 1 for the
peer's FIN; SIOCINQ is what nobody has read yet. After a settled end both queues are empty; after
a cut they are what was still on its way. (include/uapi/linux/tcp.h, net/ipv4/tcp.c; the tests
measure it.)
"""

from __future__ import annotations

import fcntl
import socket
import struct
import sys
from typing import Final, NamedTuple

_INFO: Final = struct.Struct("=100xI16xQQII")  # total_retrans, bytes_acked, bytes_received, segs
_INT: Final = struct.Struct("=i")
_SIOCINQ: Final = 0x541B
_SIOCOUTQ: Final = 0x5411
_SO_COOKIE: Final = 57
_LOOKS: Final = 32


class KernelCount(NamedTuple):
    """Payload bytes by the kernel's book. `unacked` of `sent` have not been acknowledged."""

    sent: int = 0
    received: int = 0
    unacked: int = 0
    segs_out: int = 0
    segs_in: int = 0
    retrans: int = 0


def kernel_count(
    sock: socket.socket, *, connected: bool, fin_sent: bool, fin_received: bool
) -> KernelCount | None:
    """None for a socket that has no such counts (a Unix socket, or one already closed).

    `connected` says that we dialled it. `fin_sent`: we shut our side down; `fin_received`: a read
    has returned the peer's end of stream.
    """
    if sock.family == socket.AF_UNIX:
        return None
    try:
        info, unacked, unread = _steady(sock)
    except (OSError, struct.error):
        return None
    retrans, acked, received, segs_out, segs_in = info
    return KernelCount(
        sent=max(0, acked + unacked - connected - fin_sent),
        received=max(0, received - unread - fin_received),
        unacked=unacked,
        segs_out=segs_out,
        segs_in=segs_in,
        retrans=retrans,
    )


def _steady(sock: socket.socket) -> tuple[tuple[int, ...], int, int]:
    """TCP_INFO and the queues as of one moment: packets go on arriving while we look."""
    info = _info(sock)
    for _ in range(_LOOKS):
        unacked, unread = _queue(sock, _SIOCOUTQ), _queue(sock, _SIOCINQ)
        before, info = info, _info(sock)
        if before[1:3] == info[1:3]:
            break
    return info, unacked, unread


def _info(sock: socket.socket) -> tuple[int, ...]:
    return _INFO.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size))


def _queue(sock: socket.socket, request: int) -> int:
    raw = fcntl.ioctl(sock.fileno(), request, _INT.pack(0))
    return int(_INT.unpack(raw)[0])


def cookie(sock: socket.socket) -> int:
    """SO_COOKIE: the kernel's own name of a socket, the same in sock_diag and in eBPF."""
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8)
    except OSError:
        return 0
    return int.from_bytes(raw, sys.byteorder)
