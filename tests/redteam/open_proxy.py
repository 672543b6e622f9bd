"""A proxy that refuses nothing: what the corpus must find fault with. Standard library only."""

from __future__ import annotations

import contextlib
import re
import socket
import sys
import threading


def relay(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def join(client: socket.socket, place: tuple[str, int], first: bytes, answer: bytes) -> None:
    upstream = socket.create_connection(place, 2)
    client.sendall(answer)
    upstream.sendall(first)
    back = threading.Thread(target=relay, args=(upstream, client), daemon=True)
    back.start()
    relay(client, upstream)
    back.join(5)


def http(client: socket.socket, head: bytes) -> None:
    while b"\n\r\n" not in head and b"\n\n" not in head:
        head += client.recv(65536) or b"\n\n"
    if connect := re.match(rb"CONNECT \[?(.*?)\]?:([0-9]+)[ \r\n]", head):
        rest = head.partition(b"\r\n\r\n")[2]
        join(client, (connect[1].decode(), int(connect[2])), rest, b"HTTP/1.1 200 OK\r\n\r\n")
    elif plain := re.match(rb"[A-Z]+ http://(?:[^/]*@)?\[?([^/]*?)\]?(?::([0-9]+))?(/.*)", head, re.DOTALL):
        first = head[: head.index(b" ") + 1] + plain[3]
        join(client, (plain[1].decode(), int(plain[2] or 80)), first, b"")


def socks(client: socket.socket, data: bytes) -> None:
    client.sendall(b"\x05\x00")
    request = data[2 + data[1] :] or client.recv(65536)
    if request[1] == 3:
        associate(client)
        return
    host, port, rest = place_in(request)
    join(client, (host, port), rest, b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")


def place_in(request: bytes) -> tuple[str, int, bytes]:
    """Host and port behind three bytes (RFC 1928 section 5), and what stands behind them."""
    if request[3] == 3:
        end = 5 + request[4]
        host = request[5:end].decode("latin-1")
    else:
        family, end = (socket.AF_INET, 8) if request[3] == 1 else (socket.AF_INET6, 20)
        host = socket.inet_ntop(family, request[4:end])
    return host, int.from_bytes(request[end : end + 2], "big"), request[end + 2 :]


def associate(client: socket.socket) -> None:
    """Every datagram goes where it says, and the answer comes back, until the client is silent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as near:
        near.bind(("127.0.0.1", 0))
        near.settimeout(2)
        client.sendall(b"\x05\x00\x00\x01\x7f\x00\x00\x01" + near.getsockname()[1].to_bytes(2, "big"))
        while True:
            data, peer = near.recvfrom(65536)
            host, port, payload = place_in(data)
            [(family, _, _, _, place), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
            with socket.socket(family, socket.SOCK_DGRAM) as far:
                far.settimeout(1)
                far.sendto(payload, place)
                with contextlib.suppress(OSError):
                    near.sendto(data[: len(data) - len(payload)] + far.recv(65536), peer)


def serve(client: socket.socket) -> None:
    with client, contextlib.suppress(OSError, ValueError, IndexError):
        data = client.recv(65536)
        (socks if data[:1] == b"\x05" else http)(client, data)


def main() -> None:
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=64)
    while True:
        client, _ = listener.accept()
        threading.Thread(target=serve, args=(client,), daemon=True).start()


if __name__ == "__main__":
    main()
