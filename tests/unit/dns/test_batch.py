"""Many datagrams in one call: everyone gets their own, whatever the family, and nothing is mixed up."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from tests.support.dns_servers import zone_handler
from tests.support.guard_rig import answers, ask, guard_rig

from exeat.dns import batch as module
from exeat.dns import doors
from exeat.dns.batch import SIZE, SLOTS, Batch, batch_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOSTS = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


@pytest.fixture(params=list(HOSTS))
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Batch, socket.socket]]:
    batch = batch_for(request.param)
    assert batch is not None
    with socket.socket(request.param, socket.SOCK_DGRAM) as sock:
        sock.bind((HOSTS[request.param], 0))
        yield batch, sock


def test_each_gets_the_reply_to_its_own(pair: tuple[Batch, socket.socket]) -> None:
    batch, sock = pair
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.socket(sock.family, socket.SOCK_DGRAM)) for _ in range(40)]
        for i, client in enumerate(clients):
            client.settimeout(5)
            client.connect(sock.getsockname())
            client.send(bytes([i]) * (i * 100))
        count = batch.receive(sock.fileno())
        assert count == 40
        for slot in reversed(range(0, count, 2)):  # not all of them, and not in their order
            data = batch.data(slot)
            assert batch.peer(slot) == clients[slot].getsockname()
            assert data == bytes([slot]) * (slot * 100)
            batch.reply(slot, b"re:" + data)
        batch.flush(sock.fileno())
        for i in range(0, 40, 2):
            assert clients[i].recv(SIZE) == b"re:" + bytes([i]) * (i * 100)
        for client in clients[1::2]:
            client.setblocking(False)
            with pytest.raises(BlockingIOError):
                client.recv(SIZE)


def test_there_may_be_nothing_or_more_than_fits(pair: tuple[Batch, socket.socket]) -> None:
    batch, sock = pair
    assert batch.receive(sock.fileno()) == 0
    batch.flush(sock.fileno())
    with socket.socket(sock.family, socket.SOCK_DGRAM) as client:
        client.connect(sock.getsockname())
        for i in range(SLOTS + 5):
            client.send(bytes([i]))
    assert batch.receive(sock.fileno()) == SLOTS
    assert [batch.data(slot)[0] for slot in range(SLOTS)] == list(range(SLOTS))
    assert batch.receive(sock.fileno()) == 5


def test_a_datagram_over_the_size_is_cut(pair: tuple[Batch, socket.socket]) -> None:
    batch, sock = pair
    with socket.socket(sock.family, socket.SOCK_DGRAM) as client:
        client.connect(sock.getsockname())
        client.send(b"x" * (SIZE + 1000))
        client.send(b"y" * SIZE)
    assert batch.receive(sock.fileno()) == 2
    assert (batch.data(0), batch.data(1)) == (b"x" * SIZE, b"y" * SIZE)


def test_who_is_gone_does_not_cost_the_others_theirs(pair: tuple[Batch, socket.socket]) -> None:
    batch, sock = pair
    with socket.socket(sock.family, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.connect(sock.getsockname())
        for i in range(6):
            with socket.socket(sock.family, socket.SOCK_DGRAM) as gone:
                gone.connect(sock.getsockname())
                gone.send(b"gone")
            client.send(bytes([i]))
        for slot in range(batch.receive(sock.fileno())):
            batch.reply(slot, batch.data(slot))
        batch.flush(sock.fileno())
        assert [client.recv(10) for _ in range(6)] == [bytes([i]) for i in range(6)]


def test_without_it_there_is_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library(_name: object) -> None:
        raise OSError("no C library")

    monkeypatch.setattr(module.ctypes, "CDLL", no_library)
    assert batch_for.__wrapped__(socket.AF_INET) is None
    assert batch_for(socket.AF_UNIX) is None


def test_the_guard_answers_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "batch_for", lambda _family: None)
    with guard_rig(tmp_path, zone_handler([("www.wild.net", 60, "A", "203.0.113.1")])) as rig:
        rig.snapshot("{egress: v1, project: p, posture: allowlist, allow: [{to: [.wild.net]}]}")
        jail = rig.jail("j", "p")
        for _ in range(3):
            assert answers(ask(jail.udp, "www.wild.net")) == {"203.0.113.1"}
        assert rig.server.seen["www.wild.net", "A"] == 1
