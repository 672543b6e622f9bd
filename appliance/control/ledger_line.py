"""A connection to the ledger that answers for the flows opened on it.

The ledger settles the open flows of a connection that ends, with what they had reserved. So each flow that
control answers for has one of these, and whoever cannot say how a flow ended closes its line.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Final

from exeat.ledger.wire import REPLY, Status, pack_request

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE_S: Final = 2.0


class LedgerLine:
    """To the ledger at `path`. Connects when it has something to say."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sock: socket.socket | None = None
        self._turn = asyncio.Lock()

    @property
    def lost(self) -> bool:
        """Whether there is no connection, or the ledger has ended it."""
        if self._sock is None:
            return True
        try:
            return self._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    async def append(self, *records: bytes) -> Status:
        """What the ledger said of the records, which are durable if it is DURABLE. UNAVAILABLE closes."""
        async with self._turn:
            try:
                async with asyncio.timeout(PATIENCE_S):
                    sock = await self._connected()
                    loop = asyncio.get_running_loop()
                    await loop.sock_sendall(sock, pack_request(1, records))
                    reply = await loop.sock_recv(sock, 64)
            except (OSError, TimeoutError):
                reply = b""
            if len(reply) == REPLY.size:
                return Status(REPLY.unpack(reply)[1])
            self.close()
            return Status.UNAVAILABLE

    async def _connected(self) -> socket.socket:
        if self._sock is not None and not self.lost:
            return self._sock
        self.close()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._sock = sock
        await asyncio.get_running_loop().sock_connect(sock, str(self._path))
        return sock

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None
