"""The lab's web servers: two TLS origins and a plain one, told apart by their address.

/                  a page that names the origin
/bytes/N?rate=B    N bytes; B bytes a second when given
/upload            POST or PUT: answers with the number of bytes that came
/echo              the request's headers as JSON
/simple/, /files/  a package index (PEP 503) and its wheel
/git/              a repository over the "dumb" HTTP protocol
"""

from __future__ import annotations

import io
import itertools
import json
import ssl
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qs, urlsplit

from exeat.appliance.lab import plan, service
from exeat.appliance.lab.stream import Counted, Plain, Secure

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from pathlib import Path

_IDLE_SECONDS = 60.0
_MAX_BYTES = 8 << 30
_BLOCK = bytes(range(256)) * 256  # 64 KiB whose every offset is known: byte i is i mod 256
_SOUTH = {plan.SOUTH4, plan.SOUTH6}


def pattern(count: int, rate: int = 0) -> Iterator[bytes]:
    """`count` bytes in blocks; paced to about `rate` bytes a second when it is not zero."""
    step = min(len(_BLOCK), max(256, rate // 20 // 256 * 256)) if rate else len(_BLOCK)
    begun, done = time.monotonic(), 0
    while done < count:
        block = _BLOCK[: min(step, count - done)]
        yield block
        done += len(block)
        if rate:
            time.sleep(max(0.0, begun + done / rate - time.monotonic()))


class Handler(BaseHTTPRequestHandler):
    """HTTP/1.1 over a counted stream; the server's part is played by `Origin`."""

    protocol_version = "HTTP/1.1"
    server_version = "exeat-lab"
    origin: Origin
    stream: Plain
    requests: list[str]

    def setup(self) -> None:
        self.rfile = io.BufferedReader(self.stream, 65_536)
        self.wfile = cast("Any", io.BufferedWriter(self.stream, 65_536))

    def finish(self) -> None:
        try:
            self.wfile.flush()
        except (OSError, ssl.SSLError):
            self.stream.counted.ended = "reset"

    def handle_expect_100(self) -> bool:
        accepted = super().handle_expect_100()
        self.wfile.flush()
        return accepted

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        self.requests.append(f"{self.command} {self.headers.get('Host', '')}{self.path} {int(code)}")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Errors are visible as the answer's status; the event log has them."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path.startswith("/bytes/"):
            self._bytes(url.path[len("/bytes/") :], parse_qs(url.query).get("rate", ["0"])[0])
        elif url.path == "/echo":
            self._answer(json.dumps(dict(self.headers.items())).encode(), "application/json")
        else:
            self._file(url.path)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        if urlsplit(self.path).path != "/upload":
            return self.send_error(HTTPStatus.NOT_FOUND)
        self._answer(f"{self._drain_body()}\n".encode(), "text/plain")

    do_PUT = do_POST

    def _bytes(self, count_text: str, rate_text: str) -> None:
        if not (
            count_text.isascii() and count_text.isdigit() and rate_text.isascii() and rate_text.isdigit()
        ):
            return self.send_error(HTTPStatus.BAD_REQUEST)
        count = min(int(count_text), _MAX_BYTES)
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(count))
        self.end_headers()
        if self.command == "HEAD":
            return
        for block in pattern(count, int(rate_text)):
            self.wfile.write(block)
            if rate_text != "0":
                self.wfile.flush()

    def _drain_body(self) -> int:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            return self._drain_chunks()
        left = total = int(self.headers.get("Content-Length", "0"))
        while left:
            data = self.rfile.read(min(left, 65_536))
            if not data:
                break
            left -= len(data)
        return total - left

    def _drain_chunks(self) -> int:
        total = 0
        while size := int(self.rfile.readline().split(b";")[0], 16):
            total += len(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return total

    def _file(self, path: str) -> None:
        found = self.origin.lookup(path)
        if found is None:
            return self.send_error(HTTPStatus.NOT_FOUND)
        kind = (
            "text/html"
            if found.suffix in ("", ".html") and "/git/" not in path
            else "application/octet-stream"
        )
        self._answer(found.read_bytes(), kind)

    def _answer(self, body: bytes, kind: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class Origin:
    """All connections of the namespace: who came, what they asked, how many bytes it was."""

    def __init__(self, run_dir: Path, log: service.EventLog) -> None:
        self._log = log
        self._root = (run_dir / "www").resolve()
        self._numbers = itertools.count(1)
        self._handshake = threading.local()
        self._contexts = {side: self._context(run_dir, side) for side in ("north", "south")}

    def _context(self, run_dir: Path, side: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(run_dir / "pki" / f"{side}.pem", run_dir / "pki" / f"{side}.key")
        context.sni_callback = self._note_sni
        return context

    def _note_sni(self, _tls: object, name: str | None, _context: object) -> None:
        self._handshake.sni = name or ""

    def lookup(self, path: str) -> Path | None:
        """The file of a URL path, never one outside the root; a folder means its index.html."""
        found = (self._root / path.lstrip("/")).resolve()
        if found.is_dir():
            found /= "index.html"
        return found if found.is_relative_to(self._root) and found.is_file() else None

    def plain(self, sock: socket.socket) -> None:
        counted = Counted(sock)
        self._serve(counted, "http", lambda: Plain(counted))

    def secure(self, sock: socket.socket) -> None:
        counted = Counted(sock)
        side = "south" if sock.getsockname()[0] in _SOUTH else "north"

        def stream() -> Plain:
            secured = Secure(counted, self._contexts[side])
            secured.handshake()
            return secured

        self._serve(counted, f"https-{side}", stream)

    def _serve(self, counted: Counted, origin: str, stream: Any) -> None:
        number, begun = next(self._numbers), time.monotonic()
        peer, local = counted.sock.getpeername(), counted.sock.getsockname()
        counted.sock.settimeout(_IDLE_SECONDS)
        self._handshake.sni = ""
        self._log.write("open", conn=number, origin=origin, peer=service.endpoint(peer))
        requests: list[str] = []
        error = ""
        try:
            self._converse(stream(), peer, requests)
        except (OSError, ValueError) as problem:  # ssl.SSLError is an OSError
            error = f"{type(problem).__name__}: {problem}"
        counted.finish()
        self._log.write(
            "close", conn=number, origin=origin, peer=service.endpoint(peer), local=service.endpoint(local),
            sni=self._handshake.sni, received=counted.received, sent=counted.sent, ended=counted.ended,
            ms=round((time.monotonic() - begun) * 1000), requests=requests, error=error,
        )  # fmt: skip

    def _converse(self, stream: Plain, peer: Any, requests: list[str]) -> None:
        handler = type("BoundHandler", (Handler,), {"origin": self, "stream": stream, "requests": requests})
        try:
            handler(stream.counted.sock, peer, None)
        finally:
            stream.end()


def main() -> None:
    args = service.arguments("the lab's web servers")
    service.block_signals()
    origin = Origin(args.run_dir, service.EventLog(args.events))
    service.serve_tcp(80, origin.plain)
    for port in (443, 8443):
        service.serve_tcp(port, origin.secure)
    service.run_until_told(args.ready_fd)


if __name__ == "__main__":
    main()
