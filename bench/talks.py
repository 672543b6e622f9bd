"""Many conversations in one thread, cheaper than asyncio: each is a generator that yields while it waits.

For the benches: what makes and answers flows should not be what is measured.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

_EDGES: Final = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
_AT_ONCE: Final = 256


class Talks:
    """`begin` conversations, each with a socket of its own, and `turn` as long as there are some."""

    def __init__(self, patience_s: float = float("inf")) -> None:
        """One that lasts longer than `patience_s` gets TimeoutError where it waits."""
        self._epoll = select.epoll()
        self._talks: dict[int, Generator[None, None, None]] = {}
        self._patience_s = patience_s
        self._oldest: deque[tuple[float, int, Generator[None, None, None]]] = deque()

    def __len__(self) -> int:
        return len(self._talks)

    def begin(self, sock: socket.socket, talk: Generator[None, None, None]) -> None:
        """It owns the socket, which does not block, and closes it in the end."""
        fd = sock.fileno()
        self._epoll.register(fd, _EDGES)
        self._talks[fd] = talk
        if self._patience_s != float("inf"):
            self._oldest.append((time.monotonic() + self._patience_s, fd, talk))
        self._go_on(fd, talk)

    def listen(
        self, sock: socket.socket, serve: Callable[[socket.socket], Generator[None, None, None]]
    ) -> None:
        """Have each connection served by a conversation of its own."""
        sock.setblocking(False)

        def accept() -> Generator[None, None, None]:
            while True:
                with contextlib.suppress(BlockingIOError):
                    while True:
                        client = sock.accept()[0]
                        client.setblocking(False)
                        self.begin(client, serve(client))
                yield

        self.begin(sock, accept())

    def turn(self, wait_s: float = 1.0) -> None:
        for fd, _ in self._epoll.poll(wait_s, _AT_ONCE):
            talk = self._talks.get(fd)
            if talk is not None:
                self._go_on(fd, talk)
        now = time.monotonic()
        while self._oldest and (self._oldest[0][0] < now or self._is_over(*self._oldest[0][1:])):
            _, fd, talk = self._oldest.popleft()
            if not self._is_over(fd, talk):
                with contextlib.suppress(StopIteration):
                    talk.throw(TimeoutError())
                del self._talks[fd]

    def _is_over(self, fd: int, talk: Generator[None, None, None]) -> bool:
        return self._talks.get(fd) is not talk

    def _go_on(self, fd: int, talk: Generator[None, None, None]) -> None:
        try:
            next(talk)
        except StopIteration:
            if self._talks.get(fd) is talk:  # else another one has its number by now
                del self._talks[fd]


def receive(sock: socket.socket, most: int) -> Generator[None, None, bytes]:
    """What is there, b"" at the end of the stream."""
    while True:
        try:
            return sock.recv(most)
        except BlockingIOError:
            yield


def receive_exactly(sock: socket.socket, count: int) -> Generator[None, None, None]:
    """Raises EOFError where the stream is shorter."""
    while count:
        data = yield from receive(sock, min(count, 1 << 16))
        if not data:
            raise EOFError
        count -= len(data)


def receive_all(sock: socket.socket) -> Generator[None, None, int]:
    """How many bytes came until the end of the stream."""
    count = 0
    while data := (yield from receive(sock, 1 << 16)):
        count += len(data)
    return count


def send(sock: socket.socket, data: bytes) -> Generator[None, None, None]:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[sock.send(rest) :]
        except BlockingIOError:
            yield


def reset(sock: socket.socket) -> None:
    """Close it with a RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
