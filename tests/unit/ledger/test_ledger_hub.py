"""The gateway's end of the hub: whom it believes, and what a bug in a handler may not do."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

from exeat.ledger import line
from exeat.ledger.hub import HubClient
from exeat.ledger.ipc import Channel, Message, encode, listen
from exeat.ledger.reactor import Reactor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from exeat.policy.model import Subject

SUBJECT = {"project": "p", "agent": "a"}


class Heard:
    """A handler that keeps what it is told; `on_jail` fails for the jail named `bad`."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.sockets: list[socket.socket] = []

    def on_snapshot(self, message: Message) -> None:
        if message.get("bad"):
            raise RuntimeError("a bug")
        self.heard.append(message["t"])

    def on_jail(
        self, jail: str, subject: Subject, sockets: dict[str, socket.socket], message: Message
    ) -> None:
        if jail == "bad":
            raise RuntimeError("a bug")
        self.heard.append(jail)
        self.sockets += sockets.values()

    def on_jail_removed(self, jail: str) -> None:
        self.heard.append(f"-{jail}")

    def on_cut(self, message: Message) -> None:
        self.heard.append(message["reason"])

    def on_other(self, message: Message) -> None:
        self.heard.append(message["t"])


class Bench:
    """A client on a loop that the test turns, and the listener it finds."""

    def __init__(self, path: Path) -> None:
        self.listener = listen(path)
        self.reactor = Reactor()
        self.handler = Heard()
        self.client = HubClient(self.reactor, path, "proxy", self.handler, os.getuid())
        self.channels: list[Channel] = []

    def until(self, check: Callable[[], Any]) -> None:
        for _ in range(3000):
            if check():
                return
            self.reactor.turn(0.01)
        raise AssertionError("it never happened")

    def accept(self) -> Channel:
        found: list[socket.socket] = []

        def accepted() -> bool:
            try:
                found.append(self.listener.accept()[0])
            except BlockingIOError:
                return False
            return True

        self.until(accepted)
        self.channels.append(Channel(found[0]))
        return self.channels[-1]

    def close(self) -> None:
        self.client.close()
        for channel in self.channels:
            channel.close()
        for sock in self.handler.sockets:
            sock.close()
        self.listener.close()
        self.reactor.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "hub.sock")
    yield made
    made.close()


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def add_jail(name: str) -> dict[str, Any]:
    return {"t": "jail.add", "jail": name, "subject": SUBJECT, "sockets": ["proxy4"]}


def test_a_bug_in_a_handler_costs_one_message(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    control = bench.accept()
    before = open_descriptors()
    left, right = socket.socketpair()
    with left, right:
        batch = [{"t": "snapshot", "bad": 1}, {"t": "jail.remove"}, {"t": "cut", "reason": "one"}]
        control.sock.send(b"".join(map(encode, batch)))
        for name in ("bad", "good"):
            control.send(add_jail(name), [left.fileno()])
        control.send({"t": "cut", "reason": "two"}, [left.fileno()])
        bench.until(lambda: "two" in bench.handler.heard)
        assert bench.handler.heard == ["one", "good", "two"]
        for sock in bench.handler.sockets:
            sock.close()
        assert open_descriptors() == before + 2
    assert "a bug" in capfd.readouterr().err
    assert bench.client.connected


def test_a_jail_that_could_not_be_served_is_asked_for_again(bench: Bench) -> None:
    control = bench.accept()
    left, right = socket.socketpair()
    with left, right:
        control.send(add_jail("bad"), [left.fileno()])
        control.send(add_jail("good"), [left.fileno()])
        bench.until(lambda: bench.handler.heard)
    control.close()
    bench.until(lambda: not bench.client.connected)
    again = bench.accept()
    bench.until(lambda: bench.client.connected)
    (hello, _), *_ = again.receive()
    assert hello["jails"] == ["good"]


def test_descriptors_that_do_not_fit_their_names_are_closed(bench: Bench) -> None:
    control = bench.accept()
    before = open_descriptors()
    left, right = socket.socketpair()
    with left, right:
        control.send({**add_jail("x"), "sockets": []}, [left.fileno()])
        control.send({"t": "end"})
        bench.until(lambda: bench.handler.heard)
    assert bench.handler.heard == ["end"]
    assert open_descriptors() == before


def test_somebody_elses_socket_is_not_believed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(line, "peer_uid", lambda _: 65534)
    bench.accept()
    bench.accept()  # it tries again, and again believes nothing
    assert not bench.client.connected
    assert capfd.readouterr().err.count("uid 65534") == 1


def test_a_control_that_does_not_read_is_given_up(bench: Bench) -> None:
    bench.accept()
    sent = 0
    while bench.client.send({"t": "flow", "fill": "x" * 100}):
        sent += 1
        assert sent < 10 * line.MAX_UNSENT
    assert sent >= line.MAX_UNSENT
    assert not bench.client.connected
    bench.accept()
    bench.until(lambda: bench.client.connected)


def test_closed_for_good(bench: Bench) -> None:
    control = bench.accept()
    bench.until(lambda: bench.client.connected)
    bench.client.close()
    assert not bench.client.send({"t": "flow"})
    control.close()
    bench.reactor.turn(0.15)
    bench.reactor.turn(0)
    with pytest.raises(BlockingIOError):
        bench.listener.accept()
