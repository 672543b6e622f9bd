"""Load for `bench.proxy`: an origin, and clients that go through a proxy by CONNECT or straight to it.

`python -m bench.proxy_load origin HOST PORT`: echo on PORT, an endless source on PORT+1.
`python -m bench.proxy_load MODE TARGET PROXY COUNT SECONDS`: one line of JSON. PROXY is HOST:PORT, or
`direct`. `idle` says `ready` and keeps its tunnels until its standard input ends.
"""

from __future__ import annotations

import json
import select
import socket
import statistics
import sys
import time
from typing import Any

WARM_S = 1.0
PING = b"p" * 64
BUFFER = bytearray(1 << 20)


def origin(host: str, port: int) -> None:
    echo, source = socket.create_server((host, port), backlog=4096), socket.create_server((host, port + 1))
    poll = select.epoll()
    known: dict[int, tuple[socket.socket, bool]] = {}
    for listener in (echo, source):
        listener.setblocking(False)
        poll.register(listener.fileno(), select.EPOLLIN)
    print("ready", flush=True)
    while True:
        for fd, _ in poll.poll():
            if fd in (echo.fileno(), source.fileno()):
                sock, _ = (echo if fd == echo.fileno() else source).accept()
                sock.setblocking(False)
                is_source = fd == source.fileno()
                known[sock.fileno()] = (sock, is_source)
                poll.register(sock.fileno(), select.EPOLLOUT if is_source else select.EPOLLIN)
            elif not _serve(*known[fd]):
                poll.unregister(fd)
                known.pop(fd)[0].close()


def _serve(sock: socket.socket, is_source: bool) -> bool:
    """One turn for one connection; False when it has ended."""
    try:
        if is_source:
            return sock.send(BUFFER) > 0
        data = sock.recv(65536)
        return bool(data) and sock.send(data) == len(data)
    except BlockingIOError:
        return True
    except OSError:
        return False


class Tunnels:
    """Opens connections to `target`, through `proxy` or directly."""

    def __init__(self, target: str, proxy: str) -> None:
        host, port = target.rsplit(":", 1)
        self.direct = proxy == "direct"
        at = (host, port) if self.direct else tuple(proxy.rsplit(":", 1))
        self.address = (at[0], int(at[1]))
        self.request = b"CONNECT %s HTTP/1.1\r\n\r\n" % target.encode()

    def open(self) -> socket.socket:
        """A tunnel that is up; blocking."""
        sock = socket.create_connection(self.address, 30)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not self.direct:
            sock.sendall(self.request)
            answer = sock.recv(4096)
            if not answer.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(answer.decode("latin-1"))
        return sock

    def begin(self) -> socket.socket:
        """A connection being made; not blocking. Its first words are for when it is writable."""
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(self.address)
        return sock


def conn(tunnels: Tunnels, count: int, seconds: float) -> dict[str, Any]:
    """Tunnels made, used for one byte each way, and closed; `count` at the same time."""
    poll = select.epoll()
    states: dict[int, tuple[socket.socket, int, float]] = {}

    def start() -> None:
        sock = tunnels.begin()
        states[sock.fileno()] = (sock, 0, time.perf_counter())
        poll.register(sock.fileno(), select.EPOLLOUT)

    for _ in range(count):
        start()
    begin = time.perf_counter() + WARM_S
    end = begin + seconds
    took: list[float] = []
    while (now := time.perf_counter()) < end:
        for fd, _ in poll.poll(1):
            sock, step, since = states[fd]
            if step == 0:
                sock.send(b"x" if tunnels.direct else tunnels.request)
                poll.modify(fd, select.EPOLLIN)
                states[fd] = (sock, 2 if tunnels.direct else 1, since)
            elif step == 1:
                if not sock.recv(4096).startswith(b"HTTP/1.1 200"):
                    raise RuntimeError("refused")
                sock.send(b"x")
                states[fd] = (sock, 2, since)
            else:
                if sock.recv(16) != b"x":
                    raise RuntimeError("no echo")
                poll.unregister(fd)
                sock.close()
                del states[fd]
                if now >= begin:
                    took.append(time.perf_counter() - since)
                start()
    return {"rate": len(took) / seconds, "p50_us": _us(took, 50), "p99_us": _us(took, 99)}


def ping(tunnels: Tunnels, count: int, seconds: float) -> dict[str, Any]:
    """64 bytes there and back on each tunnel, again and again."""
    poll = select.epoll()
    socks = [tunnels.open() for _ in range(count)]
    sent: dict[int, float] = {}
    by_fd = {sock.fileno(): sock for sock in socks}
    for fd, sock in by_fd.items():
        poll.register(fd, select.EPOLLIN)
        sent[fd] = time.perf_counter()
        sock.send(PING)
    begin = time.perf_counter() + WARM_S
    took: list[float] = []
    while time.perf_counter() < begin + seconds:
        for fd, _ in poll.poll(1):
            if len(by_fd[fd].recv(256)) != len(PING):
                raise RuntimeError("a ping came back in pieces")
            now = time.perf_counter()
            if now >= begin:
                took.append(now - sent[fd])
            sent[fd] = now
            by_fd[fd].send(PING)
    return {"rate": len(took) / seconds, "p50_us": _us(took, 50), "p99_us": _us(took, 99)}


def down(tunnels: Tunnels, count: int, seconds: float) -> dict[str, Any]:
    """Bytes received as fast as they come."""
    poll = select.epoll()
    by_fd = {}
    for sock in [tunnels.open() for _ in range(count)]:
        by_fd[sock.fileno()] = sock
        poll.register(sock.fileno(), select.EPOLLIN)
    begin = time.perf_counter() + WARM_S
    got = 0
    while (now := time.perf_counter()) < begin + seconds:
        for fd, _ in poll.poll(1):
            # MSG_TRUNC: the kernel throws the bytes away instead of copying them to us.
            read = by_fd[fd].recv_into(BUFFER, 0, socket.MSG_TRUNC)
            got += read if now >= begin else 0
    return {"GBps": got / seconds / 1e9}


def idle(tunnels: Tunnels, count: int, _seconds: float) -> dict[str, Any]:
    socks = [tunnels.open() for _ in range(count)]
    print("ready", flush=True)
    sys.stdin.read()
    return {"open": len(socks)}


def _us(took: list[float], percent: int) -> float:
    return statistics.quantiles(took, n=100)[percent - 1] * 1e6 if len(took) > 1 else 0.0


def main(words: list[str]) -> None:
    if words[0] == "origin":
        origin(words[1], int(words[2]))
    mode, target, proxy, count, seconds = words
    run = {"conn": conn, "ping": ping, "down": down, "idle": idle}[mode]
    print(json.dumps(run(Tunnels(target, proxy), int(count), float(seconds))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
