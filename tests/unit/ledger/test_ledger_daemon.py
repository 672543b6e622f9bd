"""A real daemon in its own process, spoken to over its socket."""

from __future__ import annotations

import os
import signal
import socket
import struct
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from tests.support.ledgers import Daemon, deny, flow_id, record, running, settings, start, wait_for

from exeat.ledger import reader
from exeat.ledger.client import LedgerError, append_blocking
from exeat.ledger.records import Kind, Record, decode
from exeat.ledger.verify import verify
from exeat.ledger.wire import MAX_DATAGRAM, REPLY, Status, pack_request


class Peer:
    """A client that says exactly what the test wants said."""

    def __init__(self, daemon: Daemon) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(30)
        self.sock.connect(str(daemon.path))

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def ask(self, *records: bytes, number: int = 7) -> tuple[Status, int]:
        self.sock.send(pack_request(number, records))
        return self.reply(number)

    def reply(self, number: int) -> tuple[Status, int]:
        got, status, seq = REPLY.unpack(self.sock.recv(64))
        assert got == number
        return Status(status), seq


def stored(daemon: Daemon) -> list[Record]:
    return [decode(data) for _, data in reader.read(daemon.settings.directory)]


def kinds(daemon: Daemon) -> list[str]:
    return [entry.kind.label for entry in stored(daemon)]


def test_a_flow_from_open_to_close(tmp_path: Path) -> None:
    with running(tmp_path) as daemon, Peer(daemon) as peer:
        sent = [
            record(Kind.OPEN, 1, reserved=10),
            record(Kind.RESERVE, 1, reserved=100),
            record(Kind.PROGRESS, 1, bytes_out=50),
            record(Kind.CLOSE, 1, bytes_out=60, bytes_in=40),
        ]
        for number, data in enumerate(sent, 1):
            assert peer.ask(data) == (Status.DURABLE, number)
        assert [data for _, data in reader.read(daemon.settings.directory)][1:] == sent
    assert verify(daemon.settings.directory).ok


def test_it_starts_with_a_boot_record(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        (boot,) = stored(daemon)
    assert (boot.kind, boot.node, boot.actor, len(boot.boot_id)) == (Kind.BOOT, "n1", "ledger", 16)


def test_several_records_of_one_request_are_one_group(tmp_path: Path) -> None:
    with running(tmp_path) as daemon, Peer(daemon) as peer:
        assert peer.ask(*[deny(n) for n in range(100)]) == (Status.DURABLE, 1)
        assert peer.ask(record(Kind.OPEN, 1), record(Kind.CLOSE, 1), deny()) == (Status.DURABLE, 101)


def test_replies_come_in_order_and_after_refusals_too(tmp_path: Path) -> None:
    with running(tmp_path) as daemon, Peer(daemon) as peer:
        for number in range(300):
            peer.sock.send(pack_request(number, [deny(number) if number % 3 else b"junk"]))
        statuses = [peer.reply(number)[0] for number in range(300)]
    assert statuses == [Status.DURABLE if number % 3 else Status.REFUSED for number in range(300)]


def test_a_second_open_or_close_gets_the_first_ones_number(tmp_path: Path) -> None:
    with running(tmp_path) as daemon, Peer(daemon) as peer:
        opened, closed = record(Kind.OPEN, 1), record(Kind.CLOSE, 1)
        assert peer.ask(opened) == (Status.DURABLE, 1)
        assert peer.ask(opened) == (Status.DURABLE, 1)
        assert peer.ask(opened, opened, deny()) == (Status.DURABLE, 1)
        assert peer.ask(closed) == (Status.DURABLE, 3)
        assert peer.ask(closed) == (Status.DURABLE, 3)
        assert peer.ask(opened) == (Status.DURABLE, 1)
        assert kinds(daemon) == ["boot", "open", "deny", "close"]


def test_counts_that_are_sent_again_after_later_ones_are_not_stored(tmp_path: Path) -> None:
    """As a client does with what a ledger that was killed had stored and not answered."""
    with running(tmp_path) as daemon, Peer(daemon) as peer:
        assert peer.ask(record(Kind.OPEN, 1, reserved=100)) == (Status.DURABLE, 1)
        counts = [record(Kind.PROGRESS, 1, bytes_out=n) for n in (10, 20)]
        assert [peer.ask(each) for each in counts] == [(Status.DURABLE, 2), (Status.DURABLE, 3)]
        assert peer.ask(counts[0]) == (Status.DURABLE, 1)
        assert peer.ask(counts[1]) == (Status.DURABLE, 4)  # an idle flow says the same again and again
        assert kinds(daemon) == ["boot", "open", "progress", "progress", "progress"]
    assert verify(daemon.settings.directory).ok


@pytest.mark.parametrize(
    "bad",
    [
        [b"junk"],
        [deny(), b"junk"],
        [record(Kind.CLOSE, 9)],
        [record(Kind.RESERVE, 9, reserved=1)],
        [record(Kind.RESUME, 9)],
        [record(Kind.OPEN, 9), record(Kind.CLOSE, 8)],
        [record(Kind.LEASE)],
        [record(Kind.ORPHAN, 9)],
        [record(Kind.KEY)],
        [record(Kind.BOOT, data=bytes(32))],  # "this key signs"
        [record(Kind.GAP, reason_code="retention", data=bytes(40))],  # "these records were dropped"
    ],
)
def test_a_refused_request_stores_nothing(tmp_path: Path, bad: list[bytes]) -> None:
    with running(tmp_path) as daemon, Peer(daemon) as peer:
        assert peer.ask(*bad)[0] is Status.REFUSED
        assert peer.ask(record(Kind.OPEN, 9)) == (Status.DURABLE, 1)
        assert kinds(daemon) == ["boot", "open"]


@pytest.mark.parametrize(
    "datagram",
    [
        b"\0\0\0",
        b"\0\0\0\x07",
        b"\0\0\0\x07\0",
        b"\0\0\0\x07\0\x05abc",
        b"\0\0\0\x07\0\0",
        b"\0\0\0\x07" + b"\xff" * MAX_DATAGRAM,
    ],
)
def test_a_datagram_that_is_no_request(tmp_path: Path, datagram: bytes) -> None:
    with running(tmp_path) as daemon, Peer(daemon) as peer:
        peer.sock.send(datagram)
        if len(datagram) < 4:
            assert peer.sock.recv(64) == b""
        else:
            assert peer.reply(7)[0] is Status.REFUSED
        assert append_blocking(daemon.path, [deny()]) == 1


def test_roles(tmp_path: Path) -> None:
    with running(tmp_path, writers={os.getuid(): "control"}) as daemon, Peer(daemon) as peer:
        assert peer.ask(record(Kind.LEASE, lease_id="l1"))[0] is Status.DURABLE
        assert peer.ask(record(Kind.RESERVE, 1))[0] is Status.REFUSED


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to be somebody else")
def test_root_may_connect_and_write_nothing_and_others_not_even_that() -> None:
    with tempfile.TemporaryDirectory() as base, running(Path(base), writers={65533: "gateway"}) as daemon:
        Path(base).chmod(0o755)  # pytest's own folders are closed to others
        with Peer(daemon) as peer:
            assert peer.ask(deny())[0] is Status.REFUSED
        for uid, code in ((65533, 0), (65534, 1)):
            pid = os.fork()
            if pid == 0:
                os.setuid(uid)
                try:
                    append_blocking(daemon.path, [deny()])
                except LedgerError:
                    os._exit(1)
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == code
        assert kinds(daemon) == ["boot", "deny"]


def test_flows_of_a_lost_client_become_orphans(tmp_path: Path) -> None:
    with running(tmp_path) as daemon, Peer(daemon) as peer, Peer(daemon) as other:
        peer.ask(record(Kind.OPEN, 1, reserved=10, job="j1"))
        peer.ask(record(Kind.PROGRESS, 1, bytes_out=3, bytes_in=4))
        peer.ask(record(Kind.RESERVE, 1, reserved=4096))
        peer.ask(record(Kind.OPEN, 2), record(Kind.CLOSE, 2))
        other.ask(record(Kind.OPEN, 3))
        peer.sock.close()
        wait_for(lambda: "orphan" in kinds(daemon), "the orphan record")
        last = stored(daemon)[-1]
        assert (last.flow, last.job, last.close_reason) == (flow_id(1), "j1", "client.gone")
        assert (last.bytes_out, last.bytes_in, last.reserved) == (3, 4, 4096)
        assert kinds(daemon).count("orphan") == 1
        # exact counts that come late are stored; new bytes are not let through
        assert other.ask(record(Kind.RESERVE, 1, reserved=9999))[0] is Status.REFUSED
        late = record(Kind.CLOSE, 1, bytes_out=5, bytes_in=4)
        assert other.ask(late, record(Kind.CLOSE, 3))[0] is Status.DURABLE
    report = verify(daemon.settings.directory)
    assert report.ok
    assert (report.flows_closed, report.flows_orphaned, report.bytes_out) == (3, 0, 5)


def test_another_connections_flow_is_not_ours(tmp_path: Path) -> None:
    with running(tmp_path) as daemon, Peer(daemon) as peer, Peer(daemon) as other:
        peer.ask(record(Kind.OPEN, 1))
        for kind in (Kind.OPEN, Kind.RESERVE, Kind.PROGRESS, Kind.CLOSE, Kind.RESUME):
            assert other.ask(record(kind, 1))[0] is Status.REFUSED
        assert peer.ask(record(Kind.CLOSE, 1))[0] is Status.DURABLE


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_open_flows_of_a_restart_are_reclaimed_or_orphaned(tmp_path: Path, number: int) -> None:
    with running(tmp_path) as daemon, Peer(daemon) as peer:
        for flow in (1, 2, 3):
            peer.ask(record(Kind.OPEN, flow, reserved=flow * 10))
        assert daemon.stop(number) == (0 if number == signal.SIGTERM else -signal.SIGKILL)
    with running(tmp_path, grace_s=0.5) as daemon, Peer(daemon) as peer:
        assert peer.ask(record(Kind.RESUME, 2))[0] is Status.DURABLE
        assert peer.ask(record(Kind.OPEN, 3, reserved=30)) == (Status.DURABLE, 3)  # sent again: claims it too
        wait_for(lambda: "orphan" in kinds(daemon), "the orphan record")
        orphans = [entry for entry in stored(daemon) if entry.kind is Kind.ORPHAN]
        assert [(it.flow, it.reserved, it.close_reason) for it in orphans] == [(flow_id(1), 10, "restart")]
        assert peer.ask(record(Kind.RESUME, 1))[0] is Status.REFUSED
        assert peer.ask(record(Kind.CLOSE, 2), record(Kind.CLOSE, 3))[0] is Status.DURABLE
    assert verify(daemon.settings.directory).ok


def test_the_next_segment_is_made_while_this_one_is_written(tmp_path: Path) -> None:
    with running(tmp_path, segment_bytes=65536) as daemon, Peer(daemon) as peer:
        folder = daemon.settings.directory / "seg"
        wait_for((daemon.settings.directory / "checkpoint").exists, "the publisher is there")
        made = set[int]()

        def spares() -> list[int]:
            """The inodes of those that are as large as a segment."""
            found = []
            for path in folder.glob("spare-*.tmp"):
                with suppress(FileNotFoundError):  # taken in this moment
                    found += [path.stat().st_ino] * (path.stat().st_size == 65536)
            return found

        for number in range(5):
            peer.ask(*[deny(n) for n in range(100)])
            wait_for(lambda: bool(spares()), "a spare")
            made.update(spares())
            before = folder / f"{number + 1:012d}.seg"
            while not before.exists():
                peer.ask(*[deny(n) for n in range(20)])
        taken = {path.stat().st_ino for path in folder.glob("*.seg")}
        assert made & taken
    assert verify(daemon.settings.directory).ok


def test_open_flows_survive_rotation_and_restart(tmp_path: Path) -> None:
    with running(tmp_path, segment_bytes=4096) as daemon, Peer(daemon) as peer:
        peer.ask(record(Kind.OPEN, 1, reserved=77, job="old"))
        peer.ask(record(Kind.OPEN, 2), record(Kind.CLOSE, 2))
        for n in range(40):
            peer.ask(deny(n), deny(n))
        assert len(list((daemon.settings.directory / "seg").iterdir())) > 2
        daemon.stop(signal.SIGKILL)
    with running(tmp_path, grace_s=0.05, segment_bytes=4096) as daemon:
        wait_for(lambda: "orphan" in kinds(daemon), "the orphan record")
        with Peer(daemon) as peer:
            assert peer.ask(record(Kind.CLOSE, 2)) == (Status.DURABLE, 3)
        last = stored(daemon)[-1]
        assert (last.flow, last.reserved, last.job) == (flow_id(1), 77, "old")
    assert verify(daemon.settings.directory).ok


def test_a_client_that_does_not_read_its_answers_does_not_stop_the_others(tmp_path: Path) -> None:
    with running(tmp_path) as daemon, Peer(daemon) as lazy, Peer(daemon) as other:
        lazy.sock.setblocking(False)
        sent = 0
        for sent in range(100000):
            try:
                lazy.sock.send(pack_request(sent, [deny()]))
            except BlockingIOError:
                if other.ask(deny())[0] is Status.DURABLE and sent > 2000:
                    break
                continue
        lazy.sock.settimeout(30)
        first = REPLY.unpack(lazy.sock.recv(64))
        assert first[:2] == (0, Status.DURABLE)


def test_start_without_a_ledger_is_refused_unless_it_may_create_one(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="did not start"):
        start(settings(tmp_path, create=False))
    assert not (tmp_path / "state").exists()


def test_a_torn_tail_is_recorded(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        append_blocking(daemon.path, [deny()])
    (path,) = (daemon.settings.directory / "seg").iterdir()
    data = path.read_bytes()
    end = len(data.rstrip(b"\0")) + 8
    torn = struct.pack(">IIQ", 90, 1, 2) + b"Rxyz"
    path.write_bytes((data[:end] + torn).ljust(len(data), b"\0"))
    with running(tmp_path) as daemon:
        gap = stored(daemon)[-1]
    assert gap.kind is Kind.GAP
    assert "torn tail" in gap.detail
    assert verify(daemon.settings.directory).ok
