"""Reading a ledger that may be in use: committed records only, in order, each once."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from typing import TYPE_CHECKING, BinaryIO, Final

from exeat.ledger import segment
from exeat.ledger.records import decode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from exeat.ledger.records import Record

_CHUNK: Final = 65536  # more than any record: behind so many zeros there is nothing
Entry = tuple[int, bytes]  # sequence number, the record's bytes


class ReaderError(Exception):
    """There is no ledger to read, or it breaks off where it must not (`exeat ledger verify` says more)."""


def find_ledgers(state_dir: Path) -> list[Path]:
    """The folders of all ledgers under a state directory. Raises OSError if it cannot be read."""
    root = state_dir / "ledger"
    if not root.is_dir():
        return []
    return sorted(path.parent for path in root.glob("*/seg"))


def origin_of(node: str) -> str:
    """The name of a node's ledger, as its checkpoints have it."""
    return f"exeat/{node}"


def ledger_of(state_dir: Path, origin: str) -> Path:
    """The folder of one ledger."""
    return state_dir / "ledger" / hashlib.sha256(origin.encode()).hexdigest()


class Follower:
    """`poll` gives the committed records that came since the last call. Raises OSError, and ReaderError where
    the ledger is damaged: what it gave until then is in order, and who goes on without the rest is misled.

    It follows the writer into new segments, and notices when a recovery, packing or dropping has put
    a fresh file in the place of the one it was reading.
    """

    def __init__(self, directory: Path, *, index: int = 0) -> None:
        self._directory = directory
        self._index = index
        self._inode = 0
        self._offset = 0
        self._next_seq = 0
        self._committed = 0  # bytes of the last reading that ended in a commit

    def poll(self) -> Iterator[Entry]:
        again = False
        while True:
            data = self._read_on()
            pending: list[Entry] = []
            sealed = False
            for found in segment.scan(data):
                if found.kind == segment.RECORD:
                    pending.append((found.seq, found.payload))
                    continue
                if found.kind == segment.HEAD and found.seq > self._next_seq > 0:
                    raise ReaderError(f"{self._directory}: record {self._next_seq} is missing")
                yield from (entry for entry in pending if entry[0] >= self._next_seq)
                pending.clear()
                self._next_seq = max(self._next_seq, found.seq)
                self._committed = found.end
                sealed = found.kind == segment.SEAL
            self._offset += self._committed
            if sealed:
                self._index, self._offset, self._inode, again = self._index + 1, 0, 0, False
                continue
            if not self._path(self._index + 1).exists():
                return
            if again:  # a segment is begun when the one before is sealed, so this one was when it was read
                name = f"{self._directory}: segment {self._index:012d}"
                raise ReaderError(
                    f"{name} breaks off before record {self._next_seq}: see `exeat ledger verify`"
                )
            again = True

    def _path(self, index: int) -> Path:
        return self._directory / "seg" / f"{index:012d}.seg"

    def _read_on(self) -> bytes:
        self._committed = 0
        path = self._path(self._index)
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                # The number of a file that was replaced may be given again, to one that is shorter.
                if status.st_ino != self._inode or status.st_size < self._offset:
                    self._inode, self._offset = status.st_ino, 0
                file.seek(self._offset)
                return _content(file)
        except FileNotFoundError:  # sealed, and the next one is not there yet
            return b""


def _content(file: BinaryIO) -> bytes:
    """The rest of a segment up to where nothing is written yet."""
    parts = list[bytes]()
    while (chunk := file.read(_CHUNK)).rstrip(b"\0"):
        parts.append(chunk)
    return b"".join(parts)


def segment_of(directory: Path, seq: int) -> int:
    """The index of the segment that holds record `seq`, or will. Raises ReaderError."""
    index = _last_segment(directory)
    while index:
        if first_record(directory / "seg" / f"{index:012d}.seg") <= seq:
            break
        index -= 1
    return index


def read(directory: Path) -> Iterator[Entry]:
    """All committed records of a ledger, from the first."""
    _last_segment(directory)
    return Follower(directory).poll()


def tail(directory: Path, count: int) -> tuple[list[Entry], Follower]:
    """The last `count` committed records, and a follower that goes on behind them."""
    index = _last_segment(directory)
    while True:
        follower = Follower(directory, index=index)
        last = deque(follower.poll(), maxlen=count)
        if index == 0 or len(last) == count:
            return list(last), follower
        index -= 1


def find_segments(directory: Path) -> list[Path]:
    """The segment files of a ledger, each at the place of its number. Raises ReaderError, OSError."""
    for _ in range(3):  # a folder that is listed while segments are begun in it may seem to lack one
        paths = sorted(path for path in (directory / "seg").glob("*.seg") if path.stem.isdecimal())
        if not paths:
            raise ReaderError(f"{directory} holds no ledger")
        if int(paths[-1].stem) == len(paths) - 1:
            return paths
    raise ReaderError(f"{directory}: a segment is missing before {paths[-1].stem}")


def begun_ns(path: Path) -> int:
    """When a segment was begun (CLOCK_REALTIME). Raises OSError, ReaderError."""
    with path.open("rb") as file:
        return _told(segment.head_time, path, file.read(segment.HEAD_PREFIX))


def gone(path: Path) -> bool:
    """Whether the records of this sealed segment were dropped (`ledger.retention`). Raises OSError."""
    return _dropped_end(path) > 0


def first_record(path: Path) -> int:
    """The number of the first record of a segment, or of the one it will have. Raises OSError,
    ReaderError."""
    with path.open("rb") as file:
        return _told(segment.first_seq, path, file.read(16))


def _told(reads: Callable[[bytes], int], path: Path, prefix: bytes) -> int:
    """What a head says. Raises ReaderError."""
    try:
        return reads(prefix)
    except segment.SegmentError as error:
        raise ReaderError(f"{path}: {error}: see `exeat ledger verify`") from None


def is_plain(path: Path) -> bool:
    """Whether a segment has records that stand there as they were written. Raises OSError."""
    return _second_frame(path)[16:] == segment.RECORD


def dropped_before(directory: Path) -> int:
    """The number of the oldest record that is still there; all before it were dropped. Raises OSError."""
    number = index = 0
    while end := _dropped_end(directory / "seg" / f"{index:012d}.seg"):
        number, index = end, index + 1
    return number


def _dropped_end(path: Path) -> int:
    """The number behind the last record of a segment that has none of its records any more; else 0."""
    follows = _second_frame(path)
    end = _told(segment.first_seq, path, follows) if follows[16:] == segment.SEAL else 0
    return end if end > first_record(path) else 0


def _second_frame(path: Path) -> bytes:
    """The first 17 bytes, up to its kind, of the frame behind a segment's head."""
    with path.open("rb") as file:
        head = file.read(16)
        file.seek(16 + int.from_bytes(head[:4], "big"))
        return file.read(17)


def _last_segment(directory: Path) -> int:
    names = [path.stem for path in (directory / "seg").glob("*.seg") if path.stem.isdecimal()]
    if not names:
        raise ReaderError(f"{directory} holds no ledger")
    return max(int(name) for name in names)


def read_records(root: Path) -> Iterator[tuple[int, Record]]:
    """All committed records of every ledger in `root` (the folder `ledger` of a state directory)."""
    for directory in sorted(path.parent for path in root.glob("*/seg")):
        for seq, data in read(directory):
            yield seq, decode(data)
