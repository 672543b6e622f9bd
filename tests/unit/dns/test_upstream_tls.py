"""Upstreams over TLS: who they must prove to be, what an onlooker sees, and how they break off."""

from __future__ import annotations

import socket
import ssl
import threading
import warnings
from functools import partial
from typing import TYPE_CHECKING

import dns.message
import pytest
from tests.support.dns_servers import zone_handler
from tests.support.dot_servers import NAME, DotServer, dot_server, framed, read_query

from exeat.appliance.lab import pki
from exeat.dns.build import build_query, build_question
from exeat.dns.health import MAX_HEDGE_S, MIN_HEDGE_S, UNKNOWN_HEDGE_S, Health
from exeat.dns.upstream import Server, Upstream
from exeat.dns.vet import follow
from exeat.dns.wire import Answer, Qtype, wire_name
from exeat.ledger.reactor import Reactor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ZONE = zone_handler([
    ("www.test", 60, "A", "192.0.2.1"),
    *[(f"h{i}.test", 60, "A", f"192.0.2.{i}") for i in range(100)],
    *[("big.test", 60, "AAAA", f"2001:db8::{i:x}") for i in range(1, 60)],
])  # fmt: skip


class Asking:
    """An upstream over `servers` on a loop that the test turns."""

    def __init__(self, folder: Path, *servers: Server | tuple[str, int]) -> None:
        self.reactor = Reactor()
        self.upstream = Upstream(self.reactor, servers, folder / "ca.pem")

    def ask_all(self, *hosts: str, qtype: int = Qtype.A) -> list[Answer | None]:
        got: dict[str, Answer | None] = {}
        for host in hosts:
            self.upstream.ask(wire_name(host), qtype, partial(got.__setitem__, host))
        end = self.reactor.now() + 20
        while len(got) < len(hosts):
            assert self.reactor.now() < end, "nothing came"
            self.reactor.turn(0.05)
        return [got[host] for host in hosts]

    def ask(self, host: str = "www.test", qtype: int = Qtype.A) -> set[str]:
        (answer,) = self.ask_all(host, qtype=qtype)
        return addresses(answer, host, qtype)

    def close(self) -> None:
        self.upstream.close()
        self.reactor.close()


def addresses(answer: Answer | None, host: str, qtype: int = Qtype.A) -> set[str]:
    if answer is None:
        return set()
    family = socket.AF_INET if qtype == Qtype.A else socket.AF_INET6
    return {socket.inet_ntop(family, a.packed()) for a in follow(answer, wire_name(host), qtype).addresses}


@pytest.fixture
def asking(tmp_path: Path) -> Iterator[Callable[..., Asking]]:
    made: list[Asking] = []

    def make(*servers: Server | tuple[str, int]) -> Asking:
        made.append(Asking(tmp_path, *servers))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_server_that_proves_its_name_is_believed(tmp_path: Path, asking: Callable[..., Asking]) -> None:
    with dot_server(tmp_path, ZONE) as server:
        client = asking(server.server)
        assert client.ask() == {"192.0.2.1"}
        assert len(client.ask("big.test", Qtype.AAAA)) == 59
        assert server.connections == 1
        assert server.versions == {"TLSv1.3"}
        client.close()


def test_queries_are_padded_and_carry_random_case(tmp_path: Path, asking: Callable[..., Asking]) -> None:
    with dot_server(tmp_path, ZONE) as server:
        client = asking(server.server)
        client.ask_all("www.test", *(f"{'x' * i}.test" for i in range(1, 60)))
        assert {len(raw) % 128 for raw in server.raw} == {0}
        assert any(raw[12:200].lower() != raw[12:200] for raw in server.raw)
        client.close()


@pytest.mark.parametrize("host", ["a.b", "a" * 63 + ".b", ".".join(["c" * 49] * 5)])
def test_a_padded_query_is_one_that_others_read(host: str) -> None:
    question = build_question(wire_name(host), Qtype.A)
    data = build_query(7, question, block=128)
    message = dns.message.from_wire(data)
    assert len(data) % 128 == 0
    assert [int(option.otype) for option in message.options] == [12]
    assert message.question[0].name.to_text() == host + "."


@pytest.mark.parametrize(
    ("certificate", "name"),
    [("evil", NAME), ("south", NAME), ("north", "dns.example.org"), ("north", "example.net")],
)
def test_a_server_that_proves_another_name_gets_no_question(
    tmp_path: Path, asking: Callable[..., Asking], certificate: str, name: str
) -> None:
    """Neither over TLS nor, by falling back, in the clear on the same port."""
    with dot_server(tmp_path, ZONE, certificate=certificate, name=name) as server:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as clear:
            clear.bind(server.server[:2])
            clear.setblocking(False)
            client = asking(server.server)
            assert client.ask_all("www.test") == [None]
            with pytest.raises(BlockingIOError):
                clear.recv(4096)
        assert server.raw == []
        client.close()


def test_a_certificate_of_an_unknown_root_is_refused(tmp_path: Path, asking: Callable[..., Asking]) -> None:
    """Without `ca` the system's roots count, and the lab's CA is not among them."""
    with dot_server(tmp_path, ZONE) as server:
        reactor = Reactor()
        upstream = Upstream(reactor, (server.server,))
        got: list[Answer | None] = []
        upstream.ask(wire_name("www.test"), Qtype.A, got.append)
        while not got:
            reactor.turn(0.05)
        assert got == [None]
        assert server.raw == []
        upstream.close()
        reactor.close()


def test_old_versions_of_tls_are_refused(tmp_path: Path, asking: Callable[..., Asking]) -> None:
    def old(context: ssl.SSLContext) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.set_ciphers("ALL:@SECLEVEL=0")
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = ssl.TLSVersion.TLSv1_1

    with dot_server(tmp_path, ZONE, change=old) as server:
        client = asking(server.server)
        assert client.ask_all("www.test") == [None]
        client.close()
    assert (server.failed, server.raw) == (1, [])


def test_tls_1_2_is_taken(tmp_path: Path, asking: Callable[..., Asking]) -> None:
    def only_1_2(context: ssl.SSLContext) -> None:
        context.maximum_version = ssl.TLSVersion.TLSv1_2

    with dot_server(tmp_path, ZONE, change=only_1_2) as server:
        client = asking(server.server)
        assert client.ask() == {"192.0.2.1"}
        client.close()


def test_many_questions_share_a_connection_and_answers_come_in_any_order(
    tmp_path: Path, asking: Callable[..., Asking]
) -> None:
    def backwards(server: DotServer, stream: ssl.SSLSocket) -> None:
        queries = [read_query(stream) for _ in range(100)]
        for data in reversed(queries):
            stream.sendall(framed(ZONE(dns.message.from_wire(data), False)[0]))
        read_query(stream)

    with dot_server(tmp_path, ZONE, talk=backwards) as server:
        client = asking(server.server)
        found = client.ask_all(*(f"h{i}.test" for i in range(100)))
        assert [addresses(answer, f"h{i}.test") for i, answer in enumerate(found)] == [
            {f"192.0.2.{i}"} for i in range(100)
        ]
        assert server.connections == 1
        client.close()


def test_a_connection_that_was_closed_is_made_again(tmp_path: Path, asking: Callable[..., Asking]) -> None:
    def one_each(server: DotServer, stream: ssl.SSLSocket) -> None:
        data = read_query(stream)
        server.raw.append(data)
        stream.sendall(framed(ZONE(dns.message.from_wire(data), False)[0]))

    with dot_server(tmp_path, ZONE, talk=one_each) as server:
        client = asking(server.server)
        for i in range(5):
            assert client.ask(f"h{i}.test") == {f"192.0.2.{i}"}
        assert server.connections == 5
        assert server.resumed >= 1
        client.close()


def test_a_server_that_closes_instead_of_answering_is_given_up(
    tmp_path: Path, asking: Callable[..., Asking]
) -> None:
    def rude(_server: DotServer, stream: ssl.SSLSocket) -> None:
        read_query(stream)

    with dot_server(tmp_path, ZONE, talk=rude) as server:
        client = asking(server.server)
        assert client.ask_all("www.test") == [None]
        assert server.connections == 2
        client.close()


BAD = [
    framed(b""),
    framed(b"\0"),
    b"\xff\xff" + b"x" * 100,
    framed(b"x" * 12),
    b"\0",
]


@pytest.mark.parametrize("garbage", BAD)
def test_garbage_is_no_answer_and_does_not_harm(
    tmp_path: Path, asking: Callable[..., Asking], garbage: bytes
) -> None:
    def bad(server: DotServer, stream: ssl.SSLSocket) -> None:
        read_query(stream)
        stream.sendall(garbage)

    with dot_server(tmp_path, ZONE, talk=bad) as server, dot_server(tmp_path, ZONE) as good:
        client = asking(server.server, good.server)
        assert client.ask() == {"192.0.2.1"}
        client.close()


def change_question(query: dns.message.Message, _udp: bool) -> list[bytes]:
    """The right id and another question."""
    reply = dns.message.make_response(query)
    reply.question[0].name = dns.name.from_text("other.test.")
    return [reply.to_wire()]


def test_an_answer_to_another_question_is_no_answer(tmp_path: Path, asking: Callable[..., Asking]) -> None:
    with dot_server(tmp_path, change_question) as server:
        client = asking(server.server)
        assert client.ask_all("www.test") == [None]
        client.close()


def silent(server: DotServer, stream: ssl.SSLSocket) -> None:
    while read_query(stream):
        pass


def test_a_silent_server_is_outrun_by_a_second_one(tmp_path: Path, asking: Callable[..., Asking]) -> None:
    """Asked beside it after the time that is usual, long before the first one is given up."""
    with dot_server(tmp_path, ZONE, talk=silent) as mute, dot_server(tmp_path, ZONE) as good:
        client = asking(mute.server, good.server)
        began = client.reactor.now()
        assert client.ask() == {"192.0.2.1"}
        assert client.reactor.now() - began < 2.0  # the time after which a try is given up
        client.close()


def test_second_questions_are_bounded(tmp_path: Path, asking: Callable[..., Asking]) -> None:
    with dot_server(tmp_path, ZONE, talk=silent) as mute, dot_server(tmp_path, ZONE) as good:
        client = asking(mute.server, good.server)
        client.ask_all(*(f"h{i}.test" for i in range(60)))
        assert client.upstream.hedges < 10
        client.close()


def test_a_refused_connection_is_passed_over(tmp_path: Path, asking: Callable[..., Asking]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        dead = Server("127.0.0.1", unused.getsockname()[1], NAME)
    with dot_server(tmp_path, ZONE) as good:
        client = asking(dead, good.server)
        assert client.ask() == {"192.0.2.1"}
        assert client.ask("h1.test") == {"192.0.2.1"}
        client.close()


def test_a_server_in_the_clear_does_not_pass_for_one_over_tls(
    tmp_path: Path, asking: Callable[..., Asking]
) -> None:
    pki.create(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as clear:

        def serve() -> None:
            sock, _ = clear.accept()
            with sock:
                heard.append(sock.recv(4096))
                sock.sendall(framed(b"\0" * 40))

        heard: list[bytes] = []
        thread = threading.Thread(target=serve)
        thread.start()
        client = asking(Server("127.0.0.1", clear.getsockname()[1], NAME))
        assert client.ask_all("www.test") == [None]
        thread.join(30)
        assert heard[0][:2] == b"\x16\x03"  # a ClientHello
        client.close()


def test_roots_that_cannot_be_read_are_an_error(tmp_path: Path) -> None:
    reactor = Reactor()
    (tmp_path / "bad.pem").write_text("nothing")
    for path in (tmp_path / "none.pem", tmp_path / "bad.pem"):
        with pytest.raises(OSError, match=r"."):
            Upstream(reactor, (Server("127.0.0.1", 853, NAME),), path)
    reactor.close()


def test_health_follows_the_round_trips_and_forgives() -> None:
    health = Health()
    assert (health.hedge_s, health.healthy(0)) == (UNKNOWN_HEDGE_S, True)
    for _ in range(50):
        health.ok(0.001)
    assert health.hedge_s == MIN_HEDGE_S
    for _ in range(50):
        health.outrun(3.0)
    assert health.hedge_s == MAX_HEDGE_S
    health.failed(100)
    assert (health.healthy(104), health.healthy(105)) == (False, True)
    health.failed(105)
    assert (health.healthy(114), health.healthy(115)) == (False, True)
    for _ in range(50):
        health.failed(200)
    assert health.healthy(261)
    health.failed(300)
    health.ok(0.1)
    assert health.healthy(300)
