"""HTTP as far as witnesses need it: one request to a connection, everything bounded.

The client connects to addresses only: no name is ever looked up here. The server takes what is
small and whole, from a bounded number of clients, each for a bounded time.
"""

from __future__ import annotations

import contextlib
import errno
import re
import socket
import sys
import threading
import time
from http.client import HTTPException, HTTPResponse
from typing import TYPE_CHECKING, Final, NamedTuple

from exeat.ledger.note import MAX_NOTE
from exeat.ledger.records import printable
from exeat.ledger.witness import Reply
from exeat.ledger.witness_tls import asking

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from exeat.ledger.witness import Witness
    from exeat.ledger.witness_tls import DoorTls, Identity

MAX_BODY: Final = 2 * MAX_NOTE  # bytes
_MAX_HEAD: Final = 8192  # bytes
_MAX_CLIENTS: Final = 32
_SERVE_S: Final = 10.0  # a client is done by then, or is dropped
_PAUSE_S: Final = 0.5
_OVER: Final = frozenset({errno.EINVAL, errno.EBADF})  # accept(2): it listens no more
_REQUEST: Final = re.compile(rb"(GET|POST) (/[!-~]*) HTTP/1\.[01]")
_LENGTH: Final = re.compile(rb"[0-9]{1,7}")
_MONITOR: Final = re.compile(r"/([0-9a-f]{64})/checkpoint")
_STATUS: Final = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    409: "Conflict",
    422: "Unprocessable Content",
    500: "Internal Server Error",
}


class Place(NamedTuple):
    """Where a witness is: `host` is what it is called, `address` where it is connected to."""

    host: str
    path: str
    address: tuple[str, int]
    tls: bool
    ca: Path | None = None
    own: Identity | None = None


class Answer(NamedTuple):
    status: int
    body: str
    content_type: str


class HttpError(Exception):
    """No answer, or none that can be read."""


def post(place: Place, name: str, body: str, timeout_s: float) -> Answer:
    """Send `body` to `name` below the place's path; all of it within `timeout_s`. Raises HttpError."""
    data = body.encode()
    head = (
        f"POST {place.path}/{name} HTTP/1.1\r\nHost: {place.host}\r\nContent-Type: text/plain\r\n"
        f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    )
    family = socket.AF_INET6 if ":" in place.address[0] else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as plain, _deadline(plain, timeout_s):
            plain.settimeout(timeout_s)
            plain.connect(place.address)
            with _secured(plain, place) as sock:
                sock.sendall(head.encode() + data)
                return _answer(sock)
    except (OSError, HTTPException, UnicodeDecodeError, ValueError) as error:
        # What is no HTTP stands in the error as it came.
        raise HttpError(printable(str(error) or type(error).__name__, 300)) from None


def _secured(sock: socket.socket, place: Place) -> socket.socket:
    if not place.tls:
        return sock
    name = place.host.rpartition(":")[0].strip("[]") or place.host
    return asking(place.ca, place.own).wrap_socket(sock, server_hostname=name)


def _answer(sock: socket.socket) -> Answer:
    response = HTTPResponse(sock, method="POST")
    response.begin()
    body = response.read(MAX_BODY + 1)
    if len(body) > MAX_BODY:
        raise ValueError("an answer that is too long")
    return Answer(response.status, body.decode(), response.getheader("Content-Type", ""))


@contextlib.contextmanager
def _deadline(sock: socket.socket, seconds: float) -> Iterator[None]:
    """Whatever trickles in, `sock` ends after `seconds`."""
    same = sock.dup()  # TLS takes the descriptor out of `sock`, and what is closed may be another's by then

    def end() -> None:
        with contextlib.suppress(OSError):
            same.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        same.close()


class Server:
    """Answers for a witness on one listening socket, a thread for each client; with `tls` by HTTPS."""

    def __init__(self, listener: socket.socket, witness: Witness, tls: DoorTls | None = None) -> None:
        self._listener, self._witness, self._tls = listener, witness, tls
        self._room = threading.BoundedSemaphore(_MAX_CLIENTS)

    def run(self) -> None:
        """Until the listener is shut down."""
        while True:
            self._room.acquire()
            try:
                sock, _ = self._listener.accept()
                threading.Thread(target=self._client, args=(sock,), daemon=True).start()
            except (OSError, RuntimeError) as error:  # no descriptor, or no thread, to be had
                if getattr(error, "errno", 0) in _OVER:
                    return
                self._room.release()
                print(f"exeat: witness: {error}", file=sys.stderr, flush=True)
                time.sleep(_PAUSE_S)

    def _client(self, sock: socket.socket) -> None:
        try:
            with sock, _deadline(sock, _SERVE_S), contextlib.suppress(OSError):
                sock.settimeout(_SERVE_S)
                with self._greeted(sock) as safe:
                    safe.sendall(_written(self._reply(safe)))
        finally:
            self._room.release()

    def _greeted(self, sock: socket.socket) -> socket.socket:
        return sock if self._tls is None else self._tls.context().wrap_socket(sock, server_side=True)

    def _reply(self, sock: socket.socket) -> Reply:
        try:
            method, path, body = _request(sock)
            return self._route(method, path, body)
        except ValueError as error:
            return Reply(400, f"{error}\n")
        except OSError as error:
            print(f"exeat: witness: {error}", file=sys.stderr, flush=True)
            return Reply(500, "nothing was cosigned\n")

    def _route(self, method: str, path: str, body: str) -> Reply:
        actions: dict[str, Callable[[str], Reply]] = {
            "/add-checkpoint": self._witness.add_checkpoint,
            "/add-keys": self._witness.add_keys,
        }
        if method == "POST" and path in actions:
            return actions[path](body)
        match = _MONITOR.fullmatch(path)
        if method == "GET" and match is not None:
            return self._witness.checkpoint(match[1])
        return Reply(404, "there is nothing here\n")


def _request(sock: socket.socket) -> tuple[str, str, str]:
    """(method, path, body). Raises ValueError, OSError."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(_MAX_HEAD)
        data += more
        if not more or (len(data) > _MAX_HEAD and b"\r\n\r\n" not in data[:_MAX_HEAD]):
            raise ValueError("not a request, or its head is too long")
    head, _, body = data.partition(b"\r\n\r\n")
    line, *fields = head.split(b"\r\n")
    match = _REQUEST.fullmatch(line)
    lengths = [
        value.strip()
        for name, _, value in (each.partition(b":") for each in fields)
        if name.lower() == b"content-length"
    ]
    if match is None or any(each.lower().startswith(b"transfer-encoding") for each in fields):
        raise ValueError("not a request of a known form")
    if len(lengths) > 1 or not all(map(_LENGTH.fullmatch, lengths)):
        raise ValueError("not one length")
    length = int(lengths[0]) if lengths else 0
    if length > MAX_BODY:
        raise ValueError("too long")
    while len(body) < length:
        more = sock.recv(length - len(body))
        if not more:
            raise ValueError("it breaks off")
        body += more
    return match[1].decode(), match[2].decode(), body[:length].decode()


def _written(reply: Reply) -> bytes:
    body = reply.body.encode()
    head = (
        f"HTTP/1.1 {reply.status} {_STATUS[reply.status]}\r\nContent-Type: {reply.content_type}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
