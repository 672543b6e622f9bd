"""The HTTP door: what is a request, what is not, and what of it goes to the origin."""

from __future__ import annotations

from collections import deque

import pytest

from exeat.policy.addresses import parse_address
from exeat.proxy.connect import HeadParser, RequestHead
from exeat.proxy.fields import MAX_HEAD, HttpError


def parse(data: bytes) -> RequestHead | None:
    return HeadParser().feed(data)


def refusal(data: bytes) -> str:
    """The code for one-shot and for byte-at-a-time, which must be the same."""
    with pytest.raises(HttpError) as one:
        parse(data)
    parser = HeadParser()
    with pytest.raises(HttpError) as many:
        deque((parser.feed(bytes((byte,))) for byte in data), maxlen=0)
    assert one.value.code == many.value.code
    return one.value.code


@pytest.mark.parametrize(
    ("line", "host", "port"),
    [
        (b"CONNECT www.example.org:443 HTTP/1.1", "www.example.org", 443),
        (b"CONNECT www.example.org:443 HTTP/1.0", "www.example.org", 443),
        (b"CONNECT WWW.Example.ORG.:443 HTTP/1.1", "www.example.org", 443),
        (b"CONNECT 192.0.2.7:8443 HTTP/1.1", parse_address("192.0.2.7"), 8443),
        (b"CONNECT [2001:db8::1]:443 HTTP/1.1", parse_address("2001:db8::1"), 443),
        (b"CONNECT [::ffff:192.0.2.7]:443 HTTP/1.1", parse_address("192.0.2.7"), 443),
    ],
)
def test_connect_targets(line: bytes, host: object, port: int) -> None:
    head = parse(line + b"\r\nHost: anything.example\r\nUser-Agent: x\r\n\r\n")
    assert head is not None
    assert (head.host, head.port, head.connect, head.upstream) == (host, port, True, b"")


@pytest.mark.parametrize(
    ("target", "code"),
    [
        (b"evil\0.example.org:443", "http.line_ending"),
        (b"evil%00.example.org:443", "malformed.host"),
        (b"evil%2eexample.org:443", "malformed.host"),
        (b"a..example.org:443", "malformed.host"),
        (b"[www.example.org]:443", "malformed.ip"),
        ("\uff42locked.example.org:443".encode(), "malformed.host"),
        ("\u212aelvin.example.org:443".encode(), "malformed.host"),
        ("a\u3002example.org:443".encode(), "malformed.host"),
        (b"sh\xad\xady.example.org:443", "malformed.host"),
        (b"good.example.org@evil.example.net:443", "malformed.host"),
        (b"evil.example.net#.example.org:443", "malformed.host"),
        (b"evil.example.net/.example.org:443", "malformed.host"),
        (b"evil.example.net\\.example.org:443", "malformed.host"),
        (b"evil.example.net?.example.org:443", "malformed.host"),
        (b"evil.example.net:443.example.org", "malformed.host"),
        (b"evil.example.net:443:good.example.org", "malformed.host"),
        (b":443", "malformed.host"),
        (b"www.example.org", "malformed.port"),
        (b"www.example.org:", "malformed.port"),
        (b"[::1%25lo]:443", "malformed.ip_zone"),
        (b"[::ffff:192.0.2.1%x.example.org]:443", "malformed.ip_zone"),
        (b"::1:443", "malformed.host"),
        (b"2130706433:80", "malformed.legacy_ip"),
        (b"0x7f.1:80", "malformed.legacy_ip"),
        (b"0177.0.0.1:80", "malformed.legacy_ip"),
        (b"127.1:80", "malformed.legacy_ip"),
        (b"0:80", "malformed.legacy_ip"),
        (b"www.example.org:0", "malformed.port"),
        (b"www.example.org:65979", "malformed.port"),
        (b"www.example.org:+443", "malformed.port"),
        (b"www.example.org:-443", "malformed.port"),
        (b"www.example.org:0443", "malformed.port"),
        (b"www.example.org:4_43", "malformed.port"),
        ("www.example.org:\uff14\uff14\uff13".encode(), "malformed.host"),
        (b"www.example.org:443\t", "http.request_line"),
        (b"http://www.example.org:443/", "malformed.port"),
    ],
)
def test_hostile_connect_targets(target: bytes, code: str) -> None:
    got = refusal(b"CONNECT " + target + b" HTTP/1.1\r\nHost: good.example.org\r\n\r\n")
    # Only that it is refused as the client's mistake matters to the client; the exact code of a
    # target that is wrong in two ways may be either.
    assert got.partition(".")[0] == code.partition(".")[0]


def test_a_refused_target_says_what_is_wrong_with_it() -> None:
    assert refusal("CONNECT b\u00fccher.de:443 HTTP/1.1\r\n\r\n".encode()) == "malformed.non_ascii_host"
    assert refusal(b"CONNECT [::1:443 HTTP/1.1\r\n\r\n") == "malformed.ip"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"CONNECT a.example:443 HTTP/1.1\n\n", "http.line_ending"),
        (b"CONNECT a.example:443 HTTP/1.1\r\nHost: a\n\r\n", "http.line_ending"),
        (b"CONNECT a.example:443 HTTP/1.1\r\nHost: a\rb\r\n\r\n", "http.line_ending"),
        (b"CONNECT a.example:443 HTTP/1.1\r\nX: a\0b\r\n\r\n", "http.line_ending"),
        (b"CONNECT a.example:443 b.example:443 HTTP/1.1\r\n\r\n", "http.request_line"),
        (b"CONNECT  a.example:443 HTTP/1.1\r\n\r\n", "http.request_line"),
        (b" CONNECT a.example:443 HTTP/1.1\r\n\r\n", "http.request_line"),
        (b"\r\nCONNECT a.example:443 HTTP/1.1\r\n\r\n", "http.request_line"),
        (b"CONNECT a.example:443 HTTP/1.1 \r\n\r\n", "http.request_line"),
        (b"connect a.example:443 HTTP/1.1\r\n\r\n", "http.target_form"),
        (b"CONNECT a.example:443\r\n\r\n", "http.version"),
        (b"CONNECT a.example:443 HTTP/2.0\r\n\r\n", "http.version"),
        (b"CONNECT a.example:443 HTTP/1.2\r\n\r\n", "http.version"),
        (b"CONNECT a.example:443 http/1.1\r\n\r\n", "http.request_line"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "http.version"),
        (b"GET http://a.example/\r\n", "http.version"),
        (b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n", "http.target_form"),
        (b"OPTIONS * HTTP/1.1\r\nHost: a.example\r\n\r\n", "http.target_form"),
        (b"GET https://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n", "http.scheme"),
        (b"GET ftp://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n", "http.scheme"),
        (b"GET http://u:p@a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n", "malformed.port"),
        (b"GET http://a.example#@b.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n", "malformed.host"),
        (b"GET http://a.example\\@b.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n", "malformed.host"),
        (b"GET http:///x HTTP/1.1\r\nHost: a.example\r\n\r\n", "malformed.host"),
        (b"GET http://a.example:/ HTTP/1.1\r\nHost: a.example\r\n\r\n", "malformed.port"),
        (b"GET http://a.example/ HTTP/1.1\r\n\r\n", "http.host_missing"),
        (b"GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n\r\n", "http.host_twice"),
        (b"GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n b.example\r\n\r\n", "http.header"),
        (b"GET http://a.example/ HTTP/1.1\r\nHost : a.example\r\n\r\n", "http.header"),
        (b"GET http://a.example/ HTTP/1.1\r\n: x\r\n\r\n", "http.header"),
        (b"GET http://a.example/ HTTP/1.1\r\nno colon\r\n\r\n", "http.header"),
        (b"GET http://a.example/ HTTP/1.1\r\nX: \x7f\r\n\r\n", "http.header"),
        (b"GET http://a.example/ HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n", "http.upgrade"),
        (b"GET http://a.example/ HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\n\r\n", "http.upgrade"),
        (b"GET http://a.example/ HTTP/1.1\r\nHost: a\r\nConnection: host\r\n\r\n", "http.header"),
        (b"CONNECT a.example:443 HTTP/1.1\r\nContent-Length: 3\r\n\r\n", "http.connect_body"),
        (b"CONNECT a.example:443 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", "http.connect_body"),
    ],
)
def test_not_a_request(data: bytes, code: str) -> None:
    assert refusal(data) == code


@pytest.mark.parametrize(
    "fields",
    [
        b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: 3\r\nContent-Length: 3\r\n",
        b"Content-Length: 3\r\nContent-Length: 4\r\n",
        b"Content-Length: 3, 3\r\n",
        b"Content-Length: +3\r\n",
        b"Content-Length: 03\r\n",
        b"Content-Length: 0x3\r\n",
        b"Content-Length: 3 3\r\n",
        b"Content-Length:\r\n",
        b"Content-Length: 99999999999999999999\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: \x0bchunked\r\n",
        b"Connection: content-length\r\nContent-Length: 3\r\n",
        b"Connection: close, Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n",
    ],
)
def test_ambiguous_framing(fields: bytes) -> None:
    code = refusal(b"POST http://a.example/ HTTP/1.1\r\nHost: a.example\r\n" + fields + b"\r\nabc")
    assert code in ("http.framing", "http.header")


def test_chunked_needs_http_1_1() -> None:
    assert refusal(b"POST http://a.example/ HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n") == "http.framing"


def test_absolute_form_is_rewritten() -> None:
    head = parse(
        b"POST HTTP://A.Example:8080/p?q HTTP/1.1\r\nHost: evil.example\r\nAccept: */*\r\n"
        b"Proxy-Authorization: Basic secret\r\nProxy-Connection: keep-alive\r\nKeep-Alive: 5\r\n"
        b"Connection: keep-alive, X-Private\r\nX-Private: 1\r\nTE: trailers\r\ncontent-length: 3\r\n\r\n"
    )
    assert head is not None
    assert (head.host, head.port, head.length) == ("a.example", 8080, 3)
    assert head.upstream == (
        b"POST /p?q HTTP/1.1\r\nHost: a.example:8080\r\nAccept: */*\r\ncontent-length: 3\r\n"
        b"Connection: close\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("target", "line", "host"),
    [
        (b"http://a.example", b"GET / HTTP/1.1", b"a.example"),
        (b"http://a.example?x=1", b"GET /?x=1 HTTP/1.1", b"a.example"),
        (b"http://a.example:80/x", b"GET /x HTTP/1.1", b"a.example"),
        (b"http://[2001:db8::1]/", b"GET / HTTP/1.1", b"[2001:db8::1]"),
        (b"http://[2001:db8::1]:81/", b"GET / HTTP/1.1", b"[2001:db8::1]:81"),
        (b"http://a.example/http://b.example/", b"GET /http://b.example/ HTTP/1.1", b"a.example"),
    ],
)
def test_host_comes_from_the_target(target: bytes, line: bytes, host: bytes) -> None:
    head = parse(b"GET " + target + b" HTTP/1.1\r\nHost: other.example\r\n\r\n")
    assert head is not None
    assert head.upstream.split(b"\r\n")[:2] == [line, b"Host: " + host]


def test_what_follows_the_head_is_kept() -> None:
    parser = HeadParser()
    assert parser.feed(b"CONNECT a.example:443 HTTP/1.1\r\n\r\n\x16\x03\x01") is not None
    assert parser.rest == b"\x16\x03\x01"
    assert parser.consumed == len(b"CONNECT a.example:443 HTTP/1.1\r\n\r\n")


def test_head_of_exactly_the_limit_passes_and_one_more_does_not() -> None:
    start, end = b"CONNECT a.example:443 HTTP/1.1\r\nX: ", b"\r\n\r\n"
    fill = MAX_HEAD - len(start) - len(end)
    assert parse(start + b"a" * fill + end) is not None
    assert refusal(start + b"a" * (fill + 1) + end) == "http.head_too_large"
    assert refusal(b"A" * (MAX_HEAD + 1)) == "http.head_too_large"


def test_a_websocket_is_asked_for_in_our_own_words() -> None:
    head = parse(
        b"GET http://a.example/chat HTTP/1.1\r\nHost: a.example\r\nUpgrade: WebSocket\r\n"
        b"Connection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    assert head is not None
    assert (head.upgrade, head.length) == (True, 0)
    assert head.upstream == (
        b"GET /chat HTTP/1.1\r\nHost: a.example\r\nSec-WebSocket-Version: 13\r\n"
        b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    )


def test_the_scheme_ws_is_for_websocket_only() -> None:
    line = b"GET ws://a.example/chat HTTP/1.1\r\nHost: a.example\r\n"
    head = parse(line + b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\n")
    assert head is not None
    assert (head.upgrade, head.port) == (True, 80)
    assert refusal(line + b"\r\n") == "http.scheme"
    assert refusal(line.replace(b"ws:", b"wss:") + b"\r\n") == "http.scheme"


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        (b"GET http://a.example/ HTTP/1.1", b"Upgrade: websocket\r\n"),
        (b"GET http://a.example/ HTTP/1.1", b"Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n"),
        (b"GET http://a.example/ HTTP/1.1", b"Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n"),
        (b"GET http://a.example/ HTTP/1.1", b"Connection: Upgrade\r\nUpgrade: h2c\r\n"),
        (b"GET http://a.example/ HTTP/1.1", b"Connection: HTTP2-Settings\r\nHTTP2-Settings: AA\r\n"),
        (
            b"GET http://a.example/ HTTP/1.1",
            b"Connection: Upgrade\r\nUpgrade: websocket\r\nHTTP2-Settings: AA\r\n",
        ),
        (
            b"POST http://a.example/ HTTP/1.1",
            b"Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n",
        ),
        (b"GET http://a.example/ HTTP/1.0", b"Connection: Upgrade\r\nUpgrade: websocket\r\n"),
        (b"CONNECT a.example:443 HTTP/1.1", b"Connection: Upgrade\r\nUpgrade: websocket\r\n"),
    ],
)
def test_other_changes_of_protocol_are_refused(line: bytes, fields: bytes) -> None:
    assert refusal(line + b"\r\nHost: a.example\r\n" + fields + b"\r\n") == "http.upgrade"


@pytest.mark.parametrize(
    ("version", "fields", "persistent"),
    [
        (b"HTTP/1.1", b"", True),
        (b"HTTP/1.1", b"Proxy-Connection: Keep-Alive\r\n", True),
        (b"HTTP/1.1", b"Connection: x, Close\r\n", False),
        (b"HTTP/1.1", b"Proxy-Connection: close\r\n", False),
        (b"HTTP/1.0", b"Connection: keep-alive\r\n", False),
    ],
)
def test_who_stays(version: bytes, fields: bytes, persistent: bool) -> None:
    head = parse(b"GET http://a.example/ %s\r\nHost: a.example\r\n%s\r\n" % (version, fields))
    assert head is not None
    assert (head.persistent, head.old) == (persistent, version == b"HTTP/1.0")
    assert head.upstream.startswith(b"GET / %s\r\n" % version)


def test_options_of_the_server_itself() -> None:
    head = parse(b"OPTIONS http://a.example HTTP/1.1\r\nHost: a.example\r\n\r\n")
    assert head is not None
    assert head.upstream.startswith(b"OPTIONS * HTTP/1.1\r\nHost: a.example\r\n")
