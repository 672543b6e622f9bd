"""A connection that counts every byte of its socket, with or without TLS on top.

The counts are of TCP payload, records and handshake included: what the gateway's ledger and
the kernel count too, so that the three can be compared byte for byte.
"""

from __future__ import annotations

import contextlib
import io
import socket
import ssl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

_CHUNK = 262_144
_DRAIN_SECONDS = 5.0


class Counted:
    """One socket and its exact counts."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received = 0
        self.sent = 0
        self.ended = "open"  # eof, reset or timeout once the peer's direction is over

    def recv(self, limit: int = _CHUNK) -> bytes:
        """b"" at the end of the stream, however it came; `ended` says how."""
        try:
            data = self.sock.recv(limit)
        except TimeoutError:
            self.ended = "timeout"
            return b""
        except OSError:
            self.ended = "reset"
            return b""
        self.received += len(data)
        if not data:
            self.ended = "eof"
        return data

    def send(self, data: bytes | memoryview) -> None:
        """All of `data`. Raises OSError when the peer is gone; what went before is counted."""
        view = memoryview(data)
        while view:
            done = self.sock.send(view)
            self.sent += done
            view = view[done:]

    def finish(self) -> None:
        """End our direction, then read the other to its end so that nothing goes uncounted."""
        try:
            self.sock.shutdown(socket.SHUT_WR)
            self.sock.settimeout(_DRAIN_SECONDS)
            while self.ended == "open" and self.recv():
                pass
        except OSError:
            self.ended = "reset"
        finally:
            self.sock.close()


class Plain(io.RawIOBase):
    """The file interface `http.server` wants, over a Counted socket."""

    def __init__(self, counted: Counted) -> None:
        self.counted = counted

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        data = self.counted.recv(min(len(view), _CHUNK))
        view[: len(data)] = data
        return len(data)

    def write(self, data: ReadableBuffer) -> int:
        view = memoryview(data)
        self.counted.send(view)
        return len(view)

    def end(self) -> None:
        """Say goodbye in the protocol's own way (plain TCP has none)."""


class Secure(Plain):
    """The same through TLS: the record layer runs on memory buffers, the socket is counted."""

    def __init__(self, counted: Counted, context: ssl.SSLContext) -> None:
        super().__init__(counted)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._peer_done = False

    def handshake(self) -> None:
        """Raises ssl.SSLError or ConnectionError when the client does not go through with it."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                if not self._feed():
                    raise ConnectionError("client left during the handshake") from None
            except ssl.SSLError:
                self._flush()  # the alert belongs to the count too
                raise
            else:
                return self._flush()

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        while True:
            try:
                data = self._tls.read(len(view))
            except ssl.SSLWantReadError:
                self._flush()
                if not self._feed():
                    return 0
            else:
                self._peer_done = not data  # an empty read is the peer's close_notify
                view[: len(data)] = data
                return len(data)

    def write(self, data: ReadableBuffer) -> int:
        view = memoryview(data)
        for start in range(0, len(view), _CHUNK):
            self._tls.write(view[start : start + _CHUNK])
            self._flush()
        return len(view)

    def end(self) -> None:
        # A peer that has said goodbye first may be gone: what we sent now would be answered by a
        # reset and nobody could say whether it was delivered. Nothing is owed to it any more.
        if self._peer_done or self.counted.ended != "open":
            return
        with contextlib.suppress(ssl.SSLError):  # the peer's close_notify has not come; ours is ready
            self._tls.unwrap()
        try:
            self._flush()
        except OSError:
            self.counted.ended = "reset"

    def _feed(self) -> bool:
        data = self.counted.recv()
        if data:
            self._incoming.write(data)
        return bool(data)

    def _flush(self) -> None:
        if self._outgoing.pending:
            self.counted.send(self._outgoing.read())
