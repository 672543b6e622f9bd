"""The loop: who hears of a descriptor, and who must not."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from exeat.ledger.reactor import EDGES, EPOLLIN, EPOLLOUT, Reactor

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def failures() -> list[BaseException]:
    return []


@pytest.fixture
def reactor(failures: list[BaseException]) -> Iterator[Reactor]:
    made = Reactor(failures.append)
    yield made
    made.close()


def test_an_event_is_not_given_to_the_next_owner_of_the_number(reactor: Reactor) -> None:
    """Two sockets are readable in one round; the first one's callback closes the second and opens
    a third, which gets its number and has nothing to read."""
    pairs = [socket.socketpair() for _ in range(2)]
    fresh: list[tuple[socket.socket, socket.socket]] = []
    heard: list[str] = []

    def hear(number: int, _events: int) -> None:
        heard.append("first")
        other = pairs[1 - number][0]
        fd = other.fileno()
        reactor.forget(fd)
        other.close()
        made = socket.socketpair()
        fresh.append(made)
        assert fd in (made[0].fileno(), made[1].fileno())
        reactor.add(fd, EPOLLIN, lambda _: heard.append("new"))

    for number, (ours, theirs) in enumerate(pairs):
        reactor.add(ours.fileno(), EDGES, lambda events, number=number: hear(number, events))  # type: ignore[misc]
        theirs.send(b"x")
    reactor.turn(1)
    assert heard == ["first"]
    for sock in fresh[0]:
        sock.send(b"y")
    reactor.turn(1)
    assert heard == ["first", "new"]
    for pair in (*pairs, *fresh):
        for sock in pair:
            sock.close()


def test_closing_a_forgotten_socket_frees_its_number(reactor: Reactor) -> None:
    """`forget` makes no system call: the kernel drops a closed socket from its set by itself."""
    heard: list[int] = []
    for _ in range(3):
        ours, theirs = socket.socketpair()
        reactor.add(ours.fileno(), EDGES, heard.append)
        reactor.turn(1)
        reactor.forget(ours.fileno())
        theirs.send(b"x")
        reactor.turn(0)
        ours.close()
        theirs.close()
    assert heard == [EPOLLOUT] * 3


def test_another_hears_from_the_next_event_on(reactor: Reactor) -> None:
    ours, theirs = socket.socketpair()
    heard: list[str] = []
    reactor.add(ours.fileno(), EDGES, lambda _: heard.append("one"))
    reactor.turn(1)
    reactor.hand_over(ours.fileno(), lambda _: heard.append("two"))
    reactor.turn(0)
    theirs.send(b"x")
    reactor.turn(1)
    assert heard == ["one", "two"]
    ours.close()
    theirs.close()


def test_what_one_raises_does_not_reach_the_others(reactor: Reactor, failures: list[BaseException]) -> None:
    heard: list[str] = []

    def broken() -> None:
        raise RuntimeError("a bug")

    reactor.call_soon(broken)
    reactor.call_soon(lambda: heard.append("soon"))
    reactor.call_later(0, broken)
    reactor.call_later(0, lambda: heard.append("later"))
    read, write = os.pipe()
    reactor.add(read, EPOLLIN, lambda _: broken())
    os.write(write, b"x")
    reactor.turn(0)
    assert heard == ["soon", "later"]
    assert [str(error) for error in failures] == ["a bug"] * 3
    reactor.remove(read)
    os.close(read)
    os.close(write)
