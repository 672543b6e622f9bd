"""The event-loop client against a real daemon that comes and goes."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from tests.support.ledgers import Daemon, deny, record, running, settings, start

from exeat.ledger import reader
from exeat.ledger.client import LedgerClient, LedgerError, append_blocking
from exeat.ledger.reactor import Reactor
from exeat.ledger.records import Kind, decode
from exeat.ledger.verify import verify
from exeat.ledger.wire import REPLY, Status, WireError, request_number, request_records

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


def test_every_append_is_answered(tmp_path: Path, reactor: Reactor) -> None:
    with running(tmp_path) as daemon:
        client = LedgerClient(reactor, daemon.path)
        assert not client.available
        got: list[bool] = []
        for number in range(500):
            client.append([deny(number)], got.append)
        assert got == []  # never from inside append
        turn_until(reactor, lambda: len(got) == 500)
        assert got == [True] * 500
        assert client.available
        client.close()


def test_without_a_ledger_an_append_fails_after_its_time(tmp_path: Path, reactor: Reactor) -> None:
    client = LedgerClient(reactor, tmp_path / "none", give_up_s=0.05)
    got: list[bool] = []
    client.append([deny()], got.append)
    reactor.call_later(0.02, lambda: client.append([deny()], got.append))
    turn_until(reactor, lambda: len(got) == 2)
    assert got == [False, False]
    assert not client.available
    client.close()


def test_too_many_waiting_fail_at_once(tmp_path: Path, reactor: Reactor) -> None:
    client = LedgerClient(reactor, tmp_path / "none", max_queued=3, give_up_s=60)
    got: list[bool] = []
    for _ in range(5):
        client.append([deny()], got.append)
    reactor.turn(0)
    assert got == [False, False]
    client.close()
    assert got == [False] * 5


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
        got: list[bool] = []
        client.append([record(Kind.CLOSE, 1)], got.append)
        client.append([deny()], got.append)
        turn_until(reactor, lambda: len(got) == 2)
        assert got == [False, True]
        assert client.available
        assert "refused a record" in capsys.readouterr().err
        client.close()


def test_the_appends_of_a_turn_are_one_request(tmp_path: Path, reactor: Reactor) -> None:
    path = tmp_path / "ledger.sock"
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        listener.bind(str(path))
        listener.listen()
        client = LedgerClient(reactor, path)
        turn_until(reactor, lambda: client.available)
        ledger = stack.enter_context(listener.accept()[0])
        got: list[str] = []
        client.append([b"record 1", b"record 2"], lambda durable: got.append(f"a {durable}"))
        client.append([b"record 3"], lambda durable: got.append(f"b {durable}"))
        client.append([b"record 4"], lambda durable: got.append(f"c {durable}"), alone=True)
        client.append([b"record 5"], lambda durable: got.append(f"d {durable}"))
        reactor.turn(0)
        ledger.setblocking(False)
        requests = [ledger.recv(65536) for _ in range(3)]
        with pytest.raises(BlockingIOError):
            ledger.recv(65536)
        assert [request_records(each) for each in requests] == [
            [b"record 1", b"record 2", b"record 3"],
            [b"record 4"],
            [b"record 5"],
        ]
        for number, status in ((0, Status.DURABLE), (1, Status.REFUSED), (2, Status.UNAVAILABLE)):
            ledger.send(REPLY.pack(request_number(requests[number]), status, 7))
        turn_until(reactor, lambda: len(got) == 4)
        assert got == ["a True", "b True", "c False", "d False"]
        client.close()


def test_a_refusal_hits_only_the_append_that_earned_it(tmp_path: Path, reactor: Reactor) -> None:
    with running(tmp_path) as daemon:
        client = LedgerClient(reactor, daemon.path)
        turn_until(reactor, lambda: client.available)
        got: dict[int, bool] = {}

        def append(name: int, *records: bytes) -> None:
            client.append(records, lambda durable: got.update({name: durable}))

        for flow in range(1, 9):
            bad = [record(Kind.RESERVE, 100 + flow, reserved=9)] if flow in (3, 8) else []
            append(flow, record(Kind.OPEN, flow, reserved=100), *bad)
        append(9, b"junk")
        turn_until(reactor, lambda: len(got) == 9)
        assert [name for name, durable in sorted(got.items()) if not durable] == [3, 8, 9]
        client.close()
    chosen = settings(tmp_path)
    opened = [decode(data) for _, data in reader.read(chosen.directory)]
    assert len({each.flow for each in opened if each.kind is Kind.OPEN}) == 6


def test_a_callback_that_raises_does_not_keep_the_answer_from_the_others(tmp_path: Path) -> None:
    failures: list[BaseException] = []
    reactor = Reactor(on_error=failures.append)
    with running(tmp_path) as daemon:
        client = LedgerClient(reactor, daemon.path)
        got: list[bool] = []

        def broken(durable: bool) -> None:
            raise RuntimeError("a bug")

        client.append([deny(1)], broken)
        client.append([deny(2)], got.append)
        turn_until(reactor, lambda: got == [True])
        assert [str(error) for error in failures] == ["a bug"]
        client.close()
    reactor.close()


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
    resumed: list[bool] = []

    def resume() -> None:
        for flow in sorted(live):
            client.append([record(Kind.RESUME, flow)], resumed.append, alone=True)

    got: list[bool] = []
    for flow in (1, 2, 3):
        client.append([record(Kind.OPEN, flow, reserved=100)], got.append)
    turn_until(reactor, lambda: len(got) == 3)
    client.on_reconnect = resume
    ledger.again(number)
    client.append([record(Kind.RESERVE, 1, reserved=200)], got.append)
    client.append([record(Kind.CLOSE, 2, bytes_out=9)], got.append)
    turn_until(reactor, lambda: len(got) == 5 and len(resumed) == 2)
    assert False not in got + resumed
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
    got: list[bool] = []
    client.append([record(Kind.OPEN, 1)], got.append)
    turn_until(reactor, lambda: got == [True])
    os.kill(ledger.daemon.pid, signal.SIGSTOP)
    client.append([record(Kind.CLOSE, 1, bytes_out=0)], got.append)
    client.append([record(Kind.OPEN, 2)], got.append)
    ledger.again(signal.SIGKILL)
    turn_until(reactor, lambda: len(got) == 3)
    assert False not in got
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
