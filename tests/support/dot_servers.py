"""DNS over TLS servers on loopback for tests: an honest one, and ones that break off or delay."""

from __future__ import annotations

import socket
import ssl
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import dns.message

from exeat.appliance.lab import pki
from exeat.dns.upstream import Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.dns_servers import Handler

NAME = "api.example.org"  # one that the lab's certificate `north` is for


@dataclass
class DotServer:
    """`talk` gets each connection after its handshake; `raw` holds every query in order of arrival."""

    handler: Handler
    talk: Callable[[DotServer, ssl.SSLSocket], None]
    server: Server
    connections: int = 0
    failed: int = 0  # handshakes
    raw: list[bytes] = field(default_factory=list)
    versions: set[str | None] = field(default_factory=set)
    resumed: int = 0


def read_query(stream: ssl.SSLSocket) -> bytes:
    """One framed message; b"" at the end."""
    head = _exactly(stream, 2)
    return _exactly(stream, int.from_bytes(head, "big")) if head else b""


def _exactly(stream: ssl.SSLSocket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = stream.recv(size - len(data))
        if not more:
            return b""
        data += more
    return data


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message


def answer_each(server: DotServer, stream: ssl.SSLSocket) -> None:
    """An honest server."""
    while data := read_query(stream):
        server.raw.append(data)
        for reply in server.handler(dns.message.from_wire(data), False):
            stream.sendall(framed(reply))


@contextmanager
def dot_server(
    folder: Path,
    handler: Handler,
    *,
    talk: Callable[[DotServer, ssl.SSLSocket], None] = answer_each,
    certificate: str = "north",
    name: str = NAME,
    change: Callable[[ssl.SSLContext], None] = lambda _: None,
) -> Iterator[DotServer]:
    """Serve with one of the lab's certificates, made in `folder` on first use (its root: `ca.pem`)."""
    if not (folder / "ca.pem").exists():
        pki.create(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / f"{certificate}.pem", folder / f"{certificate}.key")
    change(context)
    listener = socket.create_server(("127.0.0.1", 0))
    server = DotServer(handler, talk, Server("127.0.0.1", listener.getsockname()[1], name))
    threads: list[threading.Thread] = []

    def serve(sock: socket.socket) -> None:
        with sock:
            sock.settimeout(30)
            try:
                stream = context.wrap_socket(sock, server_side=True)
            except OSError:
                server.failed += 1
                return
            server.versions.add(stream.version())
            server.resumed += bool(stream.session_reused)
            with stream, suppress(OSError):
                talk(server, stream)

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            server.connections += 1
            thread = threading.Thread(target=serve, args=(sock,), daemon=True)
            threads.append(thread)
            thread.start()

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield server
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        acceptor.join(30)
        listener.close()
        for thread in threads:
            thread.join(30)
