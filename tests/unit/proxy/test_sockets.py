"""Accepting and dialling."""

from __future__ import annotations

import errno
import os
import resource
import select
import socket

import pytest

from exeat.policy.addresses import parse_address
from exeat.proxy import sockets


def settled(sock: socket.SocketType) -> int:
    """The error of a connection that is being made, 0 when it is."""
    select.select([], [sock], [], 5)
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_dialled_and_accepted(family: int) -> None:
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.create_server((host, 0), family=family) as listener:
        listener.setblocking(False)
        assert sockets.accept(listener) is None
        sock = sockets.dial(parse_address(host), listener.getsockname()[1])
        assert isinstance(sock, socket.SocketType)
        assert settled(sock) == 0
        found = sockets.accept(listener)
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


def test_a_unix_client_has_no_address(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = str(tmp_path_factory.mktemp("s") / "door")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as near:
        listener.bind(path)
        listener.listen()
        listener.setblocking(False)
        near.connect(path)
        found = sockets.accept(listener)
        assert found is not None
        assert found[0].family == socket.AF_UNIX
        found[0].close()


def test_nobody_listens() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        made = sockets.dial(parse_address("127.0.0.1"), unused.getsockname()[1])
        if isinstance(made, int):
            assert made == errno.ECONNREFUSED
        else:
            assert settled(made) == errno.ECONNREFUSED
            made.close()


def test_without_descriptors() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        near = socket.create_connection(listener.getsockname())
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
        try:
            assert sockets.dial(parse_address("127.0.0.1"), 1) == errno.EMFILE
            with pytest.raises(OSError, match="Too many open files"):
                sockets.accept(listener)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            near.close()
