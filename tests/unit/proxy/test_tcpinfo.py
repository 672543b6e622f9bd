"""The kernel's book of a socket whose peer reset it before it had acknowledged everything."""

from __future__ import annotations

import select
import socket

import pytest
from tests.unit.proxy.test_relay import tcp_pair

from exeat.proxy.tcpinfo import KernelCount, kernel_count


@pytest.mark.parametrize("shut", [False, True])
def test_what_flew_when_a_reset_came_is_still_counted(shut: bool) -> None:
    peer, ours = tcp_pair()
    with peer, ours:
        peer.shutdown(socket.SHUT_WR)
        assert ours.recv(1) == b""
        # Without acknowledging: else the test would be one of an orderly end.
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
        ours.sendall(b"x" * 39)
        if shut:
            ours.shutdown(socket.SHUT_WR)
        peer.close()  # with unread bytes: a reset
        with pytest.raises(BrokenPipeError):
            ours.send(b"y")
        found = kernel_count(ours, connected=False, fin_sent=shut, fin_received=True)
    assert found is not None
    assert (found.sent, found.received) == (39, 0)
    assert found.without(39, 0).sent == 0


def test_no_count_is_below_nothing() -> None:
    """A record holds no negative number, and a flow without its close record would stay open."""
    assert KernelCount(10, 5, 3).without(39, 60) == KernelCount(0, 0, 3)


@pytest.mark.parametrize("taken", [False, True], ids=["error not taken", "error taken"])
@pytest.mark.parametrize("ended", [False, True], ids=["no end", "end of stream"])
@pytest.mark.parametrize("unread", [0, 7])
def test_an_end_of_stream_that_nobody_read_is_no_payload_after_a_reset(
    unread: int, ended: bool, taken: bool
) -> None:
    """The connection is closed by then: its state does not tell any more whether a FIN came."""
    peer, ours = tcp_pair()
    with peer, ours:
        ours.sendall(b"never read")
        peer.sendall(b"p" * (20 + unread))
        assert ours.recv(20, socket.MSG_WAITALL) == b"p" * 20
        if ended:
            peer.shutdown(socket.SHUT_WR)
        peer.close()  # with unread bytes: a reset
        wait_closed(ours)
        if taken:
            assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
        found = kernel_count(ours, connected=False, fin_sent=False, fin_received=False)
    assert found is not None
    assert found.received == 20


@pytest.mark.parametrize("unread", [0, 7])
def test_an_end_of_stream_that_nobody_read_is_no_payload_while_we_go_on(unread: int) -> None:
    peer, ours = tcp_pair()
    with peer, ours:
        peer.sendall(b"p" * (20 + unread))
        peer.shutdown(socket.SHUT_WR)
        assert ours.recv(20, socket.MSG_WAITALL) == b"p" * 20
        before = kernel_count(ours, connected=False, fin_sent=False, fin_received=False)
        ours.shutdown(socket.SHUT_WR)
        assert peer.recv(1) == b""
        wait_closed(ours)
        after = kernel_count(ours, connected=False, fin_sent=True, fin_received=False)
    assert before is not None
    assert after is not None
    assert (before.received, after.received, after.sent) == (20, 20, 0)


def wait_closed(sock: socket.socket) -> None:
    """Until the kernel has the connection in no state any more."""
    poller = select.poll()
    poller.register(sock, 0)  # EPOLLHUP and EPOLLERR are always told
    assert poller.poll(10_000)
