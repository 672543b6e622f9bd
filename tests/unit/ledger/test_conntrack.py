"""Conntrack's book: real connections with a mark, living and ended; and the join with the ledger."""

from __future__ import annotations

import socket
import struct
import subprocess
from contextlib import closing

import pytest
from tests.support.proxy_world import HOME, in_namespace
from tests.support.running import wait_for

from exeat.ledger import conntrack
from exeat.ledger.conntrack import Conntrack, Tracked, tracked
from exeat.ledger.direct_books import DirectBooks
from exeat.ledger.records import Kind, Record

MARK, MASK = 0x45580000, 0xFFFF0000
RULES = """
table inet marks {
  chain out { type filter hook output priority 0
    tcp dport { 7776, 7777 } ct mark set 0x45580007
    tcp dport 7778 ct mark set 0x11
  }
}
"""
FLUSH = struct.pack("=IHHIIBBH", 20, 0x102, 0x1 | 0x4, 1, 0, 0, 0, 0)  # IPCTNL_MSG_CT_DELETE, of all


def packets(table: str, port: int) -> int:
    """Bytes of IP that nftables counted towards a port."""
    words = ["nft", "-j", "list", "counter", "inet", table, f"to{port}"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return int(done.stdout.partition('"bytes": ')[2].partition("}")[0])


@pytest.mark.root
def test_connections_with_a_mark_living_and_ended() -> None:
    def run() -> None:
        subprocess.run(["nft", "-f", "-"], input=RULES, text=True, check=True)
        counter = "add counter inet marks to7777; add rule inet marks out tcp dport 7777 counter name to7777"
        subprocess.run(["nft", counter], check=True)
        with closing(Conntrack()) as book:
            assert not conntrack.counts()
            talk(7776, 10)  # began while nobody counted
            conntrack.SWITCH.write_text("1")
            assert conntrack.counts()
            assert [each.out for each in book.living(MARK, MASK)] == [None]
            talk(7777, 5000)
            talk(7778, 10)
            first, second = sorted(book.living(MARK, MASK), key=lambda each: each.out or 0)
            assert (first.mark, first.out, second.mark) == (MARK | 7, None, MARK | 7)
            assert second.out == packets("marks", 7777)
            assert (second.into or 0) >= 60
            assert [each.mark for each in book.living(0x11, 0xFFFFFFFF)] == [0x11]
            assert list(book.ended()) == []
            with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as asks:
                asks.send(FLUSH)
            told: list[Tracked] = []
            wait_for(lambda: told.extend(book.ended()) or len(told) >= 3)
            assert second in told
            assert sorted(each.mark for each in told) == [0x11, MARK | 7, MARK | 7]
            assert book.living(MARK, MASK) == []

    in_namespace(run)


def talk(port: int, count: int) -> None:
    """A connection over which so many bytes go; it ends with a reset, after which no packet follows."""
    with socket.create_server((HOME, port)) as listener:
        sock = socket.create_connection((HOME, port), 10)
        accepted, _ = listener.accept()
    with accepted, sock:
        sock.sendall(b"x" * count)
        assert len(accepted.recv(count, socket.MSG_WAITALL)) == count
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize("cut", range(40))
def test_a_message_that_is_cut_short_is_no_count(cut: int) -> None:
    counters = struct.pack("=HHHH8s", 16, 0x8009, 12, 2, (77).to_bytes(8, "big"))
    body = bytes(4) + struct.pack("=HH4s", 8, 8, MARK.to_bytes(4, "big")) + counters
    whole = tracked(body)
    assert whole == Tracked(MARK, 77, None)
    found = tracked(body[:cut])
    assert found.mark in (0, MARK)
    assert found.out in ((None, 77) if cut >= len(body) else (None,))


FLOW = bytes(15) + b"\x01"


def direct(kind: Kind, number: int = 7, out: int = 0, into: int = 0) -> Record:
    return Record(kind, flow=FLOW, src=f"pinhole {number}", bytes_out=out, bytes_in=into)


@pytest.mark.parametrize(
    ("tracks", "refused", "unexplained"),
    [
        ([Tracked(MARK | 7, 60, 500), Tracked(MARK | 7, 40, 0)], (0, 0), 0),
        ([Tracked(MARK | 7, 130, 500)], (30, 0), 0),
        ([Tracked(MARK | 7, 100, 499)], (0, -1), 1),
        ([Tracked(MARK | 8, 100, 500)], (-100, -500), 600),
        ([Tracked(MARK | 7, 100, 500), Tracked(MARK | 7, None, None)], None, 0),
    ],
)
def test_direct_flows_beside_conntrack(
    tracks: list[Tracked], refused: tuple[int, int] | None, unexplained: int
) -> None:
    books = DirectBooks(lambda number: MARK | number)
    books.record(1, direct(Kind.OPEN))
    books.record(2, direct(Kind.CLOSE, out=100, into=500))
    books.record(3, Record(Kind.CLOSE, flow=FLOW, src="jail:j", bytes_out=9))
    for each in tracks[:1]:
        books.ended(each)
    (found,) = books.settle(tracks[1:])
    assert (found.seq, found.refused, found.unexplained) == (2, refused, unexplained)


def test_a_direct_flow_from_before_is_not_judged() -> None:
    books = DirectBooks(lambda number: MARK | number)
    books.record(2, direct(Kind.CLOSE, out=100, into=500))
    assert books.settle([]) == []
