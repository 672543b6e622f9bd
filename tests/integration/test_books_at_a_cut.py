"""A flow that ends before an end of stream was read: TCP counts that end as one byte, the books must not."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import struct
import time
from typing import TYPE_CHECKING

import pytest
from tests.support.proxy_world import HOME, Origin, World, in_namespace

from exeat.ledger.reconcile import differences
from exeat.proxy.relays import BUILT, COMPILED, PYTHON

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from exeat.ledger.records import Record

pytestmark = pytest.mark.root

POLICY = """
egress: v1
project: p
posture: allowlist
allow:
  - {id: web, to: www.example.org, ports: 7000}
"""
FIRST = 65536  # bytes that the first reservation lets pass
SIOCOUTQ = 0x5411
both_relays = pytest.mark.parametrize("relay", (PYTHON, COMPILED) if BUILT else (PYTHON,))


def closed(tmp_path: Path, relay: str, body: Callable[[World], None]) -> Record:
    """The `close` of the one flow that `body` makes and ends."""
    found: list[Record] = []

    def run() -> None:
        with World(tmp_path, POLICY, relay=relay) as made:
            made.guard.names = {"www.example.org": [HOME]}
            body(made)
            found.extend(made.closes())

    in_namespace(run)
    return found[0]


def wait_acknowledged(sock: socket.socket) -> None:
    """Until the other kernel has all that was sent, the end of the stream too."""
    deadline = time.monotonic() + 30
    while struct.unpack("i", fcntl.ioctl(sock, SIOCOUTQ, bytes(4)))[0]:
        assert time.monotonic() < deadline
        select.select([], [], [], 0.01)


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@pytest.mark.parametrize("end", ["reset", "kill"])
@both_relays
def test_the_clients_end_behind_a_reservation_that_does_not_come(
    tmp_path: Path, relay: str, end: str
) -> None:
    def body(w: World) -> None:
        def serve(sock: socket.socket) -> None:
            sock.sendall(b"d")
            origin.record(sock)

        origin = Origin(7000, serve)
        sock = w.tunnel("www.example.org", 7000)
        assert sock.recv(1) == b"d"  # the flow is open: what follows is its reservation
        os.kill(w.ledger.pid, signal.SIGSTOP)
        try:
            sock.sendall(b"x" * (FIRST + 100))
            sock.shutdown(socket.SHUT_WR)
            wait_acknowledged(sock)
            if end == "reset":
                reset(sock)
            else:
                w.control.send({"t": "cut", "reason": "kill", "all": True})
            origin.finish()
        finally:
            os.kill(w.ledger.pid, signal.SIGCONT)

    record = closed(tmp_path, relay, body)
    assert record.close_reason == end
    assert differences(record) == {}
    assert (record.bytes_out, record.client_kernel_out) == (FIRST - 1, FIRST - 1)


@both_relays
def test_the_origins_end_in_the_moment_of_the_clients_reset(tmp_path: Path, relay: str) -> None:
    def body(w: World) -> None:
        accepted: list[socket.socket] = []

        def serve(sock: socket.socket) -> None:
            sock.sendall(b"d" * 64)
            accepted.append(sock.dup())

        Origin(7000, serve)
        sock = w.tunnel("www.example.org", 7000)
        assert len(sock.recv(64, socket.MSG_WAITALL)) == 64
        os.kill(w.proxy.pid, signal.SIGSTOP)
        try:
            reset(sock)
            (at_origin,) = accepted
            at_origin.shutdown(socket.SHUT_WR)
            wait_acknowledged(at_origin)
        finally:
            os.kill(w.proxy.pid, signal.SIGCONT)
        at_origin.close()

    record = closed(tmp_path, relay, body)
    assert record.close_reason == "reset"
    assert differences(record) == {}
    assert (record.bytes_in, record.kernel_in) == (64, 64)
