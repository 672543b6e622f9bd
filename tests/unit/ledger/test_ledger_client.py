"""The event-loop client against a real daemon that comes and goes."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest
from tests.support.ledgers import Daemon, deny, record, running, settings, start

from exeat.ledger import reader
from exeat.ledger.client import LedgerClient, LedgerError, append_blocking
from exeat.ledger.reactor import Reactor
from exeat.ledger.records import Kind, decode
from exeat.ledger.verify import verify
from exeat.ledger.wire import WireError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from exeat.ledger.daemon import LedgerSettings


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    loop = Reactor(on_error=_raise)
    yield loop
    loop.close()


def _raise(error: BaseException) -> None:
    raise error


def turn_until(reactor: Reactor, condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        reactor.turn(0.01)
    raise AssertionError("never happened")


def kinds(chosen: LedgerSettings) -> list[str]:
    return [decode(data).kind.label for _, data in reader.read(chosen.directory)]


def test_appends_are_answered_with_their_numbers(tmp_path: Path, reactor: Reactor) -> None:
    with running(tmp_path) as daemon:
        client = LedgerClient(reactor, daemon.path)
        assert not client.available
        got: list[int | None] = []
        for number in range(500):
            client.append([deny(number)], got.append)
        assert got == []  # never from inside append
        turn_until(reactor, lambda: len(got) == 500)
        assert got == list(range(1, 501))
        assert client.available
        client.close()


def test_without_a_ledger_an_append_fails_after_its_time(tmp_path: Path, reactor: Reactor) -> None:
    client = LedgerClient(reactor, tmp_path / "none", give_up_s=0.05)
    got: list[int | None] = []
    client.append([deny()], got.append)
    reactor.call_later(0.02, lambda: client.append([deny()], got.append))
    turn_until(reactor, lambda: len(got) == 2)
    assert got == [None, None]
    assert not client.available
    client.close()


def test_too_many_waiting_fail_at_once(tmp_path: Path, reactor: Reactor) -> None:
    client = LedgerClient(reactor, tmp_path / "none", max_queued=3, give_up_s=60)
    got: list[int | None] = []
    for _ in range(5):
        client.append([deny()], got.append)
    reactor.turn(0)
    assert got == [None, None]
    client.close()
    assert got == [None] * 5


def test_more_than_a_datagram_is_the_callers_mistake(tmp_path: Path, reactor: Reactor) -> None:
    client = LedgerClient(reactor, tmp_path / "none")
    for records in ([], [b""], [bytes(60000)] * 2, [bytes(65536)]):
        with pytest.raises(WireError):
            client.append(records, lambda _: None)
    client.close()


def test_a_refused_record_is_not_durable(
    tmp_path: Path, reactor: Reactor, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(tmp_path) as daemon:
        client = LedgerClient(reactor, daemon.path)
        got: list[int | None] = []
        client.append([record(Kind.CLOSE, 1)], got.append)
        client.append([deny()], got.append)
        turn_until(reactor, lambda: len(got) == 2)
        assert got == [None, 1]
        assert client.available
        assert "refused a record" in capsys.readouterr().err
        client.close()


class Restarts:
    """A daemon that the test kills and starts again under a live client."""

    def __init__(self, base: Path) -> None:
        self.settings = settings(base, grace_s=0.3)
        self.daemon: Daemon = start(self.settings)

    def again(self, number: int) -> None:
        self.daemon.stop(number)
        self.daemon = start(self.settings)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_flows_go_on_over_a_restart_of_the_ledger(tmp_path: Path, reactor: Reactor, number: int) -> None:
    ledger = Restarts(tmp_path)
    client = LedgerClient(reactor, ledger.daemon.path)
    live = {1, 2}
    resumed: list[int | None] = []

    def resume() -> None:
        for flow in sorted(live):
            client.append([record(Kind.RESUME, flow)], resumed.append)

    got: list[int | None] = []
    for flow in (1, 2, 3):
        client.append([record(Kind.OPEN, flow, reserved=100)], got.append)
    turn_until(reactor, lambda: len(got) == 3)
    client.on_reconnect = resume
    ledger.again(number)
    client.append([record(Kind.RESERVE, 1, reserved=200)], got.append)
    client.append([record(Kind.CLOSE, 2, bytes_out=9)], got.append)
    turn_until(reactor, lambda: len(got) == 5 and len(resumed) == 2)
    assert None not in got + resumed
    turn_until(reactor, lambda: kinds(ledger.settings)[-1] == "orphan")  # flow 3: nobody reclaimed it
    order = kinds(ledger.settings)[5:9]
    assert order == ["resume", "resume", "reserve", "close"]
    client.append([record(Kind.CLOSE, 1, bytes_out=150)], got.append)
    turn_until(reactor, lambda: len(got) == 6)
    client.close()
    ledger.daemon.stop()
    report = verify(ledger.settings.directory)
    assert report.ok
    assert (report.flows_closed, report.flows_orphaned, report.flows_open) == (2, 1, 0)


def test_what_was_not_answered_is_sent_again_and_stored_once(tmp_path: Path, reactor: Reactor) -> None:
    """The daemon is stopped (SIGSTOP), killed with requests in its queue, and started again."""
    ledger = Restarts(tmp_path)
    client = LedgerClient(reactor, ledger.daemon.path)
    got: list[int | None] = []
    client.append([record(Kind.OPEN, 1)], got.append)
    turn_until(reactor, lambda: got == [1])
    os.kill(ledger.daemon.pid, signal.SIGSTOP)
    client.append([record(Kind.CLOSE, 1, bytes_out=0)], got.append)
    client.append([record(Kind.OPEN, 2)], got.append)
    ledger.again(signal.SIGKILL)
    turn_until(reactor, lambda: len(got) == 3)
    assert None not in got
    client.append([record(Kind.CLOSE, 2)], got.append)
    turn_until(reactor, lambda: len(got) == 4)
    client.close()
    ledger.daemon.stop()
    assert sorted(kinds(ledger.settings)) == ["boot", "boot", "close", "close", "open", "open"]
    assert verify(ledger.settings.directory).ok


def test_append_blocking(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        assert append_blocking(daemon.path, [deny(), deny()]) == 1
        assert append_blocking(daemon.path, [deny()]) == 3
        with pytest.raises(LedgerError, match="refused"):
            append_blocking(daemon.path, [b"junk"])
    with pytest.raises(LedgerError, match="not reachable"):
        append_blocking(daemon.path, [deny()])
