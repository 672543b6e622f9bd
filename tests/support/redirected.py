"""Where a redirected connection was going, asked of the kernel by the test's own few lines."""

from __future__ import annotations

import socket
import struct

SO_ORIGINAL_DST = 80  # linux/netfilter_ipv4.h, and IP6T_SO_ORIGINAL_DST


def original(sock: socket.socket) -> tuple[str, int]:
    """(address, port) before the redirect."""
    if sock.family == socket.AF_INET:
        port, raw = struct.unpack("!2xH4s8x", sock.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16))
    else:
        port, raw = struct.unpack("!2xH4x16s4x", sock.getsockopt(socket.IPPROTO_IPV6, SO_ORIGINAL_DST, 28))
    return socket.inet_ntop(sock.family, raw), port
