"""Which relay is in use, and what the compiled core does not let its caller do."""

from __future__ import annotations

import resource
import signal
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from exeat.ledger.reactor import EDGES, Reactor
from exeat.proxy import relays

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.mark.parametrize(
    ("built", "wanted", "found"),
    [(True, "auto", "compiled"), (True, "python", "python"), (True, "compiled", "compiled"),
     (False, "auto", "python"), (False, "python", "python")],
)  # fmt: skip
def test_the_configured_relay(monkeypatch: pytest.MonkeyPatch, built: bool, wanted: str, found: str) -> None:
    monkeypatch.setattr(relays, "BUILT", built)
    assert relays.in_use(wanted) == found


def test_what_was_not_built_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relays, "BUILT", False)
    with pytest.raises(relays.NotBuiltError, match="C compiler"):
        relays.poller("compiled")


def test_python_waits_with_epoll() -> None:
    reactor = Reactor(poller=relays.poller("python"))
    assert relays.Relays(reactor).kind == "python"
    reactor.close()


def test_the_compiled_relay_can_be_read_in_one_sitting() -> None:
    source = Path(relays.__file__).with_name("_relay.c").read_text(encoding="utf-8").splitlines()
    assert len(source) < 500
    assert max(map(len, source)) <= 110


if relays.BUILT:
    from exeat.proxy._relay import NEWS, Core, Tunnel
    from exeat.proxy.compiled import CorePoller

    Pair = tuple[socket.socket, socket.socket]

    @pytest.fixture
    def poller() -> Iterator[CorePoller]:
        made = CorePoller()
        yield made
        made.close()

    @pytest.fixture
    def pair(poller: CorePoller) -> Iterator[Pair]:
        """Two sockets that are registered."""
        made = socket.socketpair()
        for sock in made:
            sock.setblocking(False)
            poller.register(sock.fileno(), EDGES)
        yield made
        for sock in made:
            sock.close()

    def attached(core: Core, near: int, far: int, **more: int) -> Tunnel:
        tunnel, first = Tunnel(), bytes(more.get("first", 0))
        tunnel.attach(core, near, 0, far, 0, more.get("reserved", 0), 1 << 60, first)
        return tunnel

    def test_a_core_is_used_by_one_thread_at_a_time(poller: CorePoller) -> None:
        near, far = socket.socketpair()
        poller.register(near.fileno(), EDGES & ~4)
        poller.poll(0, 1)
        waiter = threading.Thread(target=poller.poll, args=(10, 1))
        waiter.start()
        refused = ""
        while not refused:  # until it waits
            try:
                poller.core.poll(0, 1)
            except RuntimeError as error:
                refused = str(error)
        far.send(b"x")
        waiter.join()
        assert refused == "poll is running"
        for sock in (near, far):
            sock.close()

    def test_only_open_descriptors_of_no_other_tunnel_are_attached(poller: CorePoller, pair: Pair) -> None:
        near, far = (sock.fileno() for sock in pair)
        for fds in ((near, near), (-1, far), (near, 1 << 20), (near, 1 << 30)):
            with pytest.raises((RuntimeError, OSError)):
                attached(poller.core, *fds)
        tunnel = attached(poller.core, near, far)
        with pytest.raises(RuntimeError, match="is a tunnel's"):
            attached(poller.core, near, far)
        assert poller.core.attached == 1
        tunnel.detach()
        assert poller.core.attached == 0
        with pytest.raises(RuntimeError, match="not attached"):
            tunnel.allow(1, 1)
        poller.close()
        with pytest.raises(RuntimeError, match="closed"):
            poller.poll(0, 1)

    def test_first_bytes_need_a_reservation(poller: CorePoller, pair: Pair) -> None:
        near, far = (sock.fileno() for sock in pair)
        with pytest.raises(RuntimeError, match="cannot be attached"):
            attached(poller.core, near, far, first=11, reserved=10)
        tunnel = attached(poller.core, near, far, first=10, reserved=10)
        assert (tunnel.taken, tunnel.books()) == (10, (0, 0, 10, 0))
        with pytest.raises(RuntimeError, match="cannot be attached"):
            tunnel.attach(poller.core, far, 0, near, 0, 1 << 40, 1 << 40, b"")
        tunnel.detach()
        assert tunnel.books() == (0, 0, 10, 0)

    def test_more_news_than_events_is_told_in_turn(poller: CorePoller) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8192)), hard))
        pairs = [socket.socketpair() for _ in range(1100)]
        tunnels = {}
        for near, far in pairs:
            tunnels[near.fileno()] = tunnel = Tunnel()
            tunnel.attach(poller.core, near.fileno(), 0, far.fileno(), 0, 1, 0, b"")  # ask_at: already
        told: set[int] = set()
        for _ in range(2):
            news = poller.poll(0, 512)
            assert all(events == NEWS for _, events in news)
            for fd, _ in news:
                tunnels[fd].detach()
                told.add(fd)
        assert told == tunnels.keys()
        assert poller.poll(0, 512) == []
        for each in pairs:
            for sock in each:
                sock.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    def test_a_signal_loses_no_tunnel(poller: CorePoller, pair: Pair) -> None:
        near, far = (sock.fileno() for sock in pair)
        poller.poll(0, 512)
        heard: list[int] = []
        before = signal.signal(signal.SIGALRM, lambda number, _: heard.append(number))
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        while not heard:
            assert poller.poll(10, 512) == []
        signal.signal(signal.SIGALRM, before)
        attached(poller.core, near, far).detach()

    def test_closing_a_core_lets_go_of_its_tunnels(poller: CorePoller, pair: Pair) -> None:
        tunnel = attached(poller.core, *(sock.fileno() for sock in pair))
        poller.close()
        with pytest.raises(RuntimeError, match="not attached"):
            tunnel.allow(1, 1)
