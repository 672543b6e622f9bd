"""Any bytes either parse or raise the parser's one error, however they are cut."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from exeat.policy.model import Address
from exeat.proxy.body import BodyFramer
from exeat.proxy.client_hello import HelloError, HelloParser
from exeat.proxy.connect import HeadParser
from exeat.proxy.doors import DoorError
from exeat.proxy.fields import HttpError
from exeat.proxy.first_bytes import FirstBytesJudge, TunnelError
from exeat.proxy.redirected import RedirectedDoor
from exeat.proxy.socks5 import SocksError, SocksParser
from exeat.proxy.tunnel_requests import TunnelRequests

HTTP_BITS = st.sampled_from(
    [
        *(b"CONNECT GET POST http:// https:// a.example evil.example :443 :80 [2001:db8::1]".split()),
        b" HTTP/1.1\r\n",
        b" HTTP/1.0\r\n",
        b"Host: a.example\r\n",
        b"Content-Length: 3\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Connection: close\r\n",
        b"\r\n",
        b"\n",
        b"\r",
        b" ",
        b"\0",
        b"/",
        b"@",
        b"\xff",
    ]
)
TLS_BITS = st.sampled_from(
    [
        b"\x16\x03\x01\x00\x30",
        b"\x16\x03\x03\x00\x05",
        b"\x01\x00\x00\x2c",
        b"\x03\x03" + b"r" * 32,
        b"\x00",
        b"\x00\x02\x13\x01\x01\x00",
        b"\x00\x0e\x00\x00\x00\x0a\x00\x08\x00\x00\x05ab.cd",
        b"\xfe\x0d",
        b"\x17\x03\x03\x00\x01",
        b"\x80",
    ]
)
SOCKS_BITS = st.sampled_from(
    [
        b"\x05\x01\x00",
        b"\x05\x01\x02",
        b"\x01\x01u\x01p",
        b"\x05\x01\x00\x03\x09a.example\x01\xbb",
        b"\x05\x02",
        b"\0",
    ]
)


def mixed(bits: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.lists(st.one_of(bits, bits, st.binary(max_size=8)), max_size=14).map(b"".join)


def run(make: Any, error: type[Exception], data: bytes, cuts: list[int]) -> tuple[Any, int]:
    """The outcome and, for a result, how many bytes the parser had taken in when it gave it."""
    parser = make()
    edges = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    for start, end in itertools.pairwise(edges):
        try:
            found = parser.feed(data[start:end])
        except error as failure:
            return str(failure), -1
        if isinstance(found, tuple):
            found = found[1]
        if found is not None:
            return found, end - len(parser.rest) if hasattr(parser, "rest") else -1
    return None, -1


CUTS = st.lists(st.integers(0, 400), max_size=12)


def same_for_every_cut(make: Any, error: type[Exception], data: bytes, cuts: list[int]) -> None:
    whole = run(make, error, data, [])
    assert run(make, error, data, cuts) == whole
    assert run(make, error, data, list(range(len(data)))) == whole


@given(mixed(HTTP_BITS), CUTS)
def test_http(data: bytes, cuts: list[int]) -> None:
    same_for_every_cut(HeadParser, HttpError, data, cuts)


@given(mixed(SOCKS_BITS), CUTS)
def test_socks(data: bytes, cuts: list[int]) -> None:
    same_for_every_cut(SocksParser, SocksError, data, cuts)


@given(mixed(TLS_BITS), CUTS)
def test_hello(data: bytes, cuts: list[int]) -> None:
    same_for_every_cut(HelloParser, HelloError, data, cuts)


@given(mixed(HTTP_BITS) | mixed(TLS_BITS), CUTS, st.sampled_from([443, 80]))
def test_first_bytes_verdict(data: bytes, cuts: list[int], port: int) -> None:
    """On judged ports the verdict does not depend on the cut; only how much was kept with it does."""

    def verdict(where: list[int]) -> object:
        found, _ = run(lambda: FirstBytesJudge("a.example", port), TunnelError, data, where)
        if found is None or isinstance(found, str):
            return found
        assert data.startswith(found.data)
        return found.kind, found.hello

    assert verdict(cuts) == verdict([])


@given(mixed(HTTP_BITS) | mixed(TLS_BITS), CUTS, st.sampled_from([443, 80, 7000]))
def test_where_a_redirected_client_goes(data: bytes, cuts: list[int], port: int) -> None:
    """Nor does the destination; only how much came with it does."""

    def verdict(where: list[int]) -> object:
        door = RedirectedDoor(Address(4, 1), port)
        found, _ = run(lambda: door, DoorError, data, where)
        if found is None or isinstance(found, str):
            return found
        if found.tunnel:
            assert data.startswith(found.rest)
        return found.source, found.host, found.port, found.tunnel, found.consumed

    whole = verdict([])
    assert verdict(cuts) == whole
    assert verdict(list(range(len(data)))) == whole


@given(st.one_of(st.none(), st.integers(0, 50)), st.binary(max_size=60), CUTS)
def test_body_passes_a_prefix(length: int | None, data: bytes, cuts: list[int]) -> None:
    def passed(where: list[int]) -> tuple[bytes, bool, str]:
        framer = BodyFramer(length)
        out = b""
        edges = sorted({min(cut, len(data)) for cut in where} | {0, len(data)})
        for start, end in itertools.pairwise(edges):
            try:
                out += data[start : start + framer.take(data[start:end])]
            except HttpError as error:
                return b"", False, error.code
        return out, framer.done, ""

    whole = passed([])
    assert passed(cuts) == whole
    assert data.startswith(whole[0])


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.binary(max_size=20))
def test_a_chunked_body_is_taken_exactly(chunks: list[bytes], after: bytes) -> None:
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    framer = BodyFramer(None)
    assert framer.take(body + after) == len(body)
    assert framer.done


REQUESTS = st.lists(
    st.sampled_from(
        [
            b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
            b"GET / HTTP/1.0\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 3\r\n\r\nabc",
            b"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nGET\r\n0\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a.example\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
            b"GET / HTTP/1.1\r\n",
            b"\r\n",
        ]
    ),
    max_size=5,
).map(b"".join)


@given(REQUESTS, CUTS)
def test_only_whole_judged_requests_pass_through_a_tunnel(data: bytes, cuts: list[int]) -> None:
    """What passes is a prefix, ends before the first refused head, and refusals do not depend on cuts."""

    def passed(where: list[int]) -> tuple[bytes, str]:
        requests = TunnelRequests("a.example", 80)
        out = b""
        edges = sorted({min(cut, len(data)) for cut in where} | {0, len(data)})
        for start, end in itertools.pairwise(edges):
            try:
                out += requests.take(data[start:end])
            except HttpError as error:
                return out, error.code
        return out, ""

    bytewise, code = passed(list(range(len(data))))
    some, same = passed(cuts)
    assert same == code
    assert data.startswith(bytewise)
    assert bytewise.startswith(some)
    assert b"evil" not in bytewise
    if not code:
        assert some == bytewise
