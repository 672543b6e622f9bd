"""Who may stay connected to the console, with a real server of aiohttp's and a clock of the test's."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import pytest
from aiohttp import web

from exeat.appliance.config import Config
from exeat.appliance.console import app, dispatch
from exeat.appliance.console.auth.accounts import MOST_ANSWERS, Accounts
from exeat.appliance.console.auth.limits import place_of
from exeat.appliance.console.connections import MOST, PATIENCE_S, STRANGER_S, Connections
from exeat.appliance.console.problems import Problem
from exeat.appliance.console.routes.session import SignIn, routes
from exeat.appliance.errors import NotReachableError

if TYPE_CHECKING:
    from pathlib import Path


class Idle:
    """A connection that asks for nothing."""

    transport = None

    def __init__(self) -> None:
        self.ended = False

    def force_close(self) -> None:
        self.ended = True


def test_who_asks_for_nothing_is_ended() -> None:
    now = 0.0
    connections = Connections(lambda: now)
    first, second, served = Idle(), Idle(), Idle()
    connections.served(served)
    connections.sweep([first, served])
    now = PATIENCE_S / 2
    connections.sweep([first, served, second])
    now = PATIENCE_S
    assert connections.sweep([first, served, second]) == 1
    assert (first.ended, second.ended, served.ended) == (True, False, False)
    now = 5 * PATIENCE_S
    connections.sweep([served, second])
    assert (second.ended, served.ended) == (True, False)


def test_of_too_many_the_newest_that_ask_for_nothing_go() -> None:
    connections = Connections(lambda: 0.0)
    there = [Idle() for _ in range(MOST + 3)]
    for each in there[-2:]:
        connections.served(each)
    connections.sweep(there)
    assert [n for n, each in enumerate(there) if each.ended] == [MOST - 2, MOST - 1, MOST]


def test_a_request_that_never_ends_is_ended() -> None:
    """Through a socket: half a request goes, a whole one stays."""

    async def story() -> None:
        now = 0.0
        connections = Connections(lambda: now)

        async def answer(request: web.BaseRequest) -> web.Response:
            connections.served(request.protocol)
            return web.Response(text="yes")

        server = web.Server(answer)
        listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
        place = listening.sockets[0].getsockname()
        links = [await asyncio.open_connection(*place) for _ in range(2)]
        links[0][1].write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        links[1][1].write(b"GET / HTTP/1.1\r\nHost:")
        assert await links[0][0].readuntil(b"yes")
        connections.sweep(server.connections)
        now = PATIENCE_S
        assert connections.sweep(server.connections) == 1
        assert await links[1][0].read() == b""
        links[0][1].write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await links[0][0].readuntil(b"yes")
        for _, writer in links:
            writer.close()
        await server.shutdown()
        listening.close()
        await listening.wait_closed()

    asyncio.run(story())


def test_strangers_hold_no_place_for_long() -> None:
    now = 0.0
    connections = Connections(lambda: now)
    stranger, asks_again, person = Idle(), Idle(), Idle()
    for each in (stranger, asks_again, person):
        connections.served(each)
    connections.known(person)
    now = STRANGER_S - 1
    connections.served(asks_again)
    assert connections.sweep([stranger, asks_again, person]) == 0
    now = STRANGER_S
    assert connections.sweep([stranger, asks_again, person]) == 1
    assert stranger.ended


def test_of_too_many_strangers_the_oldest_go_and_nobody_known() -> None:
    connections = Connections(lambda: 0.0)
    there = [Idle() for _ in range(MOST + 2)]
    for each in there:
        connections.served(each)
    connections.known(there[0])
    connections.sweep(there)
    assert [n for n, each in enumerate(there) if each.ended] == [1, 2]


def _rest(link: socket.socket) -> int:
    """Bytes that still come, until there is nothing more."""
    link.settimeout(10)
    found = 0
    with contextlib.suppress(ConnectionResetError):
        while part := link.recv(1 << 20):
            found += len(part)
    return found


def test_who_takes_no_answer_is_ended() -> None:
    """Through a socket: what was sent and not read keeps the connection from closing by itself."""

    async def story() -> None:
        now = 0.0
        connections = Connections(lambda: now)

        async def answer(request: web.BaseRequest) -> web.Response:
            connections.served(request.protocol)
            return web.Response(body=bytes(1 << 25))

        server = web.Server(answer)
        listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
        with socket.create_connection(listening.sockets[0].getsockname()) as link:
            link.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await asyncio.to_thread(link.recv, 1)
            now = STRANGER_S
            assert connections.sweep(server.connections) == 1
            assert await asyncio.to_thread(_rest, link) < 1 << 25
        await server.shutdown()
        listening.close()
        await listening.wait_closed()

    asyncio.run(story())


@pytest.mark.parametrize("body", [None, SignIn])
def test_a_body_that_does_not_come_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, body: type[SignIn] | None
) -> None:
    """Neither where one is wanted nor where there should be none."""
    monkeypatch.setattr(dispatch, "BODY_S", 0.05)
    route = replace(next(each for each in routes if each.body is SignIn), body=body)

    async def story() -> bytes:
        async def answer(request: web.BaseRequest) -> web.Response:
            try:
                await dispatch._body(route, cast("web.Request", request))
            except Problem as problem:
                return problem.response()
            return web.Response(text="it was waited for")

        server = web.Server(answer)
        listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
        head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
        writer.write(head)
        line = await asyncio.wait_for(reader.readline(), 10)
        writer.close()
        await server.shutdown()
        listening.close()
        await listening.wait_closed()
        return line

    assert asyncio.run(story()) == b"HTTP/1.1 408 Request Timeout\r\n"


@pytest.mark.parametrize(
    ("remote", "place"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("::1", "::/64"),
        (None, "None"),
        ("", ""),
    ],
)
def test_what_counts_as_one_address(remote: str | None, place: str) -> None:
    assert place_of(remote) == place


def test_answers_that_are_kept_for_one_person_are_bounded(tmp_path: Path) -> None:
    accounts = Accounts(tmp_path)
    for number in range(MOST_ANSWERS + 2):
        accounts.keep_answer("ann", f"k{number}", b"d", 201, "{}", 1000)
    accounts.keep_answer("ben", "k0", b"d", 201, "{}", 1)
    accounts.sweep(2000, 10)
    kept = [accounts.answered(*who) is not None for who in (("ann", "k1"), ("ann", "k2"), ("ben", "k0"))]
    assert kept == [False, True, True]
    accounts.close()


def test_the_console_never_runs_as_root() -> None:
    with pytest.raises(NotReachableError, match="never runs as root"):
        app.serve(Config(), [], lambda: None)
