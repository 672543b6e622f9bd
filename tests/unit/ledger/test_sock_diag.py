"""Whose socket it is, asked of this kernel about sockets of this process."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exeat.ledger.sock_diag import Cgroups, SocketOwners, cgroup_root, is_local, parse_answer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exeat.ledger.sock_diag import Place

FAMILIES = [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]


@pytest.fixture
def owners() -> Iterator[SocketOwners]:
    asker = SocketOwners()
    yield asker
    asker.close()


@contextlib.contextmanager
def connection(family: int, host: str, client: int = 0) -> Iterator[tuple[socket.socket, Place, Place]]:
    """(the client's socket, its address, the server's)."""
    with socket.socket(family) as listener, socket.socket(client or family) as sock:
        listener.bind((host, 0))
        listener.listen()
        there = listener.getsockname()
        sock.connect((f"::ffff:{host}" if client not in (0, family) else host, there[1]))
        accepted, peer = listener.accept()
        with accepted:
            yield sock, peer[:2], there[:2]


def own_cgroup() -> str:
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    return next(line.partition("::")[2] for line in lines if line.startswith("0::"))


@pytest.mark.parametrize(("family", "host"), FAMILIES)
def test_a_connected_client_is_its_process(owners: SocketOwners, family: int, host: str) -> None:
    with connection(family, host) as (sock, client, server):
        for _ in range(2):
            owner = owners.of_tcp(family, client, server)
            assert owner is not None
            assert owner.uid == os.getuid()
            assert Cgroups(cgroup_root()).path(owner.cgroup) == own_cgroup()
            sock.shutdown(socket.SHUT_WR)  # and it is still there


def test_a_client_that_speaks_ipv4_through_ipv6(owners: SocketOwners) -> None:
    with connection(socket.AF_INET, "127.0.0.1", socket.AF_INET6) as (_, client, server):
        owner = owners.of_tcp(socket.AF_INET, client, server)
        assert owner is not None


@pytest.mark.parametrize(("family", "host"), FAMILIES)
def test_a_client_that_has_gone_is_nobody(owners: SocketOwners, family: int, host: str) -> None:
    with connection(family, host) as (sock, client, server):
        sock.close()
        assert owners.of_tcp(family, client, server) is None


def test_who_only_listens_at_that_port_is_not_the_client(owners: SocketOwners) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        assert owners.of_tcp(socket.AF_INET, listener.getsockname(), ("127.0.0.1", 9)) is None


def test_another_server_is_another_connection(owners: SocketOwners) -> None:
    with connection(socket.AF_INET, "127.0.0.1") as (_, client, server):
        assert owners.of_tcp(socket.AF_INET, client, ("127.0.0.2", server[1])) is None


@pytest.mark.parametrize("connect", [True, False])
@pytest.mark.parametrize(("family", "host"), FAMILIES)
def test_a_datagram_socket(owners: SocketOwners, family: int, host: str, *, connect: bool) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as server, socket.socket(family, socket.SOCK_DGRAM) as sock:
        server.bind((host, 0))
        if connect:
            sock.connect(server.getsockname())
            sock.send(b"x")
        else:
            sock.sendto(b"x", server.getsockname())
        peer = server.recvfrom(10)[1][:2]
        owner = owners.of_udp(family, peer)
        assert owner is not None
        assert owner.uid == os.getuid()
        other = "127.0.0.9" if family == socket.AF_INET else "::2"
        found = owners.of_udp(family, (other, peer[1]))
        assert found == (None if connect else owner)  # a socket bound to no address sends from any
    assert owners.of_udp(family, peer) is None


def test_addresses_that_are_none_are_refused(owners: SocketOwners) -> None:
    with pytest.raises(OSError, match="illegal IP address"):
        owners.of_tcp(socket.AF_INET, ("x", 1), ("127.0.0.1", 2))
    with connection(socket.AF_INET, "127.0.0.1") as (_, client, server):  # and it goes on
        assert owners.of_tcp(socket.AF_INET, client, server) is not None


def test_local_addresses() -> None:
    assert is_local(socket.AF_INET, "127.0.0.9")
    assert is_local(socket.AF_INET6, "::1")
    assert not is_local(socket.AF_INET, "203.0.113.200")
    assert not is_local(socket.AF_INET6, "2001:db8::200")


def test_a_cgroup_that_is_nowhere_has_no_path_and_new_ones_are_found(tmp_path: Path) -> None:
    cgroups = Cgroups(tmp_path)
    assert cgroups.path(tmp_path.stat().st_ino) == "/"
    assert cgroups.path(1 << 60) is None
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    assert cgroups.path(inner.stat().st_ino) == "/a/b"
    assert cgroups.path(1 << 60) is None


def answer(state: int, inode: int, attributes: bytes) -> bytes:
    head = struct.pack("=BBBB", socket.AF_INET, state, 0, 0) + struct.pack("!HH", 5, 6)
    return head + bytes(44) + struct.pack("=IIIII", 0, 0, 0, 1000, inode) + attributes


CGROUP = struct.pack("=HHQ", 12, 21, 77)


def test_an_answer() -> None:
    found = parse_answer(answer(1, 9, struct.pack("=HHI", 8, 5, 0) + CGROUP))
    assert found is not None
    assert (found.ports, found.owner) == ((5, 6), (1000, 77))


@pytest.mark.parametrize(
    "data",
    [
        answer(10, 9, CGROUP),  # listens
        answer(2, 9, CGROUP),  # is connecting
        answer(6, 9, CGROUP),  # TIME_WAIT
        answer(1, 0, CGROUP),  # held by no process
        answer(1, 9, b""),  # a kernel that does not tell cgroups
        answer(1, 9, CGROUP[:8]),
        answer(1, 9, struct.pack("=HH", 2, 21)),
    ],
)
def test_answers_that_say_nobody(data: bytes) -> None:
    assert parse_answer(data) is None


@given(st.binary(max_size=120) | st.binary(max_size=60).map(lambda tail: answer(1, 9, tail)))
def test_whatever_comes_is_an_answer_or_is_cut_off(data: bytes) -> None:
    with contextlib.suppress(struct.error):
        parse_answer(data)
