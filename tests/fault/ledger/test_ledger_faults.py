"""System calls that fail, at every position: the store latches, and what it acknowledged stays."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.ledgers import deny

from exeat.ledger import reader
from exeat.ledger.store import Store, StoreError
from exeat.ledger.verify import verify

if TYPE_CHECKING:
    from pathlib import Path

SEGMENT = 4096
GROUPS = 12


class FaultyOs:
    """The `os` module, except that the n-th call of all fails (or writes short).

    `persisted`: it does what it was asked to, and then says that it could not.
    """

    def __init__(self, at: int, error: int, *, persisted: bool = False) -> None:
        self.left = at
        self.error = error
        self.persisted = persisted
        self.hit = ""
        self.synced_after_failure = False
        self._bad_fd = -1

    def _call(self, name: str, *args: Any) -> Any:
        self.left -= 1
        if self.left != 0:
            if name in ("fdatasync", "fsync") and args[0] == self._bad_fd:
                self.synced_after_failure = True
            return getattr(os, name)(*args)
        self.hit = name
        if name == "pwrite" and self.error == 0:
            fd, data, offset = args
            return os.pwrite(fd, data[: max(1, len(data) // 3)], offset)
        if self.error and name in ("fdatasync", "fsync"):
            self._bad_fd = args[0]
        if self.error and (name == "close" or self.persisted):
            done = getattr(os, name)(*args)
            if name == "open":
                os.close(done)
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        return getattr(os, name)(*args)

    def open(self, *args: Any) -> int:
        return int(self._call("open", *args))

    def close(self, *args: Any) -> None:
        self._call("close", *args)
        if args[0] == self._bad_fd:
            self._bad_fd = -1  # its number may be another file's from now on

    def pwrite(self, *args: Any) -> int:
        return int(self._call("pwrite", *args))

    def fdatasync(self, *args: Any) -> None:
        self._call("fdatasync", *args)

    def fsync(self, *args: Any) -> None:
        self._call("fsync", *args)

    def rename(self, *args: Any) -> None:
        self._call("rename", *args)

    def unlink(self, *args: Any) -> None:
        self._call("unlink", *args)


def run_until_failure(directory: Path, io: FaultyOs, *, spares: bool) -> list[bytes]:
    """Append groups with the faulty calls underneath; what was acknowledged."""
    acked: list[bytes] = []
    try:
        store = Store.open(directory, 1, segment_bytes=SEGMENT, io=io)
    except StoreError:
        return acked
    for number in range(GROUPS):
        batch = [deny(number * 4 + each) for each in range(4)]
        try:
            store.append(batch, number)
        except StoreError:
            assert store.latched
            with pytest.raises(StoreError):  # latched: it does not come back by itself
                store.append(batch, number)
            break
        acked += batch
        if spares and (spare := store.spare()) is not None:
            spare.make()
    store.close()
    return acked


def after(directory: Path, acked: list[bytes]) -> None:
    store = Store.open(directory, 2, segment_bytes=SEGMENT)
    more = [deny(999)]
    store.append(more, 3)
    store.close()
    got = [data for _, data in reader.read(directory)]
    assert got[: len(acked)] == acked
    assert got[-1:] == more
    assert len(got) <= len(acked) + 4 + 1  # at most the one group that was in doubt
    assert verify(directory).ok


@pytest.mark.parametrize("spares", [False, True], ids=["", "spares"])
@pytest.mark.parametrize(
    ("error", "persisted"),
    [(errno.EIO, False), (errno.EIO, True), (errno.ENOSPC, False), (0, False)],
    ids=["eio", "eio but done", "enospc", "short"],
)
def test_a_failure_at_each_call(tmp_path: Path, error: int, persisted: bool, spares: bool) -> None:
    hit = set()
    for at in range(1, 200):
        directory = tmp_path / f"{at}"
        Store.create(directory, "o", 0, segment_bytes=SEGMENT).close()
        io = FaultyOs(at, error, persisted=persisted)
        acked = run_until_failure(directory, io, spares=spares)
        if not io.hit:
            break
        hit.add(io.hit)
        assert not io.synced_after_failure
        if error == 0:
            assert len(acked) == GROUPS * 4  # short writes are finished, not failures
        after(directory, acked)
    else:
        raise AssertionError("the run makes more calls than this test enumerates")
    assert hit >= {"open", "pwrite", "fdatasync", "fsync", "rename"}


@pytest.mark.parametrize("persisted", [False, True], ids=["", "but done"])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_a_failure_at_each_call_of_create_leaves_nothing_that_opens_wrong(
    tmp_path: Path, error: int, persisted: bool
) -> None:
    for at in range(1, 40):
        directory = tmp_path / f"{at}"
        io = FaultyOs(at, error, persisted=persisted)
        with contextlib.suppress(StoreError):
            Store.create(directory, "o", 0, segment_bytes=SEGMENT, io=io).close()
        if not io.hit:
            return
        if any((directory / "seg").glob("*.seg")):
            Store.open(directory, 1, segment_bytes=SEGMENT).close()
        else:
            with pytest.raises(StoreError, match="holds no ledger"):
                Store.open(directory, 1, segment_bytes=SEGMENT)
            Store.create(directory, "o", 2, segment_bytes=SEGMENT).close()
        assert verify(directory).ok
    raise AssertionError("create makes more calls than this test enumerates")


def test_a_failed_sync_is_not_believed_afterwards(tmp_path: Path) -> None:
    """The page cache may show what the disk does not have: recovery copies it and syncs the copy."""
    directory = tmp_path / "l"
    Store.create(directory, "o", 0).close()
    path = directory / "seg" / "000000000000.seg"
    io = FaultyOs(0, errno.EIO)
    store = Store.open(directory, 1, io=io)
    store.append([deny(1)], 1)
    inode = path.stat().st_ino
    io.left = 2  # the next pwrite succeeds, its fdatasync fails
    with pytest.raises(StoreError, match="cannot write"):
        store.append([deny(2)], 1)
    assert io.hit == "fdatasync"
    store.close()
    store = Store.open(directory, 2)
    assert store.recovery.rewritten
    assert store.size == 2
    assert path.stat().st_ino != inode
    store.close()
