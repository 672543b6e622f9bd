"""Accepting and dialling, by Python's calls and by the compiled ones: the same sockets, the same errors."""

from __future__ import annotations

import errno
import os
import resource
import select
import socket
from typing import TYPE_CHECKING

import pytest

from exeat.ledger.reactor import Reactor
from exeat.policy.addresses import parse_address
from exeat.proxy import sockets
from exeat.proxy.relays import BUILT, COMPILED, PYTHON, poller

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=(PYTHON, COMPILED) if BUILT else (PYTHON,))
def reactor(request: pytest.FixtureRequest) -> Iterator[Reactor]:
    made = Reactor(poller=poller(request.param))
    yield made
    made.close()


def settled(sock: socket.SocketType) -> int:
    """The error of a connection that is being made, 0 when it is."""
    select.select([], [sock], [], 5)
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_dialled_and_accepted(reactor: Reactor, family: int) -> None:
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.create_server((host, 0), family=family) as listener:
        listener.setblocking(False)
        assert sockets.accept(reactor, listener) is None
        sock = sockets.dial(reactor, parse_address(host), listener.getsockname()[1])
        assert isinstance(sock, socket.SocketType)
        assert settled(sock) == 0
        found = sockets.accept(reactor, listener)
        assert found is not None
        client, peer = found
        assert peer[:2] == sock.getsockname()[:2] == client.getpeername()[:2]
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        for each in (sock, client):
            assert (each.family, each.type & ~socket.SOCK_NONBLOCK) == (family, socket.SOCK_STREAM)
            assert not os.get_blocking(each.fileno())
            assert not os.get_inheritable(each.fileno())
            with pytest.raises(BlockingIOError):
                each.recv(1)
        assert (client.send(b"hello"), sock.recv(10)) == (5, b"hello")
        client.close()
        sock.close()


def test_a_unix_client_has_no_address(reactor: Reactor, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = str(tmp_path_factory.mktemp("s") / "door")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as near:
        listener.bind(path)
        listener.listen()
        listener.setblocking(False)
        near.connect(path)
        found = sockets.accept(reactor, listener)
        assert found is not None
        assert found[0].family == socket.AF_UNIX
        found[0].close()


def test_nobody_listens(reactor: Reactor) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        made = sockets.dial(reactor, parse_address("127.0.0.1"), unused.getsockname()[1])
        if isinstance(made, int):
            assert made == errno.ECONNREFUSED
        else:
            assert settled(made) == errno.ECONNREFUSED
            made.close()


def test_without_descriptors(reactor: Reactor) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        near = socket.create_connection(listener.getsockname())
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
        try:
            assert sockets.dial(reactor, parse_address("127.0.0.1"), 1) == errno.EMFILE
            with pytest.raises(OSError, match="Too many open files"):
                sockets.accept(reactor, listener)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            near.close()


if BUILT:
    from exeat.proxy import _relay

    @pytest.mark.parametrize(
        ("packed", "port"), [(b"abc", 1), (b"abcde", 1), (b"abcd", -1), (b"abcd", 65536)]
    )
    def test_only_addresses_are_dialled(packed: bytes, port: int) -> None:
        with pytest.raises(ValueError, match="no address and port"):
            _relay.dial(packed, port)
