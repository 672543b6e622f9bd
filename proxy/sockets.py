"""The sockets of flows: non-blocking, and each made by one call where the compiled module is in use."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Any, Final

try:
    from exeat.proxy import _relay
except ImportError:  # it was not built
    _CORES: tuple[type, ...] = ()
else:
    _CORES = (_relay.Core,)

if TYPE_CHECKING:
    from exeat.ledger.reactor import Reactor
    from exeat.policy.model import Address

_STREAM: Final = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
_FAMILY: Final = {4: socket.AF_INET, 6: socket.AF_INET6}


def accept(reactor: Reactor, listener: socket.socket) -> tuple[socket.SocketType, Any] | None:
    """The next client and its address as Python has it (of IPv6 the first two parts), None: nobody waits.

    Raises OSError.
    """
    if isinstance(reactor.poller, _CORES):
        found = _relay.accept(listener.fileno())
        if found is None:
            return None
        return socket.SocketType(listener.family, socket.SOCK_STREAM, 0, found[0]), found[1]
    try:
        sock, peer = listener.accept()
    except (BlockingIOError, ConnectionAbortedError):
        return None
    sock.setblocking(False)
    return sock, peer


def dial(reactor: Reactor, address: Address, port: int) -> socket.SocketType | int:
    """A socket that is connecting, with TCP_NODELAY; or the error number."""
    family = _FAMILY[address.family]
    if isinstance(reactor.poller, _CORES):
        fd = _relay.dial(address.packed(), port)
        return -fd if fd < 0 else socket.SocketType(family, socket.SOCK_STREAM, 0, fd)
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
