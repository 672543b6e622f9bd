"""The store through its own door: create, append, reopen, rotate, refuse."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.ledgers import deny

from exeat.ledger import headfile, reader, segment
from exeat.ledger.files import Spare
from exeat.ledger.merkle import Frontier
from exeat.ledger.store import Store, StoreError
from exeat.ledger.verify import verify

if TYPE_CHECKING:
    from pathlib import Path

SMALL = 8192


def fill(store: Store, groups: int, *, per_group: int = 3) -> list[bytes]:
    out = []
    for number in range(groups):
        batch = [deny(number * 10 + each) for each in range(per_group)]
        assert store.append(batch, number) == store.size - per_group
        out += batch
    return out


def records_of(directory: Path) -> list[bytes]:
    entries = list(reader.read(directory))
    assert [seq for seq, _ in entries] == list(range(len(entries)))
    return [data for _, data in entries]


def test_what_was_appended_is_read_back_and_verifies(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "l", "exeat/test", 1)
    written = fill(store, 5)
    tree = Frontier()
    tree.extend(written)
    assert (store.size, store.root()) == (15, tree.root())
    store.close()
    assert records_of(tmp_path / "l") == written
    report = verify(tmp_path / "l")
    assert report.ok
    assert (report.size, report.root, report.origin) == (15, tree.root().hex(), "exeat/test")


def test_the_head_file_names_what_is_durable(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "l", "o", 1)
    for _ in range(3):
        fill(store, 1)
        assert headfile.read(tmp_path / "l") == (store.size, store.root())
    store.close()


def test_reopening_goes_on_where_it_stopped(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "l", "o", 1)
    written = fill(store, 2)
    for _ in range(3):
        store.close()
        store = Store.open(tmp_path / "l", 2)
        assert not store.recovery.rewritten
        assert store.size == len(written)
        written += fill(store, 2)
    store.close()
    assert records_of(tmp_path / "l") == written


def test_segments_rotate_and_chain(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "l", "o", 1, segment_bytes=SMALL)
    written = fill(store, 40)
    store.close()
    store = Store.open(tmp_path / "l", 2, segment_bytes=SMALL)
    written += fill(store, 40)
    store.close()
    names = sorted(path.name for path in (tmp_path / "l" / "seg").iterdir())
    assert len(names) > 3
    assert names == [f"{index:012d}.seg" for index in range(len(names))]
    assert records_of(tmp_path / "l") == written
    report = verify(tmp_path / "l")
    assert report.ok
    assert report.segments == len(names)
    assert report.size == len(written)


def test_a_group_larger_than_a_segment_still_fits(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "l", "o", 1, segment_bytes=4096)
    written = fill(store, 3, per_group=100)
    store.close()
    assert records_of(tmp_path / "l") == written
    assert verify(tmp_path / "l").ok


def test_a_crash_after_the_seal_goes_on_in_a_new_segment(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "l", "o", 1, segment_bytes=SMALL)
    written = fill(store, 2)
    store.close()
    path = tmp_path / "l" / "seg" / "000000000000.seg"
    data = path.read_bytes()
    end = [found.end for found in segment.scan(data)][-1]
    seal = segment.commit_frame(segment.SEAL, segment.Commit(store.size, store.root(), 9))
    path.write_bytes(data[:end] + seal + bytes(64))
    (tmp_path / "l" / "seg" / "000000000001.tmp").write_bytes(b"half a head")
    store = Store.open(tmp_path / "l", 2, segment_bytes=SMALL)
    written += fill(store, 1)
    store.close()
    assert records_of(tmp_path / "l") == written
    assert verify(tmp_path / "l").segments == 2
    assert not list((tmp_path / "l" / "seg").glob("*.tmp"))


def test_room_is_made_ahead(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "l", "o", 1)
    path = tmp_path / "l" / "seg" / "000000000000.seg"
    sizes = set()
    for _ in range(60):
        fill(store, 1, per_group=200)
        assert store.prepare()
        sizes.add(path.stat().st_size)
    assert len(sizes) > 1
    store.close()
    assert verify(tmp_path / "l").ok


class Memory:
    """An observer that carries how many records it has seen."""

    def __init__(self) -> None:
        self.seen = 0

    def restore(self, carry: bytes) -> None:
        self.seen = int.from_bytes(carry, "big")

    def replay(self, seq: int, record: bytes) -> None:
        assert seq == self.seen
        self.seen += 1

    def carry(self) -> bytes:
        return self.seen.to_bytes(8, "big")


def test_derived_state_comes_back_from_the_last_segment_alone(tmp_path: Path) -> None:
    memory = Memory()
    store = Store.create(tmp_path / "l", "o", 1, observer=memory, segment_bytes=SMALL)
    for number in range(40):
        store.append([deny(number)] * 5, number)
        memory.seen += 5
    store.close()
    for path in sorted((tmp_path / "l" / "seg").iterdir())[:-1]:
        path.write_bytes(b"not read by open")
    again = Memory()
    store = Store.open(tmp_path / "l", 2, observer=again, segment_bytes=SMALL)
    assert again.seen == store.size == 200
    store.close()


def test_nothing_is_created_by_opening(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no ledger"):
        Store.open(tmp_path / "l", 1)
    assert not (tmp_path / "l").exists()
    (tmp_path / "l" / "seg").mkdir(parents=True)
    with pytest.raises(StoreError, match="holds no ledger"):
        Store.open(tmp_path / "l", 1)


def test_creating_twice_is_refused(tmp_path: Path) -> None:
    Store.create(tmp_path / "l", "o", 1).close()
    with pytest.raises(StoreError, match="already holds a ledger"):
        Store.create(tmp_path / "l", "o", 1)


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "l", "o", 1)
    with pytest.raises(StoreError, match="in use"):
        Store.open(tmp_path / "l", 1)
    store.close()
    Store.open(tmp_path / "l", 1).close()


def test_a_closed_store_appends_nothing(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "l", "o", 1)
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.append([deny()], 1)


def test_an_acknowledged_record_that_is_gone_stops_the_start(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "l", "o", 1)
    fill(store, 3)
    store.close()
    path = tmp_path / "l" / "seg" / "000000000000.seg"
    data = path.read_bytes()
    commits = [found.end for found in segment.scan(data) if found.kind == segment.COMMIT]
    path.write_bytes(data[: commits[1]].ljust(len(data), b"\0"))
    with pytest.raises(StoreError, match="records 6 to 8 were acknowledged and are gone"):
        Store.open(tmp_path / "l", 2)
    os.unlink(tmp_path / "l" / "lock")


def test_a_wrong_root_stops_the_start(tmp_path: Path) -> None:
    Store.create(tmp_path / "l", "o", 1).close()
    path = tmp_path / "l" / "seg" / "000000000000.seg"
    data = path.read_bytes()
    (head,) = segment.scan(data)
    forged = segment.group(0, [deny()], segment.Commit(1, bytes(32), 1))
    path.write_bytes(data[: head.end] + forged)
    with pytest.raises(StoreError, match="root at size 1 is wrong"):
        Store.open(tmp_path / "l", 2)


def test_a_missing_segment_stops_the_start(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "l", "o", 1, segment_bytes=SMALL)
    fill(store, 60)
    store.close()
    (tmp_path / "l" / "seg" / "000000000001.seg").unlink()
    with pytest.raises(StoreError, match="segment file is missing"):
        Store.open(tmp_path / "l", 2)


class Counted:
    """The `os` module, and which calls were made of it."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        self.calls.append(name)
        return getattr(os, name)


def test_the_next_segment_is_taken_from_a_spare(tmp_path: Path) -> None:
    """Then no file grows while somebody waits, and the ledger is the same as without."""
    io = Counted()
    store = Store.create(tmp_path / "l", "o", 1, segment_bytes=65536, io=io)
    assert store.spare() is None  # not before there is something in this segment
    groups = [[deny(number * 8 + each) for each in range(8)] for number in range(240)]
    turned = 0
    for number, batch in enumerate(groups):
        before = len(list((tmp_path / "l" / "seg").glob("*.seg")))
        io.calls.clear()
        store.append(batch, number)
        if len(list((tmp_path / "l" / "seg").glob("*.seg"))) > before:
            turned += 1
            # seal; head; folder; group
            assert [call for call in io.calls if "sync" in call] == [
                "fdatasync",
                "fdatasync",
                "fsync",
                "fdatasync",
            ]
        elif turned:
            assert io.calls == ["pwrite", "fdatasync", "pwrite"]  # the last is the head file's
        if (spare := store.spare()) is not None:
            spare.make()
            spare.make()  # there is one
        store.prepare()
    assert turned >= 2
    assert records_of(tmp_path / "l") == [data for batch in groups for data in batch]
    store.close()
    assert list((tmp_path / "l" / "seg").glob("*.tmp"))
    Store.open(tmp_path / "l", 2, segment_bytes=65536).close()
    assert not list((tmp_path / "l" / "seg").glob("*.tmp"))
    assert verify(tmp_path / "l").ok


def test_a_spare_that_comes_too_late_is_given_up(tmp_path: Path) -> None:
    spare = Spare(tmp_path, 4096, os)
    spare.close()
    spare.make()
    spare.begin()
    assert spare.take() is None
    assert list(tmp_path.iterdir()) == []


def test_a_spare_that_is_given_up_is_not_the_one_of_the_next_store(tmp_path: Path) -> None:
    """The disk failed, and the store was opened anew while the thread of the old one still wrote."""
    following = Spare(tmp_path, 4096, os)

    class Slow(Counted):
        def fsync(self, fd: int) -> None:
            os.fsync(fd)
            former.close()
            for leftover in tmp_path.glob("*.tmp"):  # as `open` does
                leftover.unlink()
            following.make()

    former = Spare(tmp_path, 4096, Slow())
    former.make()
    made = following.take()
    assert made is not None
    assert made.path.stat().st_ino == os.fstat(made.fd).st_ino
    assert list(tmp_path.iterdir()) == [made.path]
    os.close(made.fd)


def test_a_reader_leaves_zeros_ahead_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the pieces it reads in, it finds every record and stops at the end."""
    made = [deny(number) for number in range(300)]
    store = Store.create(tmp_path / "l", "o", 1)
    for first in range(0, len(made), 7):
        store.append(made[first : first + 7], 1)
    for chunk in (16384, 20001, 65536):
        monkeypatch.setattr(reader, "_CHUNK", chunk)
        assert records_of(tmp_path / "l") == made
    store.close()
