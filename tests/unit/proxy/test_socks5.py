"""The SOCKS5 door (RFC 1928, RFC 1929)."""

from __future__ import annotations

import pytest

from exeat.policy.addresses import parse_address
from exeat.proxy.socks5 import (
    SUCCEEDED,
    Datagram,
    SocksError,
    SocksParser,
    SocksRequest,
    read_datagram,
    reply,
)

GREETING = b"\x05\x01\x00"


def domain(name: bytes, port: int = 443) -> bytes:
    return b"\x05\x01\x00\x03" + bytes((len(name),)) + name + port.to_bytes(2, "big")


def trace(data: bytes, step: int) -> tuple[bytes, SocksRequest | str | None, bytes]:
    """Everything sent back, the outcome, and what was left over."""
    parser = SocksParser()
    out = b""
    for at in range(0, len(data), step):
        try:
            answer, request = parser.feed(data[at : at + step])
        except SocksError as error:
            return out + error.answer, error.code, b""
        out += answer
        if request is not None:
            return out, request, parser.rest + data[at + step :]
    return out, None, b""


@pytest.mark.parametrize("step", [1, 1000])
@pytest.mark.parametrize(
    ("request_bytes", "host", "port"),
    [
        (domain(b"WWW.example.org."), "www.example.org", 443),
        (domain(b"192.0.2.7", 80), parse_address("192.0.2.7"), 80),
        (domain(b"[2001:db8::1]", 80), parse_address("2001:db8::1"), 80),
        (b"\x05\x01\x00\x01\xc0\x00\x02\x07\x01\xbb", parse_address("192.0.2.7"), 443),
        (
            b"\x05\x01\x00\x04" + parse_address("2001:db8::1").packed() + b"\x01\xbb",
            parse_address("2001:db8::1"),
            443,
        ),
        (
            b"\x05\x01\x00\x04" + bytes(10) + b"\xff\xff\x7f\x00\x00\x01\x01\xbb",
            parse_address("127.0.0.1"),
            443,
        ),
    ],
)
def test_connect(request_bytes: bytes, host: object, port: int, step: int) -> None:
    out, request, rest = trace(GREETING + request_bytes + b"early", step)
    assert (out, request, rest) == (b"\x05\x00", SocksRequest(host, port), b"early")  # type: ignore[arg-type]


@pytest.mark.parametrize("step", [1, 1000])
def test_a_password_is_taken_and_ignored(step: int) -> None:
    data = b"\x05\x01\x02" + b"\x01\x04user\x04pass" + domain(b"a.example")
    assert trace(data, step)[:2] == (b"\x05\x02\x01\x00", SocksRequest("a.example", 443))


def test_no_auth_is_preferred() -> None:
    assert trace(b"\x05\x03\x01\x02\x00", 1000)[0] == b"\x05\x00"


@pytest.mark.parametrize("step", [1, 1000])
@pytest.mark.parametrize(
    ("data", "out", "code"),
    [
        (b"\x04\x01\x01\xbb\x00\x00\x00\x01\x00", b"", "socks.version"),
        (b"\x05\x00", b"\x05\xff", "socks.method"),
        (b"\x05\x01\x01", b"\x05\xff", "socks.method"),
        (b"\x05\x01\x02\x05\x00", b"\x05\x02", "socks.auth"),
        (GREETING + b"\x05\x02\x00\x01", b"\x05\x00" + reply(7), "socks.command"),
        (GREETING + b"\x04\x01\x00\x01", b"\x05\x00" + reply(1), "socks.version"),
        (GREETING + b"\x05\x01\x01\x01", b"\x05\x00" + reply(1), "socks.malformed"),
        (GREETING + b"\x05\x01\x00\x02", b"\x05\x00" + reply(8), "socks.address_type"),
        (GREETING + domain(b""), b"\x05\x00" + reply(2), "malformed.host"),
        (GREETING + domain(b"evil\0.example.org"), b"\x05\x00" + reply(2), "malformed.host"),
        (GREETING + domain(b"evil\r\n.example.org"), b"\x05\x00" + reply(2), "malformed.host"),
        (GREETING + domain(b"\xff" * 255), b"\x05\x00" + reply(2), "malformed.non_ascii_host"),
        (GREETING + domain(b"0x7f.1"), b"\x05\x00" + reply(2), "malformed.legacy_ip"),
        (GREETING + domain(b"::1"), b"\x05\x00" + reply(2), "malformed.ip"),
        (GREETING + domain(b"a.example:443"), b"\x05\x00" + reply(2), "malformed.host"),
        (GREETING + domain(b"a.example", 0), b"\x05\x00" + reply(2), "malformed.port"),
    ],
)
def test_refused(data: bytes, out: bytes, code: str, step: int) -> None:
    assert trace(data, step)[:2] == (out, code)


def test_where_a_name_is_needed_only_its_method_is_taken() -> None:
    asked: list[tuple[bytes, bytes]] = []

    def check(name: bytes, password: bytes) -> str:
        asked.append((name, password))
        return "" if password == b"pw" else "auth.failed"

    parser = SocksParser(check)
    assert parser.feed(b"\x05\x02\x00\x02") == (b"\x05\x02", None)
    assert parser.feed(b"\x01\x02ci\x02pw") == (b"\x01\x00", None)
    with pytest.raises(SocksError) as failed:
        SocksParser(check).feed(b"\x05\x01\x02\x01\x02ci\x01x")
    assert (failed.value.code, failed.value.answer) == ("auth.failed", b"\x05\x02\x01\x01")
    with pytest.raises(SocksError) as without:
        SocksParser(check).feed(b"\x05\x01\x00")
    assert (without.value.code, without.value.answer) == ("socks.method", b"\x05\xff")
    assert asked == [(b"ci", b"pw"), (b"ci", b"x")]


# -- datagrams (RFC 1928 sections 4, 6, 7)


@pytest.mark.parametrize("step", [1, 1000])
def test_an_association_says_where_its_client_sends_from(step: int) -> None:
    for raw, host, port in (
        (b"\x01\0\0\0\0\0\0", "0.0.0.0", 0),
        (b"\x01\x7f\0\0\1\x12\x34", "127.0.0.1", 0x1234),
    ):
        expected = SocksRequest(parse_address(host), port, udp=True)
        assert trace(GREETING + b"\x05\x03\x00" + raw, step) == (b"\x05\x00", expected, b"")


def test_a_reply_that_says_where_to_send() -> None:
    assert reply(SUCCEEDED, parse_address("127.0.0.1"), 3128) == b"\x05\0\0\x01\x7f\0\0\x01\x0c\x38"
    assert reply(SUCCEEDED, parse_address("::1"), 1) == b"\x05\0\0\x04" + bytes(15) + b"\x01\0\x01"


@pytest.mark.parametrize(
    ("header", "host", "port"),
    [
        (b"\0\0\0\x01\xc0\x00\x02\x07\x01\xbb", parse_address("192.0.2.7"), 443),
        (b"\0\0\0\x03\x0dA.Example.Org\x00\x07", "a.example.org", 7),
        (
            b"\0\0\0\x04" + parse_address("2001:db8::1").packed() + b"\x01\xbb",
            parse_address("2001:db8::1"),
            443,
        ),
    ],
)
def test_a_datagram(header: bytes, host: object, port: int) -> None:
    for payload in (b"", b"payload"):
        assert read_datagram(header + payload) == Datagram(header, host, port, payload)  # type: ignore[arg-type]
    for cut in range(len(header)):
        with pytest.raises(SocksError):
            read_datagram(header[:cut])


@pytest.mark.parametrize(
    "data",
    [
        b"\0\0\1\x01\xc0\x00\x02\x07\x01\xbbfragment",
        b"\0\1\0\x01\xc0\x00\x02\x07\x01\xbbreserved",
        b"\0\0\0\x02\xc0\x00\x02\x07\x01\xbbtype",
        b"\0\0\0\x01\xc0\x00\x02\x07\x00\x00port",
        b"\0\0\0\x03\x00\x01\xbbempty",
        b"\0\0\0\x03\x04ev\0l\x01\xbbnul",
        b"\0\0\0\x03\xff\x01\xbbtoo long",
    ],
)
def test_datagrams_that_are_dropped(data: bytes) -> None:
    with pytest.raises(SocksError):
        read_datagram(data)
