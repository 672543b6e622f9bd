"""Sealed segments are packed: nothing a reader, verifier or writer sees changes, whatever interrupts it."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import time
import zlib
from typing import TYPE_CHECKING

import pytest
from tests.support.ledgers import deny, running, wait_for
from tests.support.witnesses import Ledger

from exeat.ledger import fsck, packing, reader, retention, segment
from exeat.ledger.client import append_blocking
from exeat.ledger.merkle import Frontier
from exeat.ledger.packing import Packing
from exeat.ledger.publish import Publisher
from exeat.ledger.store import Store
from exeat.ledger.verify import verify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SEGMENT = 16384


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(tmp_path / "l", segment_bytes=SEGMENT)
    for first in range(0, 800, 20):
        made.store.append([deny(first + n) for n in range(20)], first)
    made.publish()
    yield made
    made.store.close()


def plain(directory: Path) -> list[bool]:
    return [reader.is_plain(path) for path in reader.find_segments(directory)]


def pack_all(ledger: Ledger) -> int:
    packer, count = Packing(ledger.directory), 0
    while packer.step(ledger.store.size):
        count += 1
    return count


def content(directory: Path) -> list[tuple[int, bytes]]:
    return list(reader.read(directory))


def test_what_is_packed_reads_and_verifies_as_before(ledger: Ledger) -> None:
    before, found = content(ledger.directory), verify(ledger.directory)
    large = sum(path.stat().st_size for path in reader.find_segments(ledger.directory)[:-1])
    count = pack_all(ledger)
    assert plain(ledger.directory) == [False] * count + [True]
    assert sum(path.stat().st_size for path in reader.find_segments(ledger.directory)[:-1]) < large / 2
    assert content(ledger.directory) == before
    for ways in ({}, {"two": True}, {"quick": True}, {"two": True, "quick": True}):
        again = verify(ledger.directory, **ways)
        assert (again.problems, again.size, again.root) == ([], found.size, found.root)
    assert verify(ledger.directory).kinds == found.kinds
    assert fsck.check(ledger.directory, repair=False) == []
    assert pack_all(ledger) == 0


def test_the_writer_goes_on_behind_packed_segments(ledger: Ledger) -> None:
    pack_all(ledger)
    ledger.store.close()
    ledger.store = Store.open(ledger.directory, 1, segment_bytes=SEGMENT)
    ledger.grow(200, 800)
    assert pack_all(ledger) > 0
    assert [seq for seq, _ in content(ledger.directory)] == list(range(1002))
    assert verify(ledger.directory).ok


def test_a_ledger_brought_back_with_a_packed_segment_last(ledger: Ledger) -> None:
    """As archives are: their newest segment is a sealed one."""
    pack_all(ledger)
    ledger.store.close()
    reader.find_segments(ledger.directory)[-1].unlink()
    (ledger.directory / "head").unlink()
    size = len(content(ledger.directory))
    ledger.store = Store.open(ledger.directory, 1, segment_bytes=SEGMENT)
    assert ledger.store.size == size
    assert verify(ledger.directory).ok


def test_who_reads_meanwhile_has_every_record_once(ledger: Ledger) -> None:
    """A follower stands in a segment that is packed under its feet once it is sealed."""
    follower = reader.Follower(ledger.directory)
    got = list(follower.poll())
    assert pack_all(ledger) > 0
    for first in range(0, 300, 20):
        ledger.store.append([deny(first + n) for n in range(20)], 1)
    ledger.publish()
    assert pack_all(ledger) > 0
    got += follower.poll()
    assert got == content(ledger.directory)
    assert [seq for seq, _ in got] == list(range(ledger.store.size))


def test_who_reads_goes_on_though_a_file_has_the_number_of_the_one_it_knew(ledger: Ledger) -> None:
    follower = reader.Follower(ledger.directory)
    seen = list(follower.poll())
    newest = reader.find_segments(ledger.directory)[-1]
    for first in range(0, 300, 20):
        ledger.store.append([deny(first + n) for n in range(20)], 1)
    newest.write_bytes(retention.stub(newest))  # the same inode
    after = reader.first_record(reader.find_segments(ledger.directory)[int(newest.stem) + 1])
    assert [seq for seq, _ in follower.poll()] == list(range(after, ledger.store.size))
    assert after > len(seen)


def test_only_what_is_signed_is_packed_and_never_the_newest(ledger: Ledger) -> None:
    paths = reader.find_segments(ledger.directory)
    packer, end = Packing(ledger.directory), reader.first_record(paths[1])
    assert not packer.step(end - 1)
    assert packer.step(end)
    assert not packer.step(end)
    assert plain(ledger.directory) == [False] + [True] * (len(paths) - 1)


def test_a_packed_segment_can_be_dropped_and_none_is_packed_that_may_be_dropped(ledger: Ledger) -> None:
    packer = Packing(ledger.directory)
    assert packer.step(ledger.store.size)
    now = 100 * 86_400 * 10**9
    assert retention.propose(ledger.directory, retention.Rules(keep_bytes=1, at_least_days=1), now) > 0
    assert not packer.step(ledger.store.size)
    ledger.run_errands()
    ledger.publish()
    for path in reader.find_segments(ledger.directory)[:2]:
        path.write_bytes(retention.stub(path))
    assert [reader.gone(path) for path in reader.find_segments(ledger.directory)[:3]] == [True, True, False]
    (ledger.directory / "retention").unlink()
    assert packer.step(ledger.store.size)
    assert plain(ledger.directory)[:3] == [False, False, False]
    report = verify(ledger.directory)
    assert (report.ok, report.dropped > 0) == (True, True), report.problems


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "open"])
def test_a_disk_that_does_not_let_it_changes_nothing(
    ledger: Ledger, call: str, fault: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object) -> int:
        raise OSError(fault, os.strerror(fault))

    before, packer = content(ledger.directory), Packing(ledger.directory)
    with monkeypatch.context() as patched:
        patched.setattr(f"exeat.ledger.small_files.os.{call}", fails)
        assert not packer.step(ledger.store.size)
    assert not packer.step(ledger.store.size)  # not at once again
    assert capsys.readouterr().err.count("cannot be packed") == 1
    assert all(plain(ledger.directory))
    assert content(ledger.directory) == before
    later = time.monotonic() + 3600
    monkeypatch.setattr(packing.time, "monotonic", lambda: later)
    assert packer.step(ledger.store.size)


def test_a_kill_at_any_step_loses_nothing(ledger: Ledger) -> None:
    before, steps = content(ledger.directory), 0
    for stop_at in range(1, 100):
        done = _killed_at(stop_at, lambda: pack_all(ledger))
        assert content(ledger.directory) == before
        assert verify(ledger.directory).ok
        if done:
            break
        steps += 1
    assert steps >= 2 * 3  # two segments at least, and of each: sync, rename, sync of the folder
    assert not any(plain(ledger.directory)[:-1])
    assert not list(ledger.directory.rglob("*.tmp"))


def test_a_writer_that_starts_meanwhile_leaves_it_alone(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill of the writer, whose publisher goes on for a moment: neither is in the other's way."""
    before, real = content(ledger.directory), os.fsync
    ledger.store.close()

    def start_in_between(fd: int) -> None:
        real(fd)
        if not ledger.store.latched:
            return
        ledger.store = Store.open(ledger.directory, 1, segment_bytes=SEGMENT)

    with monkeypatch.context() as patched:
        patched.setattr("exeat.ledger.small_files.os.fsync", start_in_between)
        assert Packing(ledger.directory).step(ledger.store.size)
    assert not ledger.store.latched
    assert plain(ledger.directory)[0] is False
    assert content(ledger.directory) == before


def _killed_at(stop_at: int, work: Callable[[], object]) -> bool:
    """Whether `work` came to its end in a process that is killed before its n-th step towards the disk."""
    pid = os.fork()
    if pid == 0:
        left = stop_at

        def counted(call: Callable[..., None]) -> Callable[..., None]:
            def step(*args: object) -> None:
                nonlocal left
                left -= 1
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)
                call(*args)

            return step

        try:
            os.fsync, os.rename = counted(os.fsync), counted(os.rename)  # type: ignore[assignment]
            work()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status == 0


def test_damage_in_a_packed_segment_is_named_and_breaks_off(ledger: Ledger) -> None:
    pack_all(ledger)
    path = reader.find_segments(ledger.directory)[1]
    begin, clean = reader.first_record(path), path.read_bytes()
    for at in range(0, len(clean), 37):
        path.write_bytes(clean[:at] + bytes((clean[at] ^ 0x10,)) + clean[at + 1 :])
        (problem,) = verify(ledger.directory, quick=True, two=True).problems
        assert begin <= problem.record <= reader.first_record(reader.find_segments(ledger.directory)[2])


def forged(path: Path, payload: Callable[[bytes], bytes]) -> None:
    """Another content in the packed frame of a segment, with a right checksum."""
    data = path.read_bytes()
    head = next(segment.scan(data))
    length = int.from_bytes(data[head.end : head.end + 4], "big")
    body = data[head.end + 17 : head.end + 16 + length]
    made = segment.frame(head.seq, segment.PACKED, payload(body))
    path.write_bytes(data[: head.end] + made + data[head.end + 16 + length :])


def _recoded(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    return lambda body: zlib.compress(change(zlib.decompress(body)))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda body: body[:-5], id="cut off"),
        pytest.param(lambda body: body + b"x", id="more behind it"),
        pytest.param(lambda body: b"no zlib" + body, id="another format"),
        pytest.param(lambda _: zlib.compress(bytes(64 * 1024 * 1024)), id="a bomb"),
        pytest.param(_recoded(lambda frames: frames[:-1]), id="half a frame"),
        pytest.param(_recoded(lambda _: b""), id="nothing"),
        pytest.param(
            lambda body: zlib.compress(segment.frame(zlib.decompress(body)[15], segment.PACKED, body)),
            id="packed twice",
        ),
    ],
)
def test_what_no_writer_packs_is_not_read(ledger: Ledger, change: Callable[[bytes], bytes]) -> None:
    pack_all(ledger)
    forged(reader.find_segments(ledger.directory)[0], change)
    assert list(segment.scan(reader.find_segments(ledger.directory)[0].read_bytes()))[-1].seq < 200
    assert verify(ledger.directory).problems
    assert verify(ledger.directory, quick=True).problems


def repeated(count: int, begin: int) -> bytes:
    """Packed frames of 15 MiB each of which a few KiB are left: one record, over and over."""
    parts, record = [], deny(1)[:1] + bytes(16_000)
    each = 15 * 1024 * 1024 // len(record)
    for number in range(count):
        first = begin + number * each
        plain = b"".join(segment.frame(seq, segment.RECORD, record) for seq in range(first, first + each))
        parts.append(segment.frame(first, segment.PACKED, zlib.compress(plain)))
    return b"".join(parts)


def test_a_small_segment_cannot_be_any_number_of_bytes(ledger: Ledger) -> None:
    """Each packed frame is as large as it may be; all of them together would fill the memory."""
    pack_all(ledger)
    path = reader.find_segments(ledger.directory)[0]
    head = next(segment.scan(path.read_bytes()))
    bombs = repeated(6, 0)
    path.write_bytes(path.read_bytes()[: head.end] + bombs)
    assert len(bombs) < 1024 * 1024
    read = sum(len(found.payload) for found in segment.scan(path.read_bytes()))
    assert 55 * 1024 * 1024 <= read <= segment.MAX_PLAIN
    for quick in (True, False):
        (problem,) = verify(ledger.directory, quick=quick).problems
        assert problem.what


def test_what_is_too_large_is_not_packed() -> None:
    data = segment.head_frame(segment.Head("exeat/n", 1, Frontier(), b""))
    record = bytes(16_000)
    rows = range(segment.MAX_PLAIN // len(record) + 1)
    data += b"".join(segment.frame(seq, segment.RECORD, record) for seq in rows)
    with pytest.raises(segment.SegmentError, match="too much"):
        segment.pack(data)


def test_a_damaged_segment_stays_as_it_is(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    path = reader.find_segments(ledger.directory)[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    packer = Packing(ledger.directory)
    assert packer.step(ledger.store.size)
    assert "segment 000000000000 stays as it is" in capsys.readouterr().err
    assert path.read_bytes() == data
    assert packer.step(ledger.store.size)
    assert plain(ledger.directory)[:2] == [True, False]


@pytest.mark.parametrize("spoilt", ["retention", "seg/000000000001.seg"])
def test_what_cannot_be_read_is_no_reason_to_sign_no_more(
    ledger: Ledger, spoilt: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (ledger.directory / spoilt).write_text("nonsense")
    assert not Packing(ledger.directory).step(ledger.store.size)
    assert "cannot be packed" in capsys.readouterr().err


def test_packing_needs_a_seal_and_plain_records(ledger: Ledger) -> None:
    newest = reader.find_segments(ledger.directory)[-1].read_bytes()
    for data in (b"", newest, segment.pack(reader.find_segments(ledger.directory)[0].read_bytes())):
        with pytest.raises(segment.SegmentError):
            segment.pack(data)


def test_tiles_are_made_anew_from_packed_segments(ledger: Ledger) -> None:
    pack_all(ledger)
    shutil.rmtree(ledger.directory / "tile")
    Publisher(ledger.directory).publish(ledger.store.size, ledger.store.root())
    assert fsck.check(ledger.directory, repair=False) == []


def test_a_ledger_that_runs_packs_what_it_has_sealed(tmp_path: Path) -> None:
    with running(tmp_path, segment_bytes=SEGMENT) as daemon:
        for first in range(0, 600, 30):
            append_blocking(daemon.path, [deny(first + n) for n in range(30)])
        directory = daemon.settings.directory
        wait_for(lambda: not any(plain(directory)[:-1]), "all but the newest are packed")
        append_blocking(daemon.path, [deny(9999)])
    assert sum(not each for each in plain(directory)) > 2
    assert verify(directory).ok
