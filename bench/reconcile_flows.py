"""The flows of bench.reconcile: what client and origin say to each other, and how it ends."""

from __future__ import annotations

import json
import select
import socket
import sys
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from bench.talks import Talks, receive, receive_all, receive_exactly, reset, send

if TYPE_CHECKING:
    from collections.abc import Generator

NAME, ADDRESS, FIRST_PORT = "origin.example.org", "203.0.113.1", 7000
DOOR = ("127.0.0.1", 3128)
BULK = 300_000
AT_ONCE = 96
PATIENCE_S = 15.0  # a reset that is dropped on its way is not sent again: somebody has to give up


class Shape(NamedTuple):
    """A kind of flow, at FIRST_PORT + its number. `out` and `into` are payload; None: a reset cuts it."""

    name: str
    share: int
    out: int | None
    into: int | None


SHAPES = (
    Shape("answer", 50, 700, 1500),
    Shape("half-close", 20, 3000, 9000),
    Shape("client resets", 10, None, None),
    Shape("origin resets", 10, None, None),
    Shape("bulk", 5, 10, BULK),
    Shape("nothing", 5, 0, 0),
)
TURNS = [number for number, shape in enumerate(SHAPES) for _ in range(shape.share)]
CUT_OUT, CUT_IN = 100, 20_000  # what is sent in a flow that is reset


def _served(shape: Shape, sock: socket.socket) -> Generator[None, None, None]:
    """One connection at the origin."""
    with sock:
        try:
            if shape.name == "half-close":
                yield from receive_all(sock)
            else:
                yield from receive_exactly(sock, CUT_OUT if shape.out is None else shape.out)
            yield from send(sock, b"d" * (CUT_IN if shape.into is None else shape.into))
            if shape.name == "origin resets":
                reset(sock)
            elif shape.name != "half-close":
                yield from receive_all(sock)
        except (OSError, EOFError):
            return


def origin() -> None:
    """Serve all shapes until the parent closes stdin."""
    talks = Talks()
    for number, shape in enumerate(SHAPES):
        listener = socket.create_server((ADDRESS, FIRST_PORT + number), backlog=4096)
        talks.listen(listener, lambda sock, shape=shape: _served(shape, sock))  # type: ignore[misc]
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        talks.turn()


def _asked(shape: Shape, place: str, sock: socket.socket) -> Generator[None, None, str]:
    """One tunnel; what went wrong, or ""."""
    yield from send(sock, f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n\r\n".encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):  # the origin never speaks first: no payload follows
        data = yield from receive(sock, 4096)
        if not data:
            return "no answer"
        head += data
    if b" 200 " not in head:
        return head.split(b"\r\n")[0].decode("latin-1")
    yield from send(sock, b"u" * (CUT_OUT if shape.out is None else shape.out))
    if shape.name == "half-close":
        sock.shutdown(socket.SHUT_WR)
    if shape.name == "client resets":
        yield from receive(sock, 1000)
        reset(sock)
    elif shape.into is None:
        yield from receive_all(sock)
    else:
        yield from receive_exactly(sock, shape.into)
    return ""


def _tried(number: int, wrong: Counter[str], sock: socket.socket) -> Generator[None, None, None]:
    """A flow over a connection that is being made."""
    shape = SHAPES[number]
    with sock:
        try:
            yield
            said = yield from _asked(shape, f"{NAME}:{FIRST_PORT + number}", sock)
        except (OSError, EOFError) as error:
            said = "" if shape.into is None else f"{shape.name}: {type(error).__name__}"
    if said:
        wrong[said] += 1


def clients(count: int) -> None:
    """Make `count` flows, AT_ONCE at a time; print what went wrong, as JSON."""
    wrong: Counter[str] = Counter()
    talks, made = Talks(PATIENCE_S), 0
    while made < count or talks:
        while made < count and len(talks) < AT_ONCE:
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(DOOR)
            talks.begin(sock, _tried(TURNS[made * 37 % len(TURNS)], wrong, sock))
            made += 1
        talks.turn()
    print(json.dumps(wrong))
