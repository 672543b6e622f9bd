"""The messages that make a jail transparent, and what the kernel's replies to them mean.

That the kernel takes them as they are meant is tested in tests/integration/test_jail_redirect.py.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

import pytest

from exeat.sandbox import redirect

if TYPE_CHECKING:
    from collections.abc import Iterator

ACK, EXCLUSIVE = 0x4, 0x200


def messages(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(type, flags, sequence number) of each netlink message."""
    while data:
        length, kind, flags, number, _ = struct.unpack_from("=IHHII", data)
        assert length >= 16
        assert length % 4 == 0
        yield kind, flags, number
        data = data[length:]


def reply(code: int, number: int, kind: int = 2) -> bytes:
    return struct.pack("=IHHIIi", 36, kind, 0, number, 7, code) + bytes(16)


@pytest.mark.parametrize("exchange", redirect.exchanges(), ids=["routes", "table"])
def test_the_last_message_asks_for_an_answer(exchange: redirect.Exchange) -> None:
    asked = [number for _, flags, number in messages(exchange.data) if flags & ACK]
    assert asked[-1] == exchange.last


def test_the_table_is_one_batch() -> None:
    kinds = [kind for kind, _, _ in messages(redirect.exchanges()[1].data)]
    assert (kinds[0], kinds[-1]) == (16, 17)
    assert {kind >> 8 for kind in kinds[1:-1]} == {10}


def test_a_route_that_is_there_is_no_success() -> None:
    routes = [flags for kind, flags, _ in messages(redirect.exchanges()[0].data) if kind == 24]
    assert len(routes) == 2
    assert all(flags & EXCLUSIVE for flags in routes)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (reply(0, 9), 0),
        (reply(0, 8), None),
        (reply(-errno.EPERM, 3), errno.EPERM),
        (reply(-errno.ENOENT, 9), errno.ENOENT),
        (reply(0, 9, kind=3), None),
    ],
    ids=["done", "not the last", "an earlier one failed", "the last failed", "no answer"],
)
def test_replies(said: bytes, meant: int | None) -> None:
    assert redirect.failure(said, 9) == meant
