"""The kernel's book of a socket whose peer reset it before it had acknowledged everything."""

from __future__ import annotations

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
