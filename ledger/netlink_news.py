"""Reading what the kernel tells by netlink multicast, without waiting for it."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

DATAGRAM: Final = 1 << 16  # bytes; the kernel's are smaller


def told(sock: socket.socket, lost: Callable[[], None]) -> Iterator[bytes]:
    """All datagrams that are there now; `lost` each time the kernel had to drop some. Raises OSError."""
    while True:
        try:
            data = sock.recv(DATAGRAM)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            lost()
        else:
            yield data
