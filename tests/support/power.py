"""Power cuts, without pulling a plug: ext4 on a loop device, and a copy of what had reached the device.

The image lies in memory. At a cut the writer is stopped where it is, and the image is copied again and
again until two copies are the same: then the copy is one moment of the device. What ext4 still held
in its cache is not in it, as after a real cut. What the device's own cache may reorder is not shown
by this; `tests/fault/ledger/test_ledger_torn.py` enumerates that for the last write.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import traceback
from typing import TYPE_CHECKING

from tests.support.ledgers import wait_for

from exeat.ledger.packing import Packing
from exeat.ledger.reader import read
from exeat.ledger.store import Store
from exeat.ledger.verify import verify

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_IMAGE_BYTES = 64 * 1024 * 1024  # sparse
_SEGMENT = 128 * 1024
_AT_MOST = 4000  # records from one cut to the next
_COPIES = 50
_SIZE = struct.Struct("Q")


class NoSync:
    """The `os` module as the store uses it, except that nothing is ever synced."""

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)

    def fdatasync(self, fd: int) -> None:
        """Says that it is done."""

    def fsync(self, fd: int) -> None:
        """Says that it is done."""


def entry(number: int) -> bytes:
    """Record `number` as every writer makes it: who reads it back knows what it must be."""
    seed = hashlib.sha256(b"%d" % number).digest()
    return b"%d:" % number + seed * (1 + seed[0] % 12)


class Machine:
    """A disk that survives cuts of power, each time as far as it had got. `loss` says what was lost."""

    def __init__(self, base: Path, *, synced: bool = True, seed: int = 1) -> None:
        self._image, self._mount = base / "disk", base / "mnt"
        self._synced, self._chance = synced, random.Random(seed)
        self._mount.mkdir()
        with self._image.open("wb") as file:
            file.truncate(_IMAGE_BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-F", self._image], check=True)
        self.size = 0
        with self._mounted():
            Store.create(self._mount / "l", "power", 0, segment_bytes=_SEGMENT).close()

    @contextlib.contextmanager
    def _mounted(self) -> Iterator[None]:
        # The journal is committed when somebody syncs, or after an hour.
        options = "loop,commit=3600"
        subprocess.run(["mount", "-o", options, self._image, self._mount], check=True)
        try:
            yield
        finally:
            subprocess.run(["umount", self._mount], check=True)

    def cut(self) -> str:
        """Write until power is lost, come back, go on from there. What was lost, "" for nothing."""
        after = self._image.with_name("after")
        with self._mounted():
            acked = self._write_until_cut(after)
        after.rename(self._image)
        with self._mounted():
            return self._judge(acked)

    def _write_until_cut(self, after: Path) -> int:
        told = mmap.mmap(-1, _SIZE.size)
        pid = os.fork()
        if pid == 0:
            try:
                self._write(told)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(1)
        before = self.size
        wait_for(lambda: _SIZE.unpack(told)[0] > before, "the writer writes")
        signal.sigtimedwait([], self._chance.random() * 0.05)  # a moment nobody chose
        os.kill(pid, signal.SIGSTOP)
        os.waitpid(pid, os.WUNTRACED)
        acked: int = _SIZE.unpack(told)[0]
        _picture(self._image, after)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return acked

    def _write(self, told: mmap.mmap) -> None:
        io = None if self._synced else NoSync()
        store = Store.open(self._mount / "l", 0, segment_bytes=_SEGMENT, io=io)  # type: ignore[arg-type]
        enough = store.size + _AT_MOST
        packing = Packing(store.directory)
        while store.size < enough:
            count = self._chance.choice((1, 1, 3, 40))
            store.append([entry(store.size + number) for number in range(count)], 0)
            told[:] = _SIZE.pack(store.size)
            store.prepare()
            if self._synced:  # as another process does: its own syncs would help who has none
                packing.step(store.size)
        signal.pause()  # the disk is not large: wait for the cut

    def _judge(self, acked: int) -> str:
        try:
            store = Store.open(self._mount / "l", 0, segment_bytes=_SEGMENT)
            store.close()
            again = Store.open(self._mount / "l", 0, segment_bytes=_SEGMENT)  # recovery is done once
            settled = (again.size, again.recovery.torn_bytes, again.recovery.uncommitted)
            again.close()
            found = [data for _, data in read(self._mount / "l")]
        except Exception as error:
            return f"it does not open: {error}"
        self.size = len(found)
        if len(found) < acked:
            return f"{acked - len(found)} of {acked} acknowledged records"
        if found != [entry(number) for number in range(len(found))]:
            return "a record is not what was written"
        if settled != (store.size, 0, 0) or store.size != len(found):
            return "recovery did not settle"
        problems = [
            each.what for each in verify(self._mount / "l").problems if "not a record" not in each.what
        ]
        return "; ".join(problems)


def _picture(image: Path, after: Path) -> None:
    """A copy of one moment: two copies in a row that are the same."""
    digests = [""]
    for _ in range(_COPIES):
        subprocess.run(["cp", "--sparse=always", image, after], check=True)
        with after.open("rb") as file:
            digests.append(hashlib.file_digest(file, "blake2b").hexdigest())
        if digests[-1] == digests[-2]:
            return
    raise AssertionError("the device never came to rest")


def memory_folder(name: str) -> Path:
    """A folder in memory for the images; made anew."""
    from pathlib import Path

    folder = Path("/dev/shm") / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder
