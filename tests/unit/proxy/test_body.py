"""Where a request's body ends, and that nothing after it gets through."""

from __future__ import annotations

import pytest

from exeat.proxy.body import BodyFramer
from exeat.proxy.fields import HttpError


def passed(length: int | None, data: bytes, step: int = 0) -> tuple[bytes, bool]:
    """What gets through of `data`, fed in pieces of `step` bytes (0: at once), and whether it is over."""
    framer = BodyFramer(length)
    out = b""
    for at in range(0, len(data), step or len(data) or 1):
        piece = data[at : at + (step or len(data))]
        out += piece[: framer.take(piece)]
    return out, framer.done


@pytest.mark.parametrize("step", [0, 1, 3])
@pytest.mark.parametrize(
    ("length", "data", "out"),
    [
        (0, b"GET http://evil.example/", b""),
        (3, b"abcGET http://evil.example/", b"abc"),
        (None, b"0\r\n\r\nGET /", b"0\r\n\r\n"),
        (None, b"3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\nGET /", b"3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n"),
        (None, b"0003\r\nabc\r\n000\r\n\r\nX", b"0003\r\nabc\r\n000\r\n\r\n"),
    ],
)
def test_ends_exactly(length: int | None, data: bytes, out: bytes, step: int) -> None:
    assert passed(length, data, step) == (out, True)


def test_is_not_over_in_the_middle() -> None:
    assert passed(5, b"abcd") == (b"abcd", False)
    assert passed(None, b"3\r\nabc\r\n0\r\n\r") == (b"3\r\nabc\r\n0\r\n\r", False)


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize(
    "data",
    [
        b"3\nabc\r\n0\r\n\r\n",
        b"3 \r\nabc\r\n",
        b" 3\r\nabc\r\n",
        b"+3\r\nabc\r\n",
        b"-1\r\n",
        b"0x3\r\nabc\r\n",
        b"3;ext=1\r\nabc\r\n",
        b"g\r\n",
        b"\r\n",
        b"123456789\r\n",
        b"3\r\nabcd\r\n0\r\n\r\n",
        b"3\r\nabc\n0\r\n\r\n",
        b"0\r\nTrailer: x\r\n\r\n",
        b"0\r\n\n",
    ],
)
def test_odd_chunks_are_refused(data: bytes, step: int) -> None:
    with pytest.raises(HttpError, match=r"http\.body"):
        passed(None, data, step)


def test_extensions_and_trailers_only_where_an_origin_answers() -> None:
    data = b"3;a=b\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\nHTTP/1.1"
    framer = BodyFramer(None, lenient=True)
    assert framer.take(data) == len(data) - len(b"HTTP/1.1")
    assert framer.done
    for bad in (data, data.replace(b";a=b", b"")):
        with pytest.raises(HttpError):
            BodyFramer(None).take(bad)
