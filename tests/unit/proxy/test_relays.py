"""Which relay is in use, and what the compiled core does not let its caller do."""

from __future__ import annotations

import socket
import threading

import pytest

from exeat.ledger.reactor import EDGES, Reactor
from exeat.proxy import relays


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


if relays.BUILT:
    from exeat.proxy._relay import Core, Tunnel

    def test_a_core_is_used_by_one_thread_at_a_time() -> None:
        core, near, far = Core(), *socket.socketpair()
        core.register(near.fileno(), EDGES & ~4)
        core.poll(0, 1)
        waiter = threading.Thread(target=core.poll, args=(10, 1))
        waiter.start()
        refused = ""
        while not refused:  # until it waits
            try:
                core.modify(near.fileno(), EDGES & ~4)
            except RuntimeError as error:
                refused = str(error)
        far.send(b"x")
        waiter.join()
        assert refused == "poll is running"
        for sock in (near, far):
            sock.close()
        core.close()

    def test_only_registered_sockets_of_no_other_tunnel_are_attached() -> None:
        core, tunnel, pair = Core(), Tunnel(), socket.socketpair()
        near, far = (sock.fileno() for sock in pair)
        for fds in ((near, far), (-1, far), (1 << 20, far)):
            with pytest.raises(RuntimeError):
                tunnel.attach(core, fds[0], 0, fds[1], 0)
        for fd in (near, far):
            core.register(fd, EDGES)
        with pytest.raises(RuntimeError):
            tunnel.attach(core, near, 0, near, 0)
        tunnel.attach(core, near, 0, far, 0)
        for use in (lambda: Tunnel().attach(core, near, 0, far, 0), lambda: core.unregister(near)):
            with pytest.raises(RuntimeError):
                use()
        tunnel.detach()
        for late in (tunnel.queue, lambda: tunnel.allow(1, 1), lambda: tunnel.read(0)):
            with pytest.raises(RuntimeError, match="not attached"):
                late()
        core.close()
        with pytest.raises(RuntimeError, match="closed"):
            core.poll(0, 1)
        for sock in pair:
            sock.close()

    def test_ways_and_descriptors_are_checked() -> None:
        core, tunnel = Core(), Tunnel()
        for call in (
            lambda: tunnel.undelivered(2),
            lambda: tunnel.watched(-1, True),
            lambda: tunnel.send(2, b""),
        ):
            with pytest.raises(ValueError, match=r"is 0 or 1"):
                call()
        with pytest.raises(RuntimeError):
            tunnel.read(0)
        for fd in (-1, 1 << 30):
            with pytest.raises(OSError, match="Bad file"):
                core.register(fd, 1)
        core.close()

    def test_closing_a_core_lets_go_of_its_tunnels() -> None:
        core, tunnel, pair = Core(), Tunnel(), socket.socketpair()
        for sock in pair:
            core.register(sock.fileno(), EDGES)
        tunnel.attach(core, pair[0].fileno(), 1, pair[1].fileno(), 1)
        core.close()
        with pytest.raises(RuntimeError, match="not attached"):
            tunnel.queue()
        for sock in pair:
            sock.close()
