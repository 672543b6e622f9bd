"""A TLS client that counts the bytes of its own socket: CA ADDRESS NAME COUNT -> "SENT RECEIVED"."""

from __future__ import annotations

import contextlib
import socket
import ssl
import sys


def main(ca: str, address: str, name: str, count: str) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = ssl.create_default_context(cafile=ca).wrap_bio(incoming, outgoing, server_hostname=name)
    sent = received = 0
    with socket.create_connection((address, 443), 5) as sock:

        def pump(step: object) -> object:
            nonlocal sent, received
            while True:
                try:
                    result = step()  # type: ignore[operator]
                except ssl.SSLWantReadError:
                    result = None
                data = outgoing.read()
                sock.sendall(data)
                sent += len(data)
                if result is not None:
                    return result
                got = sock.recv(65536)
                if not got:
                    return b""
                received += len(got)
                incoming.write(got)

        pump(lambda: tls.do_handshake() or True)
        request = f"GET /bytes/{count} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n"
        pump(lambda: tls.write(request.encode()))
        with contextlib.suppress(ssl.SSLZeroReturnError):
            while pump(lambda: tls.read(65536)):
                pass
        while got := sock.recv(65536):
            received += len(got)
    print(sent, received)


if __name__ == "__main__":
    main(*sys.argv[1:])
