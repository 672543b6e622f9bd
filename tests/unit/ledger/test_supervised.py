"""Signs of life on a real notify socket: from our loop, from asyncio's, and from a whole process."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from exeat.ledger.reactor import Reactor
from exeat.ledger.supervised import beat, interval, notify_ready

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATIENCE_S = 30.0


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """What stands in for systemd: the socket of NOTIFY_SOCKET, with a watchdog of 20 ms."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(PATIENCE_S)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "20000")
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        yield sock


def test_a_loop_that_turns_says_so(told: socket.socket) -> None:
    reactor = Reactor()
    beat(reactor)
    for _ in range(3):
        reactor.turn(1.0)
    assert [told.recv(64) for _ in range(3)] == [b"WATCHDOG=1"] * 3
    reactor.close()


def test_a_loop_that_is_stuck_says_nothing(told: socket.socket) -> None:
    reactor = Reactor()
    beat(reactor)
    assert told.recv(64) == b"WATCHDOG=1"
    told.setblocking(False)
    with pytest.raises(BlockingIOError):  # nobody turned it
        told.recv(64)
    reactor.close()


def test_asyncio_says_the_same(told: socket.socket) -> None:
    async def three() -> list[bytes]:
        loop = asyncio.get_running_loop()
        told.setblocking(False)
        beat(loop)
        return [await asyncio.wait_for(loop.sock_recv(told, 64), PATIENCE_S) for _ in range(3)]

    assert asyncio.run(three()) == [b"WATCHDOG=1"] * 3


def test_an_abstract_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("")  # the kernel chooses one (unix(7), autobind)
        sock.settimeout(PATIENCE_S)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + sock.getsockname()[1:].decode())
        notify_ready()
        assert sock.recv(64) == b"READY=1"


@pytest.mark.parametrize(
    ("allowed", "who", "seconds"),
    [
        ("60000000", "", 30.0),
        ("60000000", "own", 30.0),
        ("60000000", "1", None),  # meant for another process (sd_watchdog_enabled(3))
        ("0", "", None),
        ("", "", None),
        ("-5", "", None),
        ("soon", "", None),
    ],
)
def test_how_often(monkeypatch: pytest.MonkeyPatch, allowed: str, who: str, seconds: float | None) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", allowed)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if who == "own" else who)
    assert interval() == seconds


def test_nothing_is_said_where_nobody_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC"):
        monkeypatch.delenv(name, raising=False)
    reactor = Reactor()
    beat(reactor)
    notify_ready()
    reactor.close()


def test_a_process_beats_until_it_is_stopped(told: socket.socket, tmp_path: Path) -> None:
    """The ledger as its unit starts it, stopped in its tracks by SIGSTOP: silence, then life again."""
    config = tmp_path / "exeat.toml"
    config.write_text("")
    folders = ["--config", str(config), "--state-dir", str(tmp_path), "--run-dir", str(tmp_path)]
    (tmp_path / "ledger").mkdir()
    process = subprocess.Popen([sys.executable, "-I", "-m", "exeat", *folders, "serve", "ledger"])
    try:
        said = [told.recv(64) for _ in range(4)]
        assert said.count(b"READY=1") == 1
        assert set(said) == {b"READY=1", b"WATCHDOG=1"}
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)  # it has stopped, and says no more than is in the socket
        while select.select([told], [], [], 0)[0]:
            assert told.recv(64) == b"WATCHDOG=1"
        process.send_signal(signal.SIGCONT)
        assert told.recv(64) == b"WATCHDOG=1"
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()
