"""kill -9 of a ledger under load, and what was acknowledged before."""

from __future__ import annotations

import signal
import socket
from typing import TYPE_CHECKING

from tests.support.ledgers import Daemon, deny, settings, start

from exeat.ledger import reader
from exeat.ledger.verify import verify
from exeat.ledger.wire import REPLY, Status, pack_request

if TYPE_CHECKING:
    from pathlib import Path

WINDOW = 32


def load(daemon: Daemon, answers: int, acked: dict[int, bytes], unique: int) -> int:
    """Keep WINDOW requests in flight; after `answers` answers kill the daemon and read what it had said."""
    sent: dict[int, bytes] = {}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(30)
        sock.connect(str(daemon.path))
        got = 0
        while True:
            try:
                while len(sent) < got + WINDOW and daemon.pid:
                    number = len(sent)
                    sent[number] = deny(unique + number)
                    sock.send(pack_request(number, [sent[number]]))
                reply = sock.recv(64)
            except (BrokenPipeError, ConnectionResetError):
                reply = b""
            if not reply:
                break
            number, status, seq = REPLY.unpack(reply)
            assert status == Status.DURABLE
            acked[seq] = sent[number]
            got += 1
            if got == answers:
                daemon.stop(signal.SIGKILL)
    return unique + len(sent)


def kill_again_and_again(base: Path, rounds: int) -> tuple[int, int]:
    """(records that were acknowledged, those of them that are not in the ledger afterwards)."""
    chosen = settings(base, segment_bytes=32768)
    acked: dict[int, bytes] = {}
    unique = 0
    for number in range(rounds):
        unique = load(start(chosen), 3 + number * 7 % 60, acked, unique)
    daemon = start(chosen)
    assert daemon.stop() == 0
    stored = dict(reader.read(chosen.directory))
    report = verify(chosen.directory)
    assert report.ok, report.problems
    assert report.kinds["boot"] == rounds + 1
    assert report.segments > 2 or rounds < 20
    return len(acked), sum(stored.get(seq) != data for seq, data in acked.items())
