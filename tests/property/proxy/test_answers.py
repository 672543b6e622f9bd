"""An answer reads the same however it is cut, and ends for the client where it ends for us.

The other reading of RFC 9112 is the standard library's `http.client`: it takes what we passed on,
followed by a mark, and must leave exactly the mark. It is kinder than we are, so wherever we call
an answer complete it must agree.
"""

from __future__ import annotations

import http.client
import io
import itertools
from typing import TYPE_CHECKING, cast

from hypothesis import given
from hypothesis import strategies as st

from exeat.proxy.answer import Answer
from exeat.proxy.fields import HttpError

if TYPE_CHECKING:
    import socket

MARK = b"HTTP/1.1 200 next\r\n\r\n"
PIECES = st.sampled_from(
    [
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.0 200 OK\r\n",
        b"HTTP/1.1 204 No Content\r\n",
        b"HTTP/1.1 304 Not Modified\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n",
        b"Content-Length: 3\r\n",
        b"Content-Length: 0\r\n",
        b"Content-Length: 7\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Connection: close\r\n",
        b"Connection: x-hop, upgrade\r\n",
        b"X-Hop: 1\r\n",
        b" folded\r\n",
        b"\r\n",
        b"\r\n",
        b"\n",
        b"abc",
        b"3\r\nabc\r\n",
        b"7;x=y\r\nabcdefg\r\n",
        b"0\r\n\r\n",
        b"0\r\nX-Sum: 1\r\n\r\n",
        b"\0",
    ]
)
ANSWERS = st.lists(st.one_of(PIECES, PIECES, PIECES, st.binary(max_size=4)), max_size=12).map(b"".join)
HEADS = st.sampled_from([b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 404 No\r\nX-A: b\r\n"])
CHUNKS = st.lists(st.binary(min_size=1, max_size=40), max_size=5)
CUTS = st.lists(st.integers(0, 300), max_size=8)
METHODS = st.sampled_from([b"GET", b"HEAD"])


class Fed(io.BytesIO):
    """A socket for http.client that holds these bytes, and its file, which it closes at the end."""

    def makefile(self, _mode: str) -> Fed:
        return self

    def close(self) -> None:
        """Stay open: what is left is the question."""


def left_by_a_client(method: bytes, data: bytes) -> bytes:
    fed = Fed(data)
    answer = http.client.HTTPResponse(cast("socket.socket", fed), method=method.decode())
    answer.begin()
    answer.read()
    return fed.read()


def run(answer: Answer, data: bytes, cuts: list[int]) -> tuple[bytes, bool, bool, str]:
    out = b""
    edges = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    for start, end in itertools.pairwise(edges):
        try:
            out += answer.take(data[start:end])
        except HttpError as error:
            return b"", False, False, error.code
    return out, answer.done, answer.opaque, ""


def new(method: bytes, *, upgrade: bool = False, persistent: bool = True) -> Answer:
    return Answer(method, upgrade=upgrade, persistent=persistent, old=False)


@given(ANSWERS, CUTS, METHODS, st.booleans())
def test_the_cut_does_not_matter(data: bytes, cuts: list[int], method: bytes, upgrade: bool) -> None:
    whole = run(new(method, upgrade=upgrade), data, [])
    assert run(new(method, upgrade=upgrade), data, cuts) == whole
    assert run(new(method, upgrade=upgrade), data, list(range(len(data)))) == whole


@given(ANSWERS, METHODS)
def test_a_complete_answer_is_complete_for_the_client(data: bytes, method: bytes) -> None:
    answer = new(method)
    out, done, _, _ = run(answer, data, [])
    if done:
        assert left_by_a_client(method, out + MARK) == MARK


@given(HEADS, CHUNKS, st.booleans(), METHODS, st.binary(max_size=20), CUTS)
def test_sound_answers_pass_whole_and_nothing_behind_them(
    head: bytes, parts: list[bytes], chunked: bool, method: bytes, after: bytes, cuts: list[int]
) -> None:
    if chunked:
        head += b"Transfer-Encoding: chunked\r\n\r\n"
        body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    else:
        body = b"".join(parts)
        head += b"Content-Length: %d\r\n\r\n" % len(body)
    if method == b"HEAD":
        body = b""
    answer = new(method)
    out, done, _, _ = run(answer, head + body + after, cuts)
    assert (out, done, answer.reusable) == (head + body, True, True)
    assert left_by_a_client(method, out + MARK) == MARK
