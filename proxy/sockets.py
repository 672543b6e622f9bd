"""The sockets of flows: non-blocking."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from exeat.policy.model import Address

_STREAM: Final = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
_FAMILY: Final = {4: socket.AF_INET, 6: socket.AF_INET6}


def accept(listener: socket.socket) -> tuple[socket.SocketType, Any] | None:
    """The next client and its address as Python has it, None: nobody waits. Raises OSError."""
    try:
        sock, peer = listener.accept()
    except (BlockingIOError, ConnectionAbortedError):
        return None
    sock.setblocking(False)
    return sock, peer


def dial(address: Address, port: int) -> socket.SocketType | int:
    """A socket that is connecting, with TCP_NODELAY; or the error number."""
    family = _FAMILY[address.family]
    try:
        sock = socket.SocketType(family, _STREAM)
    except OSError as error:
        return error.errno or errno.EIO
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A numeric literal of our own making: inet_pton takes it, getaddrinfo is not reached.
    code = sock.connect_ex((socket.inet_ntop(family, address.packed()), port))
    if code in (0, errno.EINPROGRESS):
        return sock
    sock.close()
    return code
