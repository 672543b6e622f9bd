"""Upstreams over real sockets: an honest server, and every lie an off-path attacker can tell."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

import dns.flags
import dns.message
import dns.rcode
import pytest
from tests.support.dns_servers import Handler, name_server, zone_handler

from exeat.dns.upstream import MAX_IN_FLIGHT, Upstream
from exeat.dns.vet import Status, follow
from exeat.dns.wire import Answer, Qtype, wire_name
from exeat.ledger.reactor import Reactor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WWW = wire_name("www.test")
ZONE = zone_handler([
    ("www.test", 60, "A", "192.0.2.1"),
    ("www.test", 60, "AAAA", "2001:db8::1"),
    *[("big.test", 60, "AAAA", f"2001:db8::{i:x}") for i in range(1, 60)],
])  # fmt: skip


def turn_until(reactor: Reactor, condition: Callable[[], bool], seconds: float = 8.0) -> None:
    end = reactor.now() + seconds
    while not condition():
        assert reactor.now() < end, "nothing came"
        reactor.turn(0.05)


def ask(servers: list[tuple[str, int]], name: bytes = WWW, qtype: int = Qtype.A) -> Answer | None:
    reactor = Reactor()
    got: list[Answer | None] = []
    Upstream(reactor, tuple(servers)).ask(name, qtype, got.append)
    turn_until(reactor, lambda: bool(got))
    reactor.close()
    return got[0]


def addresses(answer: Answer | None, name: bytes = WWW, qtype: int = Qtype.A) -> set[str]:
    assert answer is not None
    family = socket.AF_INET if qtype == Qtype.A else socket.AF_INET6
    return {socket.inet_ntop(family, a.packed()) for a in follow(answer, name, qtype).addresses}


def test_an_honest_server_is_believed() -> None:
    with name_server(ZONE) as server:
        assert addresses(ask([server.address])) == {"192.0.2.1"}
        assert addresses(ask([server.address], qtype=Qtype.AAAA), qtype=Qtype.AAAA) == {"2001:db8::1"}
        assert server.tcp == 0


def test_an_upstream_may_be_ipv6() -> None:
    name = wire_name("big.test")
    with name_server(ZONE, "::1") as server:
        assert addresses(ask([server.address])) == {"192.0.2.1"}
        assert len(addresses(ask([server.address], name, Qtype.AAAA), name, Qtype.AAAA)) == 59
        assert server.tcp == 1


def test_no_such_name_is_an_answer() -> None:
    with name_server(ZONE) as server:
        answer = ask([server.address], wire_name("nope.test"))
        assert answer is not None
        assert follow(answer, wire_name("nope.test"), Qtype.A).status is Status.NXDOMAIN
        assert answer.negative_ttl == 9


def test_a_truncated_answer_is_asked_again_over_tcp() -> None:
    with name_server(ZONE) as server:
        name = wire_name("big.test")
        assert len(addresses(ask([server.address], name, Qtype.AAAA), name, Qtype.AAAA)) == 59
        assert server.tcp == 1


def test_ids_ports_and_case_differ_each_time() -> None:
    name = wire_name("abcdefghijklmnopqrstuvwxyz.test")
    with name_server(ZONE) as server:
        for _ in range(12):
            ask([server.address], name)
        assert len({raw[:2] for raw in server.raw}) > 8
        assert len({raw[12:40] for raw in server.raw}) > 8
        assert len(set(server.ports)) > 8


def forger(change: Callable[[dns.message.Message], bytes], honest_after: bool = True) -> Handler:
    """First lies over UDP, then (perhaps) the truth; honest over TCP."""

    def handle(query: dns.message.Message, udp: bool) -> list[bytes]:
        truth = ZONE(query, udp)
        if not udp:
            return truth
        return [change(dns.message.from_wire(truth[0])), *(truth if honest_after else [])]

    return handle


def lie(message: dns.message.Message) -> dns.message.Message:
    message.answer = [dns.rrset.from_text(message.question[0].name, 60, "IN", "A", "6.6.6.6")]
    return message


def wrong_id(message: dns.message.Message) -> bytes:
    lie(message).id ^= 1
    return message.to_wire()


def wrong_case(message: dns.message.Message) -> bytes:
    wire = bytearray(lie(message).to_wire())
    wire[13] ^= 0x20
    return bytes(wire)


def wrong_name(message: dns.message.Message) -> bytes:
    wire = bytearray(lie(message).to_wire())
    wire[13] = ord("x")
    return bytes(wire)


def wrong_type(message: dns.message.Message) -> bytes:
    wire = bytearray(lie(message).to_wire())
    wire[12 + 10 + 1] = 28
    return bytes(wire)


def no_question(message: dns.message.Message) -> bytes:
    wire = lie(message).to_wire()
    return wire[:4] + b"\0\0" + wire[6:12] + wire[26:]


def not_a_response(message: dns.message.Message) -> bytes:
    wire = bytearray(lie(message).to_wire())
    wire[2] &= 0x7F
    return bytes(wire)


LIES = [
    wrong_id,
    wrong_case,
    wrong_name,
    wrong_type,
    no_question,
    not_a_response,
    lambda _: b"",
    lambda _: b"\xff" * 600,
]


@pytest.mark.parametrize("change", LIES)
def test_a_lie_is_dropped_and_the_truth_awaited(change: Callable[[dns.message.Message], bytes]) -> None:
    with name_server(forger(change)) as server:
        assert addresses(ask([server.address])) == {"192.0.2.1"}
        assert server.seen["www.test", "A"] == 1


def test_a_flood_of_lies_moves_the_question_to_tcp() -> None:
    def handle(query: dns.message.Message, udp: bool) -> list[bytes]:
        truth = ZONE(query, udp)
        return [wrong_id(dns.message.from_wire(truth[0])) for _ in range(40)] if udp else truth

    with name_server(handle) as server:
        assert addresses(ask([server.address])) == {"192.0.2.1"}
        assert server.tcp == 1


def test_a_server_that_changes_case_is_asked_over_tcp() -> None:
    def handle(query: dns.message.Message, udp: bool) -> list[bytes]:
        wire = ZONE(query, udp)[0]
        return [wire[:12] + wire[12:26].swapcase() + wire[26:]] * (20 if udp else 1)

    with name_server(handle) as server:
        assert addresses(ask([server.address])) == {"192.0.2.1"}
        assert server.tcp == 1


def failing(rcode: dns.rcode.Rcode) -> Handler:
    def handle(query: dns.message.Message, udp: bool) -> list[bytes]:
        reply = dns.message.make_response(query)
        reply.set_rcode(rcode)
        return [reply.to_wire()]

    return handle


@pytest.mark.parametrize("rcode", [dns.rcode.SERVFAIL, dns.rcode.REFUSED, dns.rcode.FORMERR])
def test_the_next_server_is_asked_when_one_fails(rcode: dns.rcode.Rcode) -> None:
    with name_server(failing(rcode)) as bad, name_server(ZONE) as good:
        assert addresses(ask([bad.address, good.address])) == {"192.0.2.1"}
        assert bad.seen["www.test", "A"] == 1


def test_a_closed_port_is_passed_over_at_once() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused, name_server(ZONE) as good:
        unused.bind(("127.0.0.1", 0))
        dead = unused.getsockname()
        unused.close()
        assert addresses(ask([dead, good.address])) == {"192.0.2.1"}


def test_a_silent_server_costs_one_try() -> None:
    with name_server(lambda *_: []) as silent, name_server(ZONE) as good:
        assert addresses(ask([silent.address, good.address])) == {"192.0.2.1"}


def test_none_when_nobody_answers() -> None:
    with name_server(failing(dns.rcode.SERVFAIL)) as one, name_server(failing(dns.rcode.REFUSED)) as two:
        assert ask([one.address, two.address]) is None


def test_the_server_that_failed_is_not_the_first_next_time() -> None:
    with name_server(failing(dns.rcode.SERVFAIL)) as bad, name_server(ZONE) as good:
        reactor = Reactor()
        upstream = Upstream(reactor, (bad.address, good.address))
        for host in ("a.test", "b.test", "c.test"):
            got: list[Answer | None] = []
            upstream.ask(wire_name(host), Qtype.A, got.append)
            turn_until(reactor, lambda got=got: bool(got))
        assert bad.names == {"a.test"}
        reactor.close()


@pytest.mark.parametrize("size", [0, 5, 16 * 1024 + 1, 65535])
def test_a_tcp_answer_of_a_bad_size_fails(size: int) -> None:
    def handle(query: dns.message.Message, udp: bool) -> list[bytes]:
        short = dns.message.make_response(query)
        short.flags |= dns.flags.TC
        return [short.to_wire() if udp else b"\0" * size]

    with name_server(handle) as server:
        assert ask([server.address]) is None


@contextlib.contextmanager
def half_open(sent: int, *, hold: bool) -> Iterator[tuple[str, int]]:
    """A server that says over UDP to come by TCP, and there sends the first `sent` octets of an answer
    and then nothing more: it holds the connection, or ends it."""
    listener = socket.create_server(("127.0.0.1", 0))
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(listener.getsockname())
    held: list[socket.socket] = []

    def over_udp() -> None:
        while data := datagrams.recvfrom(4096):
            if not data[0]:
                return
            short = dns.message.make_response(dns.message.from_wire(data[0]))
            short.flags |= dns.flags.TC
            datagrams.sendto(short.to_wire(), data[1])

    def over_tcp() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            query = client.recv(4096)[2:]
            (answer,) = ZONE(dns.message.from_wire(query), False)
            client.sendall((len(answer).to_bytes(2, "big") + answer)[:sent])
            if hold:
                held.append(client)
            else:
                client.close()

    threads = [threading.Thread(target=each) for each in (over_udp, over_tcp)]
    for thread in threads:
        thread.start()
    try:
        yield listener.getsockname()
    finally:
        datagrams.sendto(b"", datagrams.getsockname())
        listener.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(30)
        for sock in (listener, datagrams, *held):
            sock.close()


@pytest.mark.parametrize("sent", [0, 1, 20])
@pytest.mark.parametrize("hold", [True, False])
def test_a_half_open_server_costs_one_try(sent: int, hold: bool) -> None:
    with half_open(sent, hold=hold) as bad, name_server(ZONE) as good:
        assert addresses(ask([bad, good.address])) == {"192.0.2.1"}


def test_equal_questions_in_flight_are_asked_once() -> None:
    with name_server(ZONE) as server:
        reactor = Reactor()
        upstream = Upstream(reactor, (server.address,))
        got: list[Answer | None] = []
        for _ in range(50):
            upstream.ask(WWW, Qtype.A, got.append)
        turn_until(reactor, lambda: len(got) == 50)
        assert server.seen["www.test", "A"] == 1
        upstream.ask(WWW, Qtype.A, got.append)
        turn_until(reactor, lambda: len(got) == 51)
        assert server.seen["www.test", "A"] == 2
        reactor.close()


def test_the_table_of_questions_is_bounded() -> None:
    with name_server(lambda *_: []) as silent:
        reactor = Reactor()
        upstream = Upstream(reactor, (silent.address,))
        got: list[Answer | None] = []
        for i in range(MAX_IN_FLIGHT + 20):
            upstream.ask(wire_name(f"h{i}.test"), Qtype.A, got.append)
        reactor.turn(0)
        assert got == [None] * 20
        turn_until(reactor, lambda: len(got) == MAX_IN_FLIGHT + 20)
        reactor.close()


def test_only_literal_addresses_are_upstreams() -> None:
    reactor = Reactor()
    for servers in [(("localhost", 53),), (("127.1", 53),), ()]:
        with pytest.raises((OSError, ValueError)):
            Upstream(reactor, servers)
    reactor.close()
