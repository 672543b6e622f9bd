"""A decision that stops holding while the ledger is being told of the flow: nothing passes by it."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import socket
import threading
from typing import TYPE_CHECKING, Final

import pytest
from tests.integration.test_udp_associate import Client, Echo
from tests.support.proxy_world import HOME, Origin, World, client_hello, in_namespace, read_all

from exeat.policy.leases import Lease
from exeat.policy.scopes import parse_ports, parse_scope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from exeat.ledger.records import Record

pytestmark = pytest.mark.root

PORT: Final = 7000
TRIES: Final = 1000
BEFORE = """
egress: v1
project: p
posture: allowlist
allow:
  - {id: streams, to: 203.0.113.1, ports: 7000}
  - {id: datagrams, to: 203.0.113.1, ports: 7000, proto: udp}
"""
AFTER = """
egress: v1
project: p
posture: allowlist
allow:
  - {id: other, to: new.example.org, ports: 7000}
"""
LEASE = Lease(
    "p/a/1",
    "p",
    (parse_scope("203.0.113.1"),),
    ports=parse_ports(["7000"]),
    protocols=("tcp", "udp"),
    exp_ms=4_000_000_000_000,
)


def status(made: World) -> int:
    """What the proxy says of a name that exists nowhere: 403 if the policy says no, else 502."""
    code, _, sock = made.ask(b"CONNECT new.example.org:7000 HTTP/1.1\r\n\r\n")
    sock.close()
    return code


@contextlib.contextmanager
def slow_ledger(made: World) -> Iterator[None]:
    made.ledger.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        made.ledger.send_signal(signal.SIGCONT)


def in_force(made: World) -> None:
    assert any(status(made) == 502 for _ in range(TRIES)), "the new policy never came"


def by_datagram(made: World, change: Callable[[], None]) -> Record:
    with Echo() as echo, Client(made) as client:
        with slow_ledger(made):
            client.raw(b"\0\0\0\x01" + socket.inet_aton(HOME) + PORT.to_bytes(2, "big") + b"hello")
            assert status(made) == 403  # the loop has come round: the datagram was looked at
            change()
            in_force(made)
        [close] = made.closes()
        assert echo.heard == []
    return close


def by_stream(made: World, change: Callable[[], None]) -> Record:
    origin = Origin(PORT, lambda sock: origin.record(sock))
    with slow_ledger(made):
        tunnel = made.tunnel(HOME, PORT)
        tunnel.sendall(b"hello")
        change()
        in_force(made)
    [close] = made.closes()
    assert origin.received == b""
    return close


@pytest.mark.parametrize(("name", "reason"), [("www.example.org", ""), ("evil.example.net", "sni.mismatch")])
def test_a_lease_for_one_connection_is_not_used_up_by_its_own_hello(
    tmp_path: Path, name: str, reason: str
) -> None:
    """Off the TLS ports the server may speak first, so the hello comes when the use is paid for."""
    once = dataclasses.replace(LEASE, to=(parse_scope("www.example.org"),), max_uses=1)
    first = client_hello(name)

    def run() -> None:
        with World(tmp_path, BEFORE) as made:
            made.guard.names = {"www.example.org": [HOME]}
            made.policy(AFTER, leases=[once])
            in_force(made)
            origin = Origin(PORT, lambda sock: origin.record(sock))
            tunnel = made.tunnel("www.example.org", PORT)
            tunnel.sendall(first)
            tunnel.shutdown(socket.SHUT_WR)
            read_all(tunnel)
            [close] = made.closes()
            origin.finish()
            assert close.close_reason == (reason or "eof")
            assert bytes(origin.received) == (b"" if reason else first)
            if not reason:
                assert (close.lease_id, close.reason_code) == ("p/a/1", "lease.active")

    in_namespace(run)


def test_a_cut_takes_back_what_only_the_kernel_has(tmp_path: Path) -> None:
    """Both sides have ended, and the server is slow: its bytes are not delivered after the kill switch."""
    data, got, cut = b"x" * 256 * 1024, bytearray(), threading.Event()

    def slow(sock: socket.socket) -> None:
        sock.shutdown(socket.SHUT_WR)
        assert cut.wait(30)
        with contextlib.suppress(ConnectionResetError):
            while piece := sock.recv(65536):
                got.extend(piece)

    def run() -> None:
        with World(tmp_path, BEFORE) as made:
            origin = Origin(PORT, slow)
            origin.narrow(4096)
            tunnel = made.tunnel(HOME, PORT)
            tunnel.sendall(data)
            tunnel.shutdown(socket.SHUT_WR)
            assert tunnel.recv(1) == b""
            for _ in range(10):
                assert status(made) == 403  # by now all of it has been passed on to the kernel
            made.control.send({"t": "cut", "all": True, "reason": "kill"})
            [close] = made.closes()
            cut.set()
            origin.finish()
            assert close.close_reason == "kill"
            assert close.bytes_out == len(data), "it was still being relayed: the test proves nothing"
            assert len(got) < len(data)

    in_namespace(run)


@pytest.mark.parametrize("by", [by_datagram, by_stream])
def test_a_rule_that_is_gone_when_the_ledger_answers(
    tmp_path: Path, by: Callable[[World, Callable[[], None]], Record]
) -> None:
    def run() -> None:
        with World(tmp_path, BEFORE) as made:
            close = by(made, lambda: made.policy(AFTER) and None)
            assert (close.close_reason, close.bytes_out) == ("policy.changed", 0)

    in_namespace(run)


@pytest.mark.parametrize("by", [by_datagram, by_stream])
def test_a_lease_that_is_revoked_when_the_ledger_answers(
    tmp_path: Path, by: Callable[[World, Callable[[], None]], Record]
) -> None:
    def run() -> None:
        with World(tmp_path, AFTER.replace("new.", "old.")) as made:
            made.policy(AFTER.replace("new.", "old."), leases=[LEASE])
            made.control.wait(lambda message: message["t"] == "hello")
            close = by(made, lambda: made.policy(AFTER, leases=[LEASE], revoked=["p/a/1"]) and None)
            assert (close.close_reason, close.bytes_out) == ("lease.revoked", 0)
            assert close.lease_id == "p/a/1"

    in_namespace(run)
