"""The ledger against what the kernel tells of connections that ended: real sockets, and every difference."""

from __future__ import annotations

import select
import socket
import struct
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.ledgers import flow_id, record
from tests.support.proxy_world import in_namespace

from exeat.appliance import ledger_watch
from exeat.appliance.cli import main
from exeat.ledger.books import Books
from exeat.ledger.records import Kind, Record
from exeat.ledger.sock_ends import End, SocketEnds, parse
from exeat.ledger.store import Store

if TYPE_CHECKING:
    from pathlib import Path

    from exeat.ledger.reader import Follower

OUT, INTO = 5000, 7000


def end(cookie: int, acked: int, received: int) -> End:
    return End(cookie, 0, 40000, bytes(16), 443, acked, received, 5, 5)


def flow(
    books: Books, number: int, out: int, into: int, *, detail: str = "", told: int | None = None
) -> None:
    kernel = {"kernel_out": out if told is None else told, "kernel_in": into, "segs_out": 3}
    books.record(2 * number, Record(Kind.OPEN, flow=flow_id(number), cookie=number))
    close = Record(Kind.CLOSE, flow=flow_id(number), bytes_out=out, bytes_in=into, detail=detail, **kernel)
    books.record(2 * number + 1, close)


@pytest.mark.parametrize("first", ["record", "end"])
@pytest.mark.parametrize(
    ("acked", "received", "detail", "said"),
    [
        (OUT + 2, INTO + 1, "", "exact"),  # both FINs
        (OUT + 1, INTO, "", "exact"),  # none
        (OUT - 99, INTO, "unacked 100", "cut"),
        (OUT + 1, INTO + 500, "", "cut"),  # arrived and not read
        (0, 0, "", "blank"),
        (OUT - 99, INTO, "", "different"),  # the ledger says more than was acknowledged
        (OUT - 199, INTO, "unacked 100", "different"),
        (OUT + 3, INTO + 1, "", "different"),  # the ledger says less than was sent
        (OUT + 2, INTO - 1, "", "different"),
    ],
)
def test_each_difference_is_seen(first: str, acked: int, received: int, detail: str, said: str) -> None:
    books = Books()
    if first == "end":
        books.ended(end(1, acked, received))
    flow(books, 1, OUT, INTO, detail=detail)
    if first == "record":
        books.ended(end(1, acked, received))
    tally = books.settle()
    found = {"exact": tally.exact, "cut": tally.cut, "blank": tally.blank, "different": len(tally.findings)}
    assert found == {**dict.fromkeys(found, 0), said: 1}
    assert (tally.unexplained > 0) == (said == "different")
    assert (tally.dark, books.waiting) == (0, (0, 0))


def test_a_blank_end_does_not_hide_a_record_that_contradicts_itself() -> None:
    books = Books()
    flow(books, 1, OUT, INTO, told=OUT - 1)
    books.ended(end(1, 0, 0))
    assert len(books.settle().findings) == 1


def test_a_connection_that_no_flow_names_is_dark() -> None:
    books = Books()
    flow(books, 1, OUT, INTO)
    books.record(9, Record(Kind.OPEN, flow=flow_id(3), cookie=3))  # still open: not dark
    for cookie in (1, 2, 3):
        books.ended(end(cookie, OUT + 2, INTO + 1))
    tally = books.settle()
    assert (tally.exact, tally.dark, tally.dark_bytes) == (1, 1, OUT + INTO)


def test_a_flow_whose_socket_is_not_told_is_shown_as_waiting() -> None:
    books = Books()
    flow(books, 1, OUT, INTO)
    assert books.waiting == (1, 0)


@given(st.binary(max_size=400))
def test_garbage_from_netlink_is_nothing_or_an_end(data: bytes) -> None:
    assert all(isinstance(found, End) for found in parse(data))


def test_what_is_cut_short_is_left_out() -> None:
    info = bytes(120) + struct.pack("=QQII", 12, 34, 5, 6)
    body = struct.pack(
        "=BBBB2s2s16s16sIQIIIII", 2, 7, 0, 0, b"\x9c\x40", b"\x01\xbb", bytes(16), bytes(16), 0, 77, *[0] * 5
    )
    message = body + struct.pack("=HH", 4 + len(info), 2) + info
    whole = struct.pack("=IHHII", 16 + len(message), 20, 0, 0, 0) + message
    assert list(parse(whole + whole)) == [End(77, 0, 40000, bytes(16), 443, 12, 34, 5, 6)] * 2
    for size in range(len(whole)):
        assert list(parse(whole[:size])) == []


@pytest.mark.root
def test_the_kernel_tells_of_real_connections() -> None:
    found: list[End] = []
    cookies: list[int] = []

    def body() -> None:
        ends = SocketEnds()
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            with socket.create_server((address, 0), family=family) as server:
                client = socket.create_connection(server.getsockname()[:2])
                accepted, _ = server.accept()
                cookies.append(struct.unpack("=Q", client.getsockopt(socket.SOL_SOCKET, 57, 8))[0])
                client.sendall(b"x" * OUT)
                accepted.sendall(b"y" * INTO)
                for sock, size in ((accepted, OUT), (client, INTO)):
                    assert len(sock.recv(size, socket.MSG_WAITALL)) == size
                client.close()
                assert accepted.recv(1) == b""
                accepted.close()
        poller = select.poll()
        poller.register(ends.fileno(), select.POLLIN)
        while len([each for each in found if each.cookie in cookies]) < 2 and poller.poll(10_000):
            found.extend(ends.read())
        assert ends.lost == 0
        ends.close()

    in_namespace(body)
    mine = [each for each in found if each.cookie in cookies]
    assert [(each.acked, each.received) for each in mine] == [(OUT + 2, INTO + 1)] * 2


@pytest.mark.root
def test_the_command_compares_what_ends_while_it_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store.create(tmp_path / "ledger" / "abc", "exeat/n1", 1)
    listening = threading.Event()
    begin = ledger_watch._begin

    def told(directory: Path, books: Books) -> Follower:
        follower = begin(directory, books)
        listening.set()
        return follower

    def connect(number: int, said: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            client = socket.create_connection(server.getsockname())
            accepted, _ = server.accept()
            cookie = struct.unpack("=Q", client.getsockopt(socket.SOL_SOCKET, 57, 8))[0]
            store.append([record(Kind.OPEN, number, reserved=OUT, cookie=cookie)], 1)
            client.sendall(b"x" * OUT)
            assert len(accepted.recv(OUT, socket.MSG_WAITALL)) == OUT
            client.close()
            accepted.close()
            store.append([record(Kind.CLOSE, number, bytes_out=said, kernel_out=said, segs_out=1)], 1)

    def body() -> None:
        def gateway() -> None:
            assert listening.wait(30)
            connect(1, OUT)
            connect(2, OUT - 8)  # its own two counts agree: only the kernel's third shows it

        thread = threading.Thread(target=gateway)
        thread.start()
        command = ["--state-dir", str(tmp_path), "ledger", "reconcile", "--watch", "2"]
        assert main(command) == 1
        thread.join()

    monkeypatch.setattr(ledger_watch, "_begin", told)
    in_namespace(body)
    store.close()
    said = capsys.readouterr().out
    assert "1 flows exact" in said
    assert "record 3: ledger - kernel: out -9, in -1 bytes" in said  # the eight, and each FIN
    assert "DRIFT in 1 flows" in said
