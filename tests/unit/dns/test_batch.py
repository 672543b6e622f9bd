"""Many datagrams at once: three ways to the same, and everyone gets their own, whatever the family."""

from __future__ import annotations

import importlib.util
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.dns_servers import zone_handler
from tests.support.guard_rig import answers, ask, guard_rig

from exeat.dns import batch as module
from exeat.dns import doors
from exeat.dns.batch import SIZE, SLOTS, Hot, Serve, batch_for, compiled, one_by_one, serve_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from exeat.dns.journal import Sight

HOSTS = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
NOW = 100.0


def ways(family: int) -> dict[str, Serve]:
    """Every way that there is on this machine."""
    batch = batch_for(family)
    assert batch is not None
    found: dict[str, Serve] = {"ctypes": batch.serve, "plain": one_by_one}
    if compiled is not None:
        found["C"] = compiled
    return found


def hot(tail: bytes, name: str, expires: float = NOW + 1) -> Hot:
    return Hot(tail, expires, cast("Sight", name))


@pytest.fixture(params=[(family, way) for family in HOSTS for way in ways(family)], ids=str)
def door(request: pytest.FixtureRequest) -> Iterator[tuple[Serve, socket.socket]]:
    family, way = request.param
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.bind((HOSTS[family], 0))
        yield ways(family)[way], sock


def clients(stack: ExitStack, sock: socket.socket, count: int) -> list[socket.socket]:
    made = [stack.enter_context(socket.socket(sock.family, socket.SOCK_DGRAM)) for _ in range(count)]
    for client in made:
        client.settimeout(30)
        client.connect(sock.getsockname())
    return made


def nothing_for(client: socket.socket) -> bool:
    client.setblocking(False)
    with pytest.raises(BlockingIOError):
        client.recv(SIZE)
    return True


def test_each_gets_the_reply_to_its_own(door: tuple[Serve, socket.socket]) -> None:
    serve, sock = door
    table = {b"q%d" % i: hot(b"re%d" % i * 100, f"s{i}") for i in range(0, SLOTS, 2)}
    with ExitStack() as stack:
        asking = clients(stack, sock, SLOTS)
        for i, client in enumerate(asking):
            client.send(bytes([i, 255 - i]) + b"q%d" % i)
        misses, hits = serve(sock.fileno(), table, {}, NOW)
        assert hits == [f"s{i}" for i in range(0, SLOTS, 2)]
        assert misses == [
            (bytes([i, 255 - i]) + b"q%d" % i, asking[i].getsockname()) for i in range(1, SLOTS, 2)
        ]
        for i in range(0, SLOTS, 2):
            assert asking[i].recv(SIZE) == bytes([i, 255 - i]) + b"re%d" % i * 100
        assert all(nothing_for(client) for client in asking[1::2])


def test_an_entry_that_has_ended_answers_nobody(door: tuple[Serve, socket.socket]) -> None:
    serve, sock = door
    with ExitStack() as stack:
        (client,) = clients(stack, sock, 1)
        for expires in (NOW, NOW - 1, 0.0):
            client.send(b"idq")
            misses, hits = serve(sock.fileno(), {b"q": hot(b"re", "s", expires)}, {}, NOW)
            assert (len(misses), hits) == (1, [])
        nothing_for(client)


def test_without_an_owner_the_address_says_whose_table_it_is(door: tuple[Serve, socket.socket]) -> None:
    serve, sock = door
    mine = socket.inet_pton(sock.family, HOSTS[sock.family])
    other = bytes(len(mine) - 1) + b"\x09"
    with ExitStack() as stack:
        (client,) = clients(stack, sock, 1)
        client.send(b"idq")
        misses, hits = serve(sock.fileno(), None, {other: {b"q": hot(b"no", "other")}}, NOW)
        assert (len(misses), hits) == (1, [])
        client.send(b"idq")
        assert serve(sock.fileno(), None, {mine: {b"q": hot(b"yes", "mine")}}, NOW) == ([], ["mine"])
        assert client.recv(SIZE) == b"idyes"


def test_there_may_be_nothing_or_more_than_fits(door: tuple[Serve, socket.socket]) -> None:
    serve, sock = door
    assert serve(sock.fileno(), {}, {}, NOW) == ([], [])
    with ExitStack() as stack:
        (client,) = clients(stack, sock, 1)
        for i in range(SLOTS + 5):
            client.send(bytes([i]) * (i % 4))  # also none at all, and less than an id
        first, _ = serve(sock.fileno(), {b"": hot(b"x", "never")}, {}, NOW)
        rest, _ = serve(sock.fileno(), {b"": hot(b"x", "never")}, {}, NOW)
    short = [data for data, _ in first + rest]
    assert short == [bytes([i]) * (i % 4) for i in range(SLOTS + 5)]
    assert len(first) == SLOTS


def test_a_datagram_over_the_size_is_cut(door: tuple[Serve, socket.socket]) -> None:
    serve, sock = door
    with ExitStack() as stack:
        (client,) = clients(stack, sock, 1)
        client.send(b"x" * (SIZE + 1000))
        client.send(b"y" * SIZE)
        misses, _ = serve(sock.fileno(), {}, {}, NOW)
    assert [data for data, _ in misses] == [b"x" * SIZE, b"y" * SIZE]


def test_who_is_gone_does_not_cost_the_others_theirs(door: tuple[Serve, socket.socket]) -> None:
    serve, sock = door
    with ExitStack() as stack:
        (client,) = clients(stack, sock, 1)
        for i in range(6):
            with socket.socket(sock.family, socket.SOCK_DGRAM) as gone:
                gone.connect(sock.getsockname())
                gone.send(b"idq")
            client.send(bytes([i, i]) + b"q")
        for _ in range(8):  # an ICMP error may end a turn of the plain way early
            serve(sock.fileno(), {b"q": hot(b"re", "s")}, {}, NOW)
        assert [client.recv(10) for _ in range(6)] == [bytes([i, i]) + b"re" for i in range(6)]


@given(
    st.lists(st.binary(max_size=40), max_size=SLOTS),
    st.dictionaries(
        st.binary(max_size=6), st.tuples(st.binary(max_size=600), st.sampled_from([NOW, NOW + 1]))
    ),
    st.randoms(use_true_random=False),
)
def test_all_ways_say_the_same(
    datagrams: list[bytes], entries: dict[bytes, tuple[bytes, float]], source: Any
) -> None:
    table = {key: hot(tail, key.hex(), expires) for key, (tail, expires) in entries.items()}
    datagrams += [source.randbytes(2) + key for key in list(table)[: SLOTS - len(datagrams)]]
    seen = []
    for serve in ways(socket.AF_INET).values():
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock,
            ExitStack() as stack,
        ):
            sock.bind(("127.0.0.1", 0))
            (client,) = clients(stack, sock, 1)
            for data in datagrams:
                client.send(data)
            misses, hits = serve(sock.fileno(), table, {}, NOW)
            seen.append(([data for data, _ in misses], hits, [client.recv(SIZE) for _ in hits]))
    assert all(each == seen[0] for each in seen)


@pytest.mark.parametrize(
    "entry", [(), ("tail", 200.0, None), (b"tail", 200, None), (b"tail", 200.0), [b"tail", 200.0, None]]
)
@pytest.mark.parametrize("serve", [] if compiled is None else [compiled])
def test_c_reads_no_entry_of_another_shape(serve: Any, entry: object) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, ExitStack() as stack:
        sock.bind(("127.0.0.1", 0))
        (client,) = clients(stack, sock, 1)
        client.send(b"idq")
        with pytest.raises(TypeError):
            serve(sock.fileno(), {b"q": entry}, {}, NOW)
        for arguments in ((), (1, 2, 3, 4), (sock.fileno(), {}, None, NOW), (sock.fileno(), {}, {}, "now")):
            with pytest.raises(TypeError):
                serve(*arguments)
        nothing_for(client)


def test_c_is_used_where_it_was_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (importlib.util.find_spec("exeat.dns._fast") is not None) is (compiled is not None)
    assert compiled is None or serve_for(socket.AF_INET) is compiled
    monkeypatch.setattr(module, "compiled", None)
    assert serve_for(socket.AF_INET) == batch_for(socket.AF_INET).serve  # type: ignore[union-attr]
    monkeypatch.setattr(module, "batch_for", lambda _family: None)
    assert serve_for(socket.AF_INET) is one_by_one


def test_without_the_c_library_there_is_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library(_name: object) -> None:
        raise OSError("no C library")

    monkeypatch.setattr(module.ctypes, "CDLL", no_library)
    assert batch_for.__wrapped__(socket.AF_INET) is None
    assert batch_for(socket.AF_UNIX) is None


@pytest.mark.parametrize("way", list(ways(socket.AF_INET)))
def test_the_guard_answers_whatever_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(doors, "serve_for", lambda family: ways(family)[way])
    with guard_rig(tmp_path, zone_handler([("www.wild.net", 60, "A", "203.0.113.1")])) as rig:
        rig.snapshot("{egress: v1, project: p, posture: allowlist, allow: [{to: [.wild.net]}]}")
        jail = rig.jail("j", "p")
        for _ in range(3):
            assert answers(ask(jail.udp, "www.wild.net")) == {"203.0.113.1"}
        assert rig.server.seen["www.wild.net", "A"] == 1
        records = rig.wait_for_records(lambda found: sum(record.count for record in found) >= 3)
        assert sum(record.count for record in records) == 3
