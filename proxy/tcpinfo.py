"""The kernel's own count of a TCP connection, turned into payload bytes.

Two books that must agree. Ours counts bytes when the kernel took them from us (or gave them to
the other side). The kernel's is read here from TCP_INFO and the queue sizes:

    sent     = tcpi_bytes_acked - SYN - FIN + SIOCOUTQ
    received = tcpi_bytes_received - FIN - SIOCINQ

`tcpi_bytes_acked` counts acknowledged sequence numbers: payload, plus 1 for the SYN of a socket
that connected (an accepted one does not count it), plus 1 for an acknowledged FIN. SIOCOUTQ is
what has not been acknowledged (an unacknowledged FIN among it), so the FIN is in the sum exactly
when it was sent. `tcpi_bytes_received` counts payload that arrived in order, plus 1 for the
peer's FIN; SIOCINQ is what nobody has read yet, without the FIN. After a settled end both queues
are empty; after a cut they are what was still on its way. (include/uapi/linux/tcp.h,
net/ipv4/tcp.c; the tests measure it.)

Whether the peer's FIN came is asked of the kernel where no read has met it: many flows are cut
while one waits behind bytes, or behind a reservation. The state tells, until a reset has made it
CLOSE; then TCP_INQ does, which counts a FIN that SIOCINQ leaves out.

The queues need no asking where TCP_INFO itself, filled in under the socket's lock, says that they
are empty: nothing sent and not acknowledged, nothing unsent, and the end of the stream read. Of a
closed socket it says so in any case: a reset throws away what was flying, and only SIOCOUTQ still
knows of it.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import sys
from typing import Final, NamedTuple

# state, unacked (segments), total_retrans, bytes_acked, bytes_received, segs_out, segs_in, notsent_bytes
_INFO: Final = struct.Struct("=B23xI72xI16xQQIII")
_PEER_ENDED: Final = frozenset({8, 9, 11})  # CLOSE_WAIT, LAST_ACK, CLOSING
_INT: Final = struct.Struct("=i")
_SIOCINQ: Final = 0x541B
_SIOCOUTQ: Final = 0x5411
_SO_COOKIE: Final = 57
_CLOSED: Final = 7  # TCP_CLOSE of include/net/tcp_states.h
_TCP_INQ: Final = 36  # the option, and the control message it asks for
_LOOKS: Final = 32


class KernelCount(NamedTuple):
    """Payload bytes by the kernel's book. `unacked` of `sent` have not been acknowledged."""

    sent: int = 0
    received: int = 0
    unacked: int = 0
    segs_out: int = 0
    segs_in: int = 0
    retrans: int = 0

    def without(self, sent: int, received: int) -> KernelCount:
        """The same, less bytes that are no payload of the flow."""
        if not sent and not received:
            return self
        # At a cut the kernel may have sent and received less than that.
        return KernelCount(max(0, self.sent - sent), max(0, self.received - received), *self[2:])


def kernel_count(
    sock: socket.SocketType, *, connected: bool, fin_sent: bool, fin_received: bool
) -> KernelCount | None:
    """None for a socket that has no such counts (a Unix socket, or one already closed).

    `connected` says that we dialled it. `fin_sent`: we shut our side down; `fin_received`: a read
    has returned the peer's end of stream. If none has, it may have come all the same.
    """
    try:
        info = _info(sock)
        state, flying, retrans, acked, received, segs_out, segs_in, unsent = info
        unacked = unread = 0
        if flying or unsent or not fin_received:
            info, unacked, unread = _steady(sock, info)
            state, _, retrans, acked, received, segs_out, segs_in, _ = info
        elif state == _CLOSED:
            unacked = _queue(sock, _SIOCOUTQ)
        if not fin_received:
            fin_received = _holds_fin(sock, unread) if state == _CLOSED else state in _PEER_ENDED
    except (OSError, struct.error):
        return None
    sent = acked + unacked - connected - fin_sent
    arrived = received - unread - fin_received
    return KernelCount(max(0, sent), max(0, arrived), unacked, segs_out, segs_in, retrans)


def segments(sock: socket.SocketType) -> tuple[int, int]:
    """TCP segments (out, in) so far; none of a socket that has no such counts."""
    try:
        info = _info(sock)
    except (OSError, struct.error):
        return 0, 0
    return info[5], info[6]


def _steady(sock: socket.SocketType, info: tuple[int, ...]) -> tuple[tuple[int, ...], int, int]:
    """TCP_INFO and the queues as of one moment: packets go on arriving while we look."""
    for _ in range(_LOOKS):
        unacked, unread = _queue(sock, _SIOCOUTQ), _queue(sock, _SIOCINQ)
        before, info = info, _info(sock)
        if before[3:5] == info[3:5]:
            break
    return info, unacked, unread


def _holds_fin(sock: socket.SocketType, unread: int) -> bool:
    """Whether the peer of a closed socket had ended its stream, before a reset or without one.

    A look at the queue succeeds wherever a FIN has come, and then counts it (tcp_inq_hint in
    net/ipv4/tcp.c); without one it meets the reset's error, or counts `unread` and no more.
    """
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_INQ, 1)
    try:
        _, said, _, _ = sock.recvmsg(1, socket.CMSG_SPACE(_INT.size), socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:
        return False
    counts = [
        _INT.unpack(data)[0] for level, kind, data in said if (level, kind) == (socket.IPPROTO_TCP, _TCP_INQ)
    ]
    return counts == [unread + 1]


def _info(sock: socket.SocketType) -> tuple[int, ...]:
    return _INFO.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size))


def _queue(sock: socket.SocketType, request: int) -> int:
    raw = fcntl.ioctl(sock.fileno(), request, _INT.pack(0))
    return int(_INT.unpack(raw)[0])


def cookie(sock: socket.SocketType) -> int:
    """SO_COOKIE: the kernel's own name of a socket, the same in sock_diag and in eBPF."""
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8)
    except OSError:
        return 0
    return int.from_bytes(raw, sys.byteorder)
