"""Damaged requests at a real daemon: each is refused or stored as it stands, and nobody else notices."""

from __future__ import annotations

import random
import socket
from typing import TYPE_CHECKING

from tests.support.ledgers import deny, record, running

from exeat.ledger import fsck, reader, records, wire
from exeat.ledger.records import Kind
from exeat.ledger.wire import REPLY, Status, WireError, pack_request

if TYPE_CHECKING:
    from pathlib import Path

ROUNDS = 500


class Peer:
    """One who may write, and connects again when he is thrown out."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.stored: list[tuple[int, list[bytes]]] = []  # first number, records
        self._connect()

    def _connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(30)
        self.sock.connect(str(self._path))

    def say(self, datagram: bytes) -> Status | None:
        """The answer; None if there was none but the end of the connection."""
        self.sock.send(datagram)
        try:
            reply = self.sock.recv(64)
        except ConnectionResetError:
            reply = b""
        if not reply:
            self.sock.close()
            self._connect()
            return None
        number, status, seq = REPLY.unpack(reply)
        assert number == wire.request_number(datagram)
        if status == Status.DURABLE:
            self.stored.append((seq, wire.request_records(datagram)))
        return Status(status)


def request(chance: random.Random, number: int) -> bytes:
    flow = chance.randrange(20)  # some are open already, some settled
    parts = [
        record(Kind.OPEN, flow, job="j", src="127.0.0.1:1"),
        record(Kind.RESERVE, flow, reserved=70000),
        record(Kind.CLOSE, flow, bytes_out=chance.randrange(70000), close_reason="eof"),
        deny(number),
    ]
    return pack_request(number, chance.sample(parts, chance.randrange(1, 5)))


def damaged(chance: random.Random, datagram: bytes) -> bytes:
    data = bytearray(datagram)
    for _ in range(chance.randrange(3)):
        data[chance.randrange(4, len(data))] = chance.choice([0, 1, 0x18, 0x40, 0x5F, 0x78, 0x98, 0xFF])
    match chance.randrange(6):
        case 0:
            del data[chance.randrange(1, len(data)) :]
        case 1:
            data += chance.randbytes(chance.randrange(1, 40))
        case 2:
            at = chance.randrange(4, len(data))
            data[at:at] = data[4 : chance.randrange(4, len(data))]
    return bytes(data)


def test_damaged_requests(tmp_path: Path) -> None:
    chance = random.Random(7)
    answers: list[Status | None] = []
    with running(tmp_path, segment_bytes=32768) as daemon:
        bad, good = Peer(daemon.path), Peer(daemon.path)
        for number in range(ROUNDS):
            answers.append(bad.say(damaged(chance, request(chance, number))))
            assert good.say(pack_request(number, [deny(number)])) is Status.DURABLE
        bad.sock.close()
        good.sock.close()
    stored = dict(reader.read(daemon.settings.directory))
    for seq, parts in good.stored:
        assert stored[seq] == parts[0]
    for seq, parts in bad.stored:  # a repeated open or close is answered with the first one's number
        kept = records.decode(stored[seq])
        assert (kept.kind, kept.flow) in {(told.kind, told.flow) for told in map(records.decode, parts)}
    assert {None, Status.DURABLE, Status.REFUSED} <= set(answers)
    assert fsck.check(daemon.settings.directory, repair=False) == []


def test_a_request_is_what_its_lengths_say() -> None:
    """Each prefix of a request, and each request with a byte more, is refused or a shorter one."""
    parts = [b"a", b"bc" * 300, b"d"]
    datagram = pack_request(9, parts)
    ends = {4 + sum(2 + len(part) for part in parts[:count]): parts[:count] for count in (1, 2, 3)}
    for end in range(len(datagram) + 1):
        try:
            assert wire.request_records(datagram[:end]) == ends.get(end)
        except WireError:
            assert end not in ends
    for extra in range(256):
        try:
            wire.request_records(datagram + bytes([extra]))
        except WireError:
            continue
        raise AssertionError("a byte too many was let pass")
