"""The framing that every exeat process speaks to its siblings.

A frame is a big-endian u32 length and that many bytes of UTF-8 JSON (one object). File
descriptors travel beside it by SCM_RIGHTS: a message that carries n of them says `"fds": n`,
and the receiver takes that many, in order, from those the socket brought.

Who is at the other end is never in a message: it comes from SO_PEERCRED (`peer_uid`).
It lives in the ledger area because that is the lowest layer that does I/O.
"""

from __future__ import annotations

import array
import json
import os
import socket
import struct
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

MAX_FRAME = 64 * 1024 * 1024  # bytes; a policy snapshot of 100k rules is about 20 MB
MAX_FDS = 32
_HEADER = struct.Struct(">I")
_CRED = struct.Struct("3i")

Message = dict[str, Any]


class IpcError(Exception):
    """The peer broke the framing, or went away in the middle of a message."""


class PeerClosedError(IpcError):
    """The peer closed the socket between two messages."""


def peer_uid(sock: socket.socket) -> int:
    """The uid of the process at the other end when it connected, or began to listen (SO_PEERCRED)."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CRED.size)
    return int(_CRED.unpack(credentials)[1])


def listen(path: Path, *, kind: int = socket.SOCK_STREAM, mode: int = 0o666) -> socket.socket:
    """A listening Unix socket at `path`, replacing a stale one.

    The mode is open on purpose: each server judges `peer_uid` on every accepted socket.
    """
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
    sock.bind(str(path))
    path.chmod(mode)
    sock.listen(64)
    return sock


def encode(message: Message) -> bytes:
    body = json.dumps(message, separators=(",", ":")).encode()
    if len(body) > MAX_FRAME:
        raise IpcError(f"message of {len(body)} bytes is over the limit of {MAX_FRAME}")
    return _HEADER.pack(len(body)) + body


class FrameDecoder:
    """Bytes in, messages out (sans-I/O). Raises IpcError on anything that is not a frame."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        self._buffer += data
        out: list[Message] = []
        while len(self._buffer) >= _HEADER.size:
            (length,) = _HEADER.unpack_from(self._buffer)
            if length > MAX_FRAME:
                raise IpcError(f"frame of {length} bytes is over the limit of {MAX_FRAME}")
            end = _HEADER.size + length
            if len(self._buffer) < end:
                break
            out.append(_parse(bytes(self._buffer[_HEADER.size : end])))
            del self._buffer[:end]
        return out

    @property
    def idle(self) -> bool:
        return not self._buffer


def _parse(body: bytes) -> Message:
    try:
        message = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise IpcError(f"frame is not JSON: {error}") from None
    if not isinstance(message, dict):
        raise IpcError("frame is not a JSON object")
    return message


class Channel:
    """One connected socket, blocking or not; owns the socket and any descriptors not yet taken.

    For an event loop: call `receive` when readable and `flush` when writable, and watch for
    writability while `wants_write`. For a simple client: `call` on a blocking socket.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._decoder = FrameDecoder()
        self._fds: deque[int] = deque()
        self._out: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._ready: deque[tuple[Message, list[int]]] = deque()

    @classmethod
    def connect(cls, path: Path, *, timeout: float | None = None) -> Channel:
        """Connect to `path`; blocking, with `timeout` seconds per operation when given."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout)
            sock.connect(str(path))
        except OSError:
            sock.close()
            raise
        return cls(sock)

    def fileno(self) -> int:
        return self.sock.fileno()

    @property
    def wants_write(self) -> bool:
        return bool(self._out)

    @property
    def unsent(self) -> int:
        """Messages that the socket has not taken yet."""
        return len(self._out)

    def send(self, message: Message, fds: tuple[int, ...] | list[int] = ()) -> None:
        """Queue a message (the descriptors stay the caller's) and write what the socket takes."""
        if fds:
            message = {**message, "fds": len(fds)}
        # Dup now: the caller may close its own as soon as this returns, sent or not.
        self._out.append((encode(message), tuple(os.dup(fd) for fd in fds)))
        self.flush()

    def flush(self) -> None:
        """Write queued bytes until the socket would block. Raises OSError if the peer is gone."""
        while self._out:
            data, fds = self._out[0]
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            try:
                sent = self.sock.sendmsg([data], ancillary)
            except BlockingIOError:
                return
            _close_all(fds)
            if sent == len(data):
                self._out.popleft()
            else:
                self._out[0] = (data[sent:], ())

    def receive(self) -> list[tuple[Message, list[int]]]:
        """Everything that has arrived. Raises PeerClosedError at end of stream."""
        got = self._read()
        if not got and not self._ready:
            return []
        out = list(self._ready)
        self._ready.clear()
        return out

    def _read(self) -> bool:
        try:
            data, fds, flags, _ = socket.recv_fds(self.sock, 262144, MAX_FDS)
        except BlockingIOError:
            return False
        self._fds.extend(fds)
        if flags & socket.MSG_CTRUNC:
            raise IpcError("descriptors were cut off")
        if not data:
            raise PeerClosedError("peer closed" if self._decoder.idle else "peer closed inside a frame")
        for message in self._decoder.feed(data):
            self._ready.append((message, self._take(message)))
        return True

    def _take(self, message: Message) -> list[int]:
        count = message.get("fds", 0)
        if not isinstance(count, int) or not 0 <= count <= len(self._fds):
            raise IpcError("message names descriptors that did not come")
        return [self._fds.popleft() for _ in range(count)]

    def next(self) -> tuple[Message, list[int]]:
        """The next message, on a blocking socket."""
        while not self._ready:
            self._read()
        return self._ready.popleft()

    def call(self, message: Message, fds: tuple[int, ...] | list[int] = ()) -> tuple[Message, list[int]]:
        """Send one request and wait for the next message, on a blocking socket."""
        self.send(message, fds)
        return self.next()

    def close(self) -> None:
        self.sock.close()
        for _, fds in self._out:
            _close_all(fds)
        for _, taken in self._ready:
            _close_all(taken)
        _close_all(self._fds)
        self._out.clear()
        self._ready.clear()
        self._fds.clear()


def _close_all(fds: Any) -> None:
    for fd in fds:
        os.close(fd)
