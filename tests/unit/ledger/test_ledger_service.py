"""The framed request server: who is heard, what is answered, and what a bad peer costs."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

from exeat.ledger.busy_service import BusyService
from exeat.ledger.ipc import Channel, IpcError, PeerClosedError, encode
from exeat.ledger.reactor import Reactor
from exeat.ledger.service import Reply, Service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Rig:
    """The service on a reactor that the test turns by hand."""

    def __init__(self, path: Path, uids: frozenset[int]) -> None:
        self.path, self.reactor = path, Reactor()
        self.held: list[tuple[dict[str, Any], Reply]] = []
        self.seen_fds: list[int] = []
        self.service = Service(self.reactor, path, uids, self.handle)
        self.channels: list[Channel] = []

    def handle(self, message: dict[str, Any], fds: list[int], reply: Reply) -> None:
        self.seen_fds = fds
        if message.get("verb") == "echo":
            reply({"said": message.get("text"), "sizes": [os.fstat(fd).st_size for fd in fds]}, fds)
        else:
            self.held.append((message, reply))

    def connect(self) -> Channel:
        channel = Channel.connect(self.path)
        channel.sock.setblocking(False)
        self.channels.append(channel)
        return channel

    def receive(self, channel: Channel) -> list[tuple[dict[str, Any], list[int]]]:
        for _ in range(100):
            self.reactor.turn(0.01)
            if got := channel.receive():
                return got
        raise AssertionError("no answer")

    def dropped(self, channel: Channel) -> bool:
        try:
            self.receive(channel)
        except (PeerClosedError, ConnectionError):
            return True
        return False

    def close(self) -> None:
        for channel in self.channels:
            channel.close()
        for _ in range(3):
            self.reactor.turn(0)  # the service hears of the ends
        self.service.close()
        self.reactor.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path / "s.sock", frozenset({os.getuid()}))
    yield made
    made.close()


def test_a_request_is_answered_with_its_id_and_descriptors(rig: Rig, tmp_path: Path) -> None:
    channel = rig.connect()
    (tmp_path / "f").write_bytes(b"abc")
    with (tmp_path / "f").open() as handle:
        channel.send({"id": 5, "verb": "echo", "text": "ü"}, [handle.fileno()])
    [(message, fds)] = rig.receive(channel)
    assert {**message, "fds": 1} == {"ok": True, "id": 5, "said": "ü", "sizes": [3], "fds": 1}
    assert os.read(fds[0], 3) == b"abc"
    os.close(fds[0])
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(rig.seen_fds[0])


def test_replies_may_come_late_and_out_of_order(rig: Rig) -> None:
    channel = rig.connect()
    for number in (1, 2):
        channel.send({"id": number, "verb": "hold"})
    while len(rig.held) < 2:
        rig.reactor.turn(0.01)
    for _, reply in reversed(rig.held):
        reply({})
    got: list[int] = []
    while len(got) < 2:
        got += [message["id"] for message, _ in rig.receive(channel)]
    assert got == [2, 1]


def test_a_late_reply_to_a_peer_that_left_is_dropped(rig: Rig) -> None:
    channel = rig.connect()
    channel.send({"id": 1, "verb": "hold"})
    while not rig.held:
        rig.reactor.turn(0.01)
    channel.close()
    rig.held[0][1]({})  # not yet noticed
    rig.reactor.turn(0.01)
    rig.held[0][1]({})  # noticed
    other = rig.connect()
    other.send({"id": 2, "verb": "echo"})
    assert rig.receive(other)[0][0]["id"] == 2


def test_a_reply_larger_than_the_sockets_buffer_arrives_whole(rig: Rig) -> None:
    channel = rig.connect()
    text = "x" * 3_000_000
    channel.sock.setblocking(True)
    data = encode({"id": 1, "verb": "echo", "text": text})
    channel.sock.setblocking(False)
    while data:
        try:
            data = data[channel.sock.send(data) :]
        except BlockingIOError:
            rig.reactor.turn(0.01)
    assert rig.receive(channel)[0][0]["said"] == text


@pytest.mark.parametrize("body", [{"verb": "echo"}, {"id": "1"}, {"id": None}, {"id": True}, {"id": 1.5}])
def test_a_request_without_an_id_ends_the_connection(rig: Rig, body: dict[str, Any]) -> None:
    channel = rig.connect()
    channel.send(body)
    assert rig.dropped(channel)


@pytest.mark.parametrize("data", [b"\0\0\0\x01x", b"\xff" * 8, b"\0\0\0\x02[]", b'\0\0\0\x09{"fds":1}'])
def test_broken_framing_ends_the_connection_and_no_other(rig: Rig, data: bytes) -> None:
    good, bad = rig.connect(), rig.connect()
    bad.sock.sendall(data)
    assert rig.dropped(bad)
    good.send({"id": 1, "verb": "echo"})
    assert rig.receive(good)[0][0]["ok"]


def test_a_stranger_is_not_heard(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "s.sock", frozenset({os.getuid() + 1}))
    channel = rig.connect()
    with contextlib.suppress(OSError, IpcError):
        channel.send({"id": 1, "verb": "echo"})
    assert rig.dropped(channel)
    assert rig.held == []
    rig.close()


def test_what_comes_behind_a_broken_request_is_not_heard(rig: Rig) -> None:
    channel = rig.connect()
    channel.sock.sendall(encode({"verb": "echo"}) + encode({"id": 1, "verb": "hold"}))
    assert rig.dropped(channel)
    assert rig.held == []


def test_a_peer_with_too_many_requests_is_told(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "s.sock", frozenset())
    rig.service.close()
    uids = frozenset({os.getuid()})
    rig.service = BusyService(rig.reactor, rig.path, uids, rig.handle, max_waiting=2, busy="full")
    channel = rig.connect()
    for number in (1, 2, 3):
        channel.send({"id": number, "verb": "hold"})
    [(message, _)] = rig.receive(channel)
    assert (message["id"], message["ok"], message["error"]) == (3, False, "full")
    rig.held[0][1]({})
    assert rig.receive(channel)[0][0] == {"ok": True, "id": 1}
    channel.send({"id": 4, "verb": "echo"})  # there is room for one again
    assert rig.receive(channel)[0][0]["ok"]
    other = rig.connect()
    other.send({"id": 5, "verb": "echo"})  # nor does it matter to anybody else
    assert rig.receive(other)[0][0]["ok"]
    rig.close()


def test_requests_a_byte_at_a_time(rig: Rig) -> None:
    channel = rig.connect()
    for byte in encode({"id": 3, "verb": "echo", "text": "t"}):
        channel.sock.send(bytes([byte]))
        rig.reactor.turn(0)
    assert rig.receive(channel)[0][0]["said"] == "t"


def test_after_close_nobody_connects(rig: Rig) -> None:
    rig.service.close()
    with socket.socket(socket.AF_UNIX) as sock, pytest.raises(ConnectionRefusedError):
        sock.connect(str(rig.path))
    rig.service = Service(rig.reactor, rig.path, frozenset(), rig.handle)
