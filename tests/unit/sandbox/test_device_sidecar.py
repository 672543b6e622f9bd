"""What a device's sidecar does with its device, its clients and its line, as a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from exeat.sandbox.device import Device, Mode, sidecar

if TYPE_CHECKING:
    from collections.abc import Iterator

AN_HOUR_S = 3600.0


class Sidecar:
    def __init__(self, mode: Mode = Mode.READ, seconds: float = AN_HOUR_S) -> None:
        self.line, its = socket.socketpair()
        theirs, mine = os.pipe() if mode is Mode.READ else os.pipe()[::-1]
        until_s = time.clock_gettime(time.CLOCK_BOOTTIME) + seconds
        command = sidecar(Device("mic", "/nowhere", mode), until_s)
        self.process = subprocess.Popen(command, stdin=theirs, stdout=its.fileno())
        self.device = open(mine, "wb" if mode is Mode.READ else "rb", buffering=0)  # noqa: SIM115
        os.close(theirs)
        its.close()

    def client(self) -> socket.socket:
        mine, its = socket.socketpair()
        mine.settimeout(30)
        with its:
            socket.send_fds(self.line, [b"c"], [its.fileno()])
        return mine

    def close(self) -> None:
        self.line.close()
        self.device.close()
        assert self.process.wait(30) == 0


@pytest.fixture
def reads() -> Iterator[Sidecar]:
    made = Sidecar()
    yield made
    made.close()


def test_the_latest_client_gets_what_is_read(reads: Sidecar) -> None:
    with reads.client() as first:
        reads.device.write(b"one")
        assert first.recv(3, socket.MSG_WAITALL) == b"one"
        with reads.client() as second:
            assert first.recv(1) == b""
            reads.device.write(b"two")
            assert second.recv(3, socket.MSG_WAITALL) == b"two"
    with reads.client() as third:
        reads.device.write(b"six")
        assert third.recv(3, socket.MSG_WAITALL) == b"six"


def test_a_client_that_does_not_read_keeps_nobody_from_ending_it(reads: Sidecar) -> None:
    os.set_blocking(reads.device.fileno(), False)
    with reads.client():
        for _ in range(64):
            if not reads.device.write(bytes(65536)):  # all buffers are full
                break
        reads.line.shutdown(socket.SHUT_WR)
        assert reads.process.wait(30) == 0


def test_what_is_said_is_written_and_the_end_of_one_client_is_not_that_of_all() -> None:
    made = Sidecar(Mode.WRITE)
    for word in (b"first", b"again"):
        with made.client() as client:
            client.sendall(word)
            assert made.device.read(5) == word
    made.close()


def test_it_ends_with_the_device_and_with_its_time(reads: Sidecar) -> None:
    with reads.client() as client:
        reads.device.write(b"x")
        assert client.recv(1) == b"x"
        reads.device.close()
        assert client.recv(1) == b""
    late = Sidecar(seconds=-1.0)
    assert late.process.wait(30) == 0
    late.close()
