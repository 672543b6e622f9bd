"""A mail server on loopback with STARTTLS and AUTH PLAIN, as far as a client of ours needs one."""

from __future__ import annotations

import base64
import queue
import socketserver
import ssl
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class MailServer:
    """Mails as (who signed in or "", over TLS or not, text), in `mails`."""

    def __init__(self, certificate: Path | None, refuse: str = "") -> None:
        self.mails: queue.Queue[tuple[str, bool, str]] = queue.Queue()
        context = None
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        mails = self.mails

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                sock: Any = self.request
                sock.settimeout(30)
                who, tls = "", False
                file = sock.makefile("rb")
                sock.sendall(b"220 test\r\n")
                try:
                    while line := file.readline().decode("ascii", "replace").strip():
                        word = line.split(" ")[0].upper()
                        if refuse and word == refuse:
                            sock.sendall(b"554 no\r\n")
                        elif word == "EHLO":
                            offers = ("AUTH PLAIN",) if tls or context is None else ("STARTTLS",)
                            sock.sendall(f"250-test\r\n250 {offers[0]}\r\n".encode())
                        elif word == "STARTTLS" and context is not None:
                            sock.sendall(b"220 go\r\n")
                            file.close()
                            sock = context.wrap_socket(sock, server_side=True)
                            file, tls = sock.makefile("rb"), True
                        elif word == "AUTH":
                            who = base64.b64decode(line.split(" ")[2]).decode()
                            sock.sendall(b"235 yes\r\n")
                        elif word == "DATA":
                            sock.sendall(b"354 go\r\n")
                            lines = iter(file.readline, b".\r\n")
                            mails.put((who, tls, b"".join(lines).decode()))
                            sock.sendall(b"250 ok\r\n")
                        elif word == "QUIT":
                            sock.sendall(b"221 bye\r\n")
                            break
                        else:
                            sock.sendall(b"250 ok\r\n")
                except OSError:
                    pass  # who hangs up in the middle is what the test is about
                finally:
                    file.close()
                    sock.close()

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def mail_server(certificate: Path | None = None, refuse: str = "") -> Iterator[MailServer]:
    server = MailServer(certificate, refuse)
    try:
        yield server
    finally:
        server.close()
