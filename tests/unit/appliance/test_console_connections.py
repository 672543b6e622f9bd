"""Who may stay connected to the console, with a real server of aiohttp's and a clock of the test's."""

from __future__ import annotations

import asyncio

from aiohttp import web

from exeat.appliance.console.connections import MOST, PATIENCE_S, Connections


class Idle:
    """A connection that asks for nothing."""

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
    now = 10 * PATIENCE_S
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
