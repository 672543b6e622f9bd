"""The HTTP door remembers what a CONNECT head means, and nothing that it must not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from exeat.proxy import doors
from exeat.proxy.doors import DoorError, HttpDoor

if TYPE_CHECKING:
    from collections.abc import Iterator

CONNECT = b"CONNECT www.example.org:443 HTTP/1.1\r\nHost: www.example.org:443\r\n\r\n"


@pytest.fixture(autouse=True)
def known() -> Iterator[dict[bytes, doors.Arrival]]:
    HttpDoor._known.clear()
    yield HttpDoor._known
    HttpDoor._known.clear()


def test_the_same_bytes_are_the_same_arrival(known: dict[bytes, doors.Arrival]) -> None:
    _, first = HttpDoor().feed(CONNECT)
    assert first is not None
    assert (first.host, first.port, first.consumed) == ("www.example.org", 443, len(CONNECT))
    assert list(known) == [CONNECT]
    assert HttpDoor().feed(CONNECT) == (b"", first)


@pytest.mark.parametrize(
    "head",
    [
        CONNECT + b"early",  # what follows belongs to one flow
        CONNECT[:-2] + b"Proxy-Authorization: Basic c2VjcmV0\r\n\r\n",
        CONNECT[:-2] + b"AUTHORIZATION: Bearer secret\r\n\r\n",
        CONNECT[:-2] + b"X-Long: " + b"x" * doors.MAX_KNOWN_HEAD + b"\r\n\r\n",
        b"GET http://www.example.org/ HTTP/1.1\r\nHost: www.example.org\r\n\r\n",
    ],
)
def test_what_is_not_remembered(head: bytes, known: dict[bytes, doors.Arrival]) -> None:
    _, arrival = HttpDoor().feed(head)
    assert arrival is not None
    assert not known


def test_a_head_that_comes_in_pieces_is_parsed(known: dict[bytes, doors.Arrival]) -> None:
    HttpDoor().feed(CONNECT)
    for cut in range(1, len(CONNECT)):
        door = HttpDoor()
        assert door.feed(CONNECT[:cut]) == (b"", None)
        _, arrival = door.feed(CONNECT[cut:])
        assert arrival == known[CONNECT]
    door = HttpDoor()
    door.feed(CONNECT[:8])
    with pytest.raises(DoorError):
        door.feed(CONNECT)  # a whole head, but in the middle of another
    assert list(known) == [CONNECT]


def test_a_refused_head_is_refused_again(known: dict[bytes, doors.Arrival]) -> None:
    for _ in range(2):
        with pytest.raises(DoorError):
            HttpDoor().feed(CONNECT.replace(b"443 ", b"0443 "))
    assert not known


def test_the_memory_is_bounded(known: dict[bytes, doors.Arrival]) -> None:
    for number in range(doors.MAX_KNOWN + 5):
        HttpDoor().feed(b"CONNECT h%d.example.org:443 HTTP/1.1\r\n\r\n" % number)
        assert len(known) <= doors.MAX_KNOWN
