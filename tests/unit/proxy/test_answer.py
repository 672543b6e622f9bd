"""Where an answer ends, what of it reaches the client, and when the connection may be used again."""

from __future__ import annotations

import pytest

from exeat.proxy.answer import Answer
from exeat.proxy.fields import MAX_HEAD, HttpError


def answer(
    method: bytes = b"GET", *, upgrade: bool = False, persistent: bool = True, old: bool = False
) -> Answer:
    return Answer(method, upgrade=upgrade, persistent=persistent, old=old)


def passed(reader: Answer, data: bytes, step: int = 0) -> bytes:
    """What goes on of `data`, fed in pieces of `step` bytes (0: at once)."""
    step = step or len(data)
    return b"".join(bytes(reader.take(data[at : at + step])) for at in range(0, len(data), step))


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize("step", [0, 1, 7])
@pytest.mark.parametrize(
    ("method", "head", "body"),
    [
        (b"GET", OK + b"Content-Length: 3\r\n\r\n", b"abc"),
        (b"GET", OK + b"Content-Length: 0\r\n\r\n", b""),
        (b"GET", OK + b"Transfer-Encoding: chunked\r\n\r\n", b"3\r\nabc\r\n0\r\n\r\n"),
        (b"GET", OK + b"transfer-encoding: Chunked\r\n\r\n", b"3;a=b; c\r\nabc\r\n000\r\nX-Sum: 1\r\n\r\n"),
        (b"HEAD", OK + b"Content-Length: 3\r\n\r\n", b""),
        (b"HEAD", OK + b"Transfer-Encoding: chunked\r\n\r\n", b""),
        (b"HEAD", OK + b"\r\n", b""),
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"DELETE", b"HTTP/1.1 204\r\nContent-Length: 0\r\n\r\n", b""),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 512\r\n\r\n", b""),
        (b"GET", b"HTTP/1.1 404 \r\nContent-Length: 1\r\n\r\n", b"x"),
        (b"GET", b"HTTP/1.1 200 gr\xfc\xdf dich\r\nContent-Length: 1\r\n\r\n", b"x"),
    ],
)
def test_ends_exactly_and_leaves_the_connection_open(
    method: bytes, head: bytes, body: bytes, step: int
) -> None:
    reader = answer(method)
    assert passed(reader, head + body + b"HTTP/1.1 200 smuggled\r\n\r\n", step) == head + body
    assert (reader.done, reader.reusable, reader.growth) == (True, True, 0)


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize(
    "data",
    [
        OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        OK + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        OK + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        OK + b"Content-Length: 3, 3\r\n\r\nabc",
        OK + b"Content-Length: +3\r\n\r\nabc",
        OK + b"Content-Length: \r\n\r\nabc",
        OK + b"Content-Length: 99999999999999999999\r\n\r\nabc",
        OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        OK + b"X: y\r\n Content-Length: 3\r\n\r\nabc",
        OK + b"Content-Length : 3\r\n\r\nabc",
        OK + b"Connection: content-length\r\nContent-Length: 3\r\n\r\nabc",
        OK + b"Content-Length: 3\n\nabc",
        OK + b"X: a\0b\r\n\r\nabc",
        b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nabcde",
        b"HTTP/1.1 100 Continue\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * MAX_HEAD + b"\r\n\r\nabc",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 0200 OK\r\n\r\n",
        b"HTTP/1.1  200 OK\r\n\r\n",
        b"\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"ICY 200 OK\r\n\r\nmusic",
        b"hello",
    ],
)
def test_what_is_in_doubt_goes_on_as_it_came_and_ends_the_connection(data: bytes, step: int) -> None:
    reader = answer()
    got = passed(reader, data, step)
    whole = data.startswith(got) and (got == data or not reader.begun)
    assert whole, got
    assert passed(reader, b"\0" * MAX_HEAD) == data[len(got) :] + b"\0" * MAX_HEAD, "a NUL ends every head"
    assert (reader.done, reader.reusable, reader.opaque) == (False, False, True)


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize(
    "chunks",
    [
        b"3\nabc\n0\n\n",
        b"3 \r\nabc\r\n0\r\n\r\n",
        b"0x3\r\nabc\r\n0\r\n\r\n",
        b"+3\r\nabc\r\n0\r\n\r\n",
        b"3\r\nabcd\r\n0\r\n\r\n",
        b"10000000000000003\r\nabc\r\n0\r\n\r\n",
        b"3;a\nb\r\nabc\r\n0\r\n\r\n",
        b"0\r\nno colon\r\n\r\n",
        b"0\r\n folded: 1\r\n\r\n",
    ],
)
def test_a_broken_chunk_ends_the_connection(chunks: bytes, step: int) -> None:
    reader = answer()
    head = OK + b"Transfer-Encoding: chunked\r\n\r\n"
    assert passed(reader, head + chunks, step) == head + chunks
    assert (reader.opaque, reader.reusable) == (True, False)


def test_without_a_length_the_origin_ends_it() -> None:
    reader = answer()
    assert passed(reader, OK + b"Keep-Alive: 5\r\n\r\nabc") == OK + b"Connection: close\r\n\r\nabc"
    assert reader.opaque
    assert not reader.reusable


def test_fields_for_the_next_hop_stay_here() -> None:
    reader = answer()
    got = passed(
        reader,
        b"HTTP/1.0 200 OK\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nUpgrade: h2c\r\n"
        b"Proxy-Authenticate: Basic\r\nProxy-Status: exeat; error=x\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n"
        b"Content-Length: 1\r\n\r\nx",
    )
    assert got == OK + b"Set-Cookie: a\r\nSet-Cookie: b\r\nContent-Length: 1\r\n\r\nx"
    assert reader.reusable


def test_a_client_that_leaves_is_told_so() -> None:
    reader = answer(persistent=False)
    assert passed(reader, OK + b"Content-Length: 1\r\n\r\nx") == (
        OK + b"Content-Length: 1\r\nConnection: close\r\n\r\nx"
    )
    assert (reader.done, reader.reusable) == (True, False)


def test_growth_is_what_the_head_gained_or_lost() -> None:
    data = b"HTTP/1.1 100 Continue\r\nConnection: close\r\n\r\n" + OK + b"Content-Length: 1\r\n\r\nx"
    reader = answer()
    assert len(passed(reader, data)) == len(data) + reader.growth
    assert reader.growth == -len(b"Connection: close\r\n")


@pytest.mark.parametrize("step", [0, 1])
def test_interim_answers_go_before_the_final_one(step: int) -> None:
    data = (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
        + OK
        + b"Content-Length: 1\r\n\r\nx"
    )
    reader = answer()
    assert passed(reader, data, step) == data
    assert reader.reusable
    old = answer(old=True, persistent=False)
    assert passed(old, data, step) == OK + b"Content-Length: 1\r\nConnection: close\r\n\r\nx"


SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


@pytest.mark.parametrize("step", [0, 1])
def test_a_websocket_that_was_asked_for(step: int) -> None:
    reader = answer(upgrade=True)
    assert passed(reader, SWITCH + b"\x81\x02hi", step) == SWITCH + b"\x81\x02hi"
    assert (reader.switched, reader.opaque, reader.reusable) == (True, True, False)


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize(
    ("asked", "data"),
    [
        (False, SWITCH),
        (True, SWITCH.replace(b"websocket", b"h2c")),
        (True, SWITCH.replace(b"Connection: Upgrade\r\n", b"")),
        (True, SWITCH.replace(b"Upgrade: websocket\r\n", b"")),
        (True, b"HTTP/1.1 101\r\n\r\n"),
    ],
)
def test_a_change_of_protocol_nobody_asked_for(asked: bool, data: bytes, step: int) -> None:
    with pytest.raises(HttpError) as error:
        passed(answer(upgrade=asked), data, step)
    assert error.value.code == "http.switched"


def test_a_refused_upgrade_is_an_answer_like_others() -> None:
    reader = answer(upgrade=True)
    data = b"HTTP/1.1 400 No\r\nContent-Length: 2\r\n\r\nno"
    assert passed(reader, data) == data
    assert reader.reusable
