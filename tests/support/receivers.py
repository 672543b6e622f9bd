"""Systems that streams go to: a syslog server over TCP or TLS, and an HTTP one, on loopback."""

from __future__ import annotations

import json
import queue
import socket
import ssl
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATIENCE_S = 20.0


class Syslog:
    """Messages of all connections, in order, without their lengths (RFC 6587 section 3.4.1)."""

    def __init__(self, certificate: Path | None) -> None:
        self.messages: queue.Queue[str] = queue.Queue()
        self.connections: list[socket.socket] = []
        self._context = None
        if certificate is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                thread = threading.Thread(target=self._talk, args=(sock,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _talk(self, raw: socket.socket) -> None:
        with suppress(OSError):
            sock = self._context.wrap_socket(raw, server_side=True) if self._context else raw
            self.connections.append(sock)
            with sock, sock.makefile("rb") as file:
                while length := b"".join(iter(lambda: file.read(1).strip(b" "), b"")):
                    self.messages.put(file.read(int(length)).decode("ascii"))

    def take(self, count: int) -> list[str]:
        return [self.messages.get(timeout=PATIENCE_S) for _ in range(count)]

    def hang_up(self) -> None:
        for sock in self.connections:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self.connections.clear()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()
        for thread in self._threads:
            thread.join(PATIENCE_S)


@contextmanager
def syslog_server(certificate: Path | None = None) -> Iterator[Syslog]:
    server = Syslog(certificate)
    try:
        yield server
    finally:
        server.close()


class Web:
    """POSTs as (headers, body), answered with (status, headers, body) of `answers` in turn, then 200."""

    def __init__(self) -> None:
        self.posts: queue.Queue[tuple[dict[str, str], bytes]] = queue.Queue()
        self.answers: list[tuple[int, dict[str, str], bytes]] = []
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, headers, said = web.answers.pop(0) if web.answers else (200, {}, b"")
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(said))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(said)
                web.posts.put((dict(self.headers.items()), body))

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def take(self) -> tuple[dict[str, str], bytes]:
        return self.posts.get(timeout=PATIENCE_S)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def web_server() -> Iterator[Web]:
    web = Web()
    try:
        yield web
    finally:
        web.close()


def numbers(lines: bytes) -> list[int]:
    whole = lines[: lines.rfind(b"\n") + 1]  # the last one may be on its way
    return [json.loads(line)["seq"] for line in whole.splitlines()]
