"""Where a redirected client goes, read from what it says first: whole and byte by byte."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.support.proxy_world import client_hello

from exeat.policy.addresses import parse_address
from exeat.proxy import refusal
from exeat.proxy.doors import Arrival, DoorError
from exeat.proxy.redirected import RedirectedDoor

if TYPE_CHECKING:
    from exeat.policy.model import Address

AIM = parse_address("203.0.113.9")
AIM6 = parse_address("2001:db8:1::9")
GET = b"GET /a?b=c HTTP/1.1\r\nHost: %s\r\nAccept: */*\r\n\r\n"


def arrive(
    port: int, data: bytes, step: int = 0, aim: Address = AIM, *, again: bool = False
) -> Arrival | str | None:
    """The arrival with all of `data` in its rest, a reason code, or None while more is wanted."""
    door = RedirectedDoor(aim, port, again=again)
    for at in range(0, len(data), step or len(data)):
        end = at + (step or len(data))
        try:
            out, arrival = door.feed(data[at:end])
        except DoorError as error:
            return error.code if error.answer is None else repr(error.answer)
        assert out == b""
        if arrival is not None:
            return arrival
    return None


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("port", [443, 8443, 22, 80, 5432])
def test_the_server_name_is_the_destination_on_every_port(port: int, step: int) -> None:
    hello = client_hello("www.example.org")
    found = arrive(port, hello, step)
    assert isinstance(found, Arrival)
    assert (found.source, found.host, found.port) == ("sni", "www.example.org", port)
    assert (found.rest, found.consumed, found.tunnel) == (hello, 0, True)


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("port", [443, 5432])
def test_without_a_server_name_the_address_is(port: int, step: int) -> None:
    hello = client_hello(None)
    found = arrive(port, hello, step)
    assert isinstance(found, Arrival)
    assert (found.source, found.host, found.rest) == ("address", AIM, hello)


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize(
    ("port", "said", "host"),
    [
        (80, b"www.example.org", "www.example.org"),
        (80, b"WWW.Example.ORG:80", "www.example.org"),
        (8080, b"www.example.org:8080", "www.example.org"),
        (8080, b"www.example.org", "www.example.org"),
        (80, b"203.0.113.9", AIM),
    ],
)
def test_the_host_of_a_request_is_the_destination(port: int, said: bytes, host: object, step: int) -> None:
    found = arrive(port, GET % said, step)
    assert isinstance(found, Arrival)
    assert (found.source, found.host, found.port, found.tunnel) == ("host", host, port, False)
    assert found.asked is not None
    assert found.asked.upstream.startswith(b"GET /a?b=c HTTP/1.1\r\nHost: ")
    assert found.asked.upstream.endswith(b"Connection: close\r\n\r\n")
    assert found.asked.length == 0


def test_a_body_is_what_follows_the_head() -> None:
    found = arrive(80, b"PUT / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 3\r\n\r\nabcGET")
    assert isinstance(found, Arrival)
    assert found.asked is not None
    assert (found.rest, found.asked.length) == (b"abcGET", 3)


def test_an_old_request_without_a_host_is_for_the_address() -> None:
    found = arrive(80, b"GET / HTTP/1.0\r\n\r\n", aim=AIM6)
    assert isinstance(found, Arrival)
    assert (found.source, found.host) == ("host", AIM6)
    assert found.asked is not None
    assert b"Host: [2001:db8:1::9]\r\n" in found.asked.upstream


REFUSED = {
    b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\n": "http.nested_connect",
    b"GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n": "http.origin_form",
    b"GET * HTTP/1.1\r\nHost: a.example\r\n\r\n": "http.origin_form",
    b"GET /#f HTTP/1.1\r\nHost: a.example\r\n\r\n": "http.origin_form",
    b"GET / HTTP/1.1\r\n\r\n": "http.host_missing",
    b"GET / HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n\r\n": "http.host_twice",
    GET % b"a.example:81": "http.host_mismatch",
    GET % b"203.0.113.10": "http.host_mismatch",
    GET % b"2130706433": "malformed.legacy_ip",
    GET % b"a..example": "malformed.host",
    GET % b"": "malformed.host",
    b"GET / HTTP/1.1\nHost: a.example\n\n": "http.line_ending",
    b"GET / HTTP/1.1\r\n Host: a.example\r\n\r\n": "http.header",
    b"PUT / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n": "http.framing",
    b"GET / HTTP/1.1\r\nHost: a.example\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n": "http.upgrade",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n": "http.version",
    b"\r\nGET / HTTP/1.1\r\nHost: a.example\r\n\r\n": "http.request_line",
}


@pytest.mark.parametrize("step", [0, 1, 7])
@pytest.mark.parametrize("data", list(REFUSED), ids=lambda data: data[:30].decode(errors="replace"))
def test_what_has_two_readings_is_refused(data: bytes, step: int) -> None:
    assert arrive(80, data, step) == REFUSED[data]


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("data", [b"SSH-2.0-x\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\0", b"EHLO x\r\n"])
def test_tls_ports_take_tls_only(data: bytes, step: int) -> None:
    assert arrive(443, data, step) == "tls.not_tls"


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("data", [b"SSH-2.0-x\r\n", b"\0\0\0\x08", b"EHLO x\r\n", b"PRI * HTTP/2.0\r\n\r\n"])
def test_other_protocols_are_for_the_address(data: bytes, step: int) -> None:
    found = arrive(2222, data, step)
    assert isinstance(found, Arrival)
    assert (found.source, found.host, found.tunnel) == ("address", AIM, True)
    assert data.startswith(found.rest)


@pytest.mark.parametrize(
    ("port", "said", "code"),
    [
        (22, b"", ""),
        (22, b"GET", ""),
        (22, b"\x16\x03", "tls.timeout"),
        (443, b"", "tls.timeout"),
        (7000, b"GET / HTTP/1.1\r\n", "http.timeout"),
    ],
)
def test_who_stops_in_the_middle(port: int, said: bytes, code: str) -> None:
    door = RedirectedDoor(AIM, port)
    if said:
        assert door.feed(said) == (b"", None)
    assert door.unfinished == code
    assert door.silent() == Arrival("address", AIM, port, said, 0)


@pytest.mark.parametrize(
    ("port", "said", "begins"),
    [
        (443, b"\x16\x03\x01", b"\x15\x03\x03\x00\x02\x02"),
        (7000, b"\x16\x03\x01", b"\x15\x03\x03\x00\x02\x02"),
        (80, b"", b"HTTP/1.1 403 "),
        (7000, b"GET / HTTP/1.1\r\n", b"HTTP/1.1 403 "),
        (443, b"", b""),
        (25, b"", b""),
    ],
)
def test_a_refusal_is_in_the_clients_own_language(port: int, said: bytes, begins: bytes) -> None:
    door = RedirectedDoor(AIM, port)
    if said:
        door.feed(said)
    answer = door.refused(refusal.from_code("rule.deny", AIM, port), None, stays=False)
    assert answer.startswith(begins)
    assert bool(answer) == bool(begins)


@pytest.mark.parametrize("step", [0, 1])
def test_what_follows_a_request_is_another(step: int) -> None:
    """No hello, no other protocol: only requests are heard on a connection that carried one."""
    ssh = b"SSH-2.0-x\r\n"
    assert arrive(7000, client_hello("a.example"), step, again=True) == "http.line_ending"
    assert arrive(7000, ssh, step, again=True) == "http.request_line"
    door = RedirectedDoor(AIM, 7000, again=True)
    answer = door.refused(refusal.from_code("http.request_line"), None, stays=False)
    assert answer.startswith(b"HTTP/1.1 400 ")
