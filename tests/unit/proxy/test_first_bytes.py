"""What a client may say first inside a tunnel, by port."""

from __future__ import annotations

import pytest
from tests.support.proxy_world import client_hello

from exeat.policy.addresses import parse_address
from exeat.proxy.first_bytes import FirstBytes, FirstBytesJudge, Kind, TunnelError


def outcome(host: str, port: int, data: bytes, step: int = 0) -> FirstBytes | str | None:
    judge = FirstBytesJudge(host, port)
    for at in range(0, len(data), step or len(data)):
        try:
            found = judge.feed(data[at : at + (step or len(data))])
        except TunnelError as error:
            return error.code
        if found is not None:
            return found
    return None


@pytest.mark.parametrize("port", [443, 8443, 22, 80, 5432])
@pytest.mark.parametrize("step", [0, 1])
def test_tls_is_judged_on_every_port(port: int, step: int) -> None:
    data = client_hello("www.example.org")
    found = outcome("www.example.org", port, data, step)
    assert isinstance(found, FirstBytes)
    assert found.hello is not None
    assert (found.kind, found.data, found.hello.sni) == (Kind.TLS, data, "www.example.org")


@pytest.mark.parametrize("port", [443, 8443])
@pytest.mark.parametrize("data", [b"SSH-2.0-x\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\0", b"EHLO x\r\n"])
def test_tls_ports_take_tls_only(port: int, data: bytes) -> None:
    assert outcome("www.example.org", port, data) == "tls.not_tls"


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-x\r\n",
        b"\0\0\0\x08",
        b"AMQP\0\0\x09\x01",
        b"root",  # nobody waits for a line end that may never come
        b"PING\r\n",
        b"INVITE sip:a@example.org SIP/2.0\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_other_protocols_pass_elsewhere(data: bytes, step: int) -> None:
    found = outcome("db.example.org", 5432, data, step)
    assert isinstance(found, FirstBytes)
    assert found.kind is Kind.OTHER
    assert data.startswith(found.data)


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize(
    ("head", "code"),
    [
        (b"GET / HTTP/1.1\r\nHost: evil.example.net\r\n\r\n", "http.host_mismatch"),
        (b"GET / HTTP/1.1\r\nHost: db.example.org:80\r\n\r\n", "http.host_mismatch"),
        (b"CONNECT evil.example.net:443 HTTP/1.1\r\n\r\n", "http.nested_connect"),
        (b"\r\nGET / HTTP/1.1\r\nHost: evil.example.net\r\n\r\n", "http.request_line"),
        (b"GET / HTTP/1.1\nHost: evil.example.net\n\n", "http.request_line"),
        (b"GET  /  HTTP/1.1\r\nHost: evil.example.net\r\n\r\n", "http.request_line"),
    ],
)
def test_hostile_http_on_any_other_port(head: bytes, code: str, step: int) -> None:
    assert outcome("db.example.org", 5432, head, step) == code


def assert_is_http(found: object, head: bytes) -> None:
    assert isinstance(found, FirstBytes)
    assert (found.kind, found.passing()) == (Kind.HTTP, head)


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("host", [b"db.example.org:5432", b"db.example.org"])
def test_http_on_any_other_port_names_its_target(host: bytes, step: int) -> None:
    head = b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n"
    assert_is_http(outcome("db.example.org", 5432, head, step), head)


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: www.example.org\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: WWW.example.org:80\r\nX: y\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nhost:www.example.org\r\n\r\n",
    ],
)
def test_http_on_port_80_names_its_target(head: bytes, step: int) -> None:
    assert_is_http(outcome("www.example.org", 80, head, step), head)


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize(
    ("head", "code"),
    [
        (b"GET / HTTP/1.1\r\nHost: evil.example.net\r\n\r\n", "http.host_mismatch"),
        (b"GET / HTTP/1.1\r\nHost: www.example.org:8080\r\n\r\n", "http.host_mismatch"),
        (b"GET / HTTP/1.1\r\nHost: www.example.org@evil\r\n\r\n", "http.host_mismatch"),
        (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", "http.host_mismatch"),
        (b"GET / HTTP/1.1\r\nX: y\r\n\r\n", "http.host_missing"),
        (b"GET / HTTP/1.1\r\nHost: www.example.org\r\nHost: evil\r\n\r\n", "http.host_twice"),
        (b"GET / HTTP/1.1\r\nHost : evil\r\nHost: www.example.org\r\n\r\n", "http.header"),
        (b"GET / HTTP/1.1\r\nHost: www.example.org\r\n evil\r\n\r\n", "http.header"),
        (b"GET / HTTP/1.1\r\nHost: www.example.org\r\nUpgrade: h2c\r\n\r\n", "http.upgrade"),
        (
            b"POST / HTTP/1.1\r\nHost: www.example.org\r\nContent-Length: 1\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n",
            "http.framing",
        ),
        (b"GET / HTTP/1.1\nHost: evil\n\r\n\r\n", "http.request_line"),
        (b"\r\nGET / HTTP/1.1\r\nHost: evil\r\n\r\n", "http.request_line"),
        (b"get / http/1.1\r\nHost: evil\r\n\r\n", "http.request_line"),
        (b"GET http://evil/ HTTP/1.1\r\nHost: www.example.org\r\n\r\n", "http.target_form"),
        (b"CONNECT evil:443 HTTP/1.1\r\nHost: www.example.org\r\n\r\n", "http.nested_connect"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "http.request_line"),
    ],
)
def test_hostile_http_on_port_80(head: bytes, code: str, step: int) -> None:
    assert outcome("www.example.org", 80, head, step) == code


@pytest.mark.parametrize("data", [b"HELO x\r\n", b"\x00\x01", b"USER anonymous\r\n"])
def test_what_is_no_http_passes_on_port_80(data: bytes) -> None:
    assert outcome("www.example.org", 80, data) == FirstBytes(Kind.OTHER, data)


def test_literal_targets() -> None:
    host = parse_address("192.0.2.1")
    good = FirstBytesJudge(host, 80).feed(b"GET / HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n")
    assert good is not None
    with pytest.raises(TunnelError):
        FirstBytesJudge(host, 80).feed(b"GET / HTTP/1.1\r\nHost: 192.0.2.2\r\n\r\n")


def test_incomplete_says_what_was_begun() -> None:
    judge = FirstBytesJudge("a.example", 80)
    assert judge.incomplete == ""
    judge.feed(b"GET / HT")
    assert (judge.incomplete, judge.tls) == ("http.request_line", False)
    judge = FirstBytesJudge("a.example", 22)
    judge.feed(b"\x16\x03")
    assert (judge.incomplete, judge.tls) == ("tls.malformed", True)


@pytest.mark.parametrize(
    ("data", "verdict"),
    [
        (b"HTTP/\x00\x0e\n\x00", "http.request_line"),
        (b"GET /\x00 HTTP/1.1\r\nHost: evil.example\r\n\r\n", "http.request_line"),
        (b"get /\x01 http/1.1\nhost: evil.example\n\n", "http.request_line"),
        (b"\x00\x01binary, with HTTP/1.1 later\n", ""),
        (b"RFB\x00003.008\n", ""),
    ],
)
def test_a_byte_that_no_text_has_decides_at_once(data: bytes, verdict: str) -> None:
    """The same in one piece and byte by byte."""
    for pieces in ([data], [data[i : i + 1] for i in range(len(data))]):
        judge = FirstBytesJudge("a.example", 80)
        found = ""
        for piece in pieces:
            try:
                if judge.feed(piece) is not None:
                    break
            except TunnelError as error:
                found = error.code
                break
        else:
            found = "nothing was decided"
        assert found == verdict
