"""The ledger's files: append, make durable, and come back after any crash.

    DIR/seg/000000000000.seg ...   segments (framing: ledger/segment.py), numbered without gaps
    DIR/head                       two slots naming the last durable (size, root)
    DIR/lock                       held by the one writer

Order of writes, and what a crash behind each step leaves:

1. group: records and their commit frame in one pwrite   -> a torn or unacknowledged tail
2. fdatasync of the segment                              -> durable; not yet acknowledged
3. head slot, alternating, not synced by itself          -> may be old, is never ahead of step 2
4. acknowledgement

When a group does not fit any more:
a. seal frame, fdatasync                                 -> last segment is sealed: `open` does b
b. next segment under a temporary name: head frame, zeros, fsync   -> leftover, removed by `open`
   (or the head frame into a spare that a thread has zeroed and synced before: `ledger.files`)
c. rename, fsync of the folder                           -> both segments whole, the new one empty

Room ahead is zero-filled and synced before it is used (`prepare`), so that a group commit neither
grows the file nor meets a full disk half-way. A sector (512 bytes) is taken to be written whole or
not at all; sectors of one write may reach the disk in any order, hence the checksum per frame.

After a failed write or sync nobody knows what is on the disk: the kernel may have marked the pages
clean, so that a second fdatasync would report success. The store then refuses everything (it is
*latched*) and only a new `open` goes on: it copies what it can read into a fresh file and syncs
that, unless `head` proves that a sync succeeded for exactly what it reads.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from exeat.ledger import headfile, segment
from exeat.ledger.files import Spare, create, lock, sync_dir, write_at
from exeat.ledger.merkle import Frontier

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from exeat.ledger.files import Io, Zeroed

# A start reads the newest segment, at about 10 us a record: this keeps it under a second.
SEGMENT_BYTES: Final = 8 * 1024 * 1024
_ROOM: Final = 1024 * 1024  # bytes zeroed ahead at a time
_SEGMENT_NAME: Final = re.compile(r"(\d{12})\.seg")
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class StoreError(Exception):
    """The ledger cannot be opened, or is latched; the message says why."""


class Observer(Protocol):
    """State derived from the records that must survive without reading the whole ledger.

    On `open`: one `restore` with what `carry` gave at the start of the last segment, then
    `replay` for each record since. `carry` is asked again at the start of each new segment.
    """

    def restore(self, carry: bytes) -> None: ...
    def replay(self, seq: int, record: bytes) -> None: ...
    def carry(self) -> bytes: ...


@dataclass(slots=True)
class Recovery:
    """What a crash had left behind, as `open` found it."""

    uncommitted: int = 0  # complete records behind the last commit; kept
    torn_bytes: int = 0  # what followed them; dropped
    rewritten: bool = False


class Store:
    """One ledger, open for writing. Not thread-safe; one process at a time (flock)."""

    def __init__(
        self, directory: Path, origin: str, observer: Observer | None, segment_bytes: int, io: Io
    ) -> None:
        self.directory = directory
        self.origin = origin
        self.recovery = Recovery()
        self._observer = observer
        self._io = io
        self._segment_bytes = segment_bytes
        self._spare = Spare(directory / "seg", segment_bytes + -segment_bytes % 4096, io)
        self._frontier = Frontier()
        self._index = -1
        self._fd = -1
        self._head_fd = -1
        self._lock_fd = -1
        self._end = 0  # offset behind the last frame
        self._room = 0  # offset up to which the file is zeroed and synced
        self._fresh = True  # no group in this segment yet
        self._slot = 0
        self._head_dirty = False
        self._latched = ""

    @classmethod
    def create(
        cls,
        directory: Path,
        origin: str,
        now_ns: int,
        *,
        observer: Observer | None = None,
        segment_bytes: int = SEGMENT_BYTES,
        io: Io | None = None,
    ) -> Store:
        """Start a ledger in a folder that has none. Raises StoreError if it has, or cannot."""
        store = cls(directory, origin, observer, segment_bytes, io or os)
        with store._giving_up_on_error():
            (directory / "seg").mkdir(parents=True, exist_ok=True)
            store._lock()
            if store._segments():
                raise StoreError(f"{directory} already holds a ledger")
            store._start_segment(0, now_ns)
            store._open_head()
            sync_dir(store._io, directory)
            sync_dir(store._io, directory.parent)
        return store

    @classmethod
    def open(
        cls,
        directory: Path,
        now_ns: int,
        *,
        observer: Observer | None = None,
        segment_bytes: int = SEGMENT_BYTES,
        io: Io | None = None,
    ) -> Store:
        """Open a ledger and recover it. Never creates one. Raises StoreError."""
        store = cls(directory, "", observer, segment_bytes, io or os)
        with store._giving_up_on_error():
            if not (directory / "seg").is_dir():
                raise StoreError(f"{directory} holds no ledger")
            store._lock()
            segments = store._segments()
            if not segments:
                raise StoreError(f"{directory} holds no ledger")
            if segments != list(range(len(segments))):
                raise StoreError(f"{directory}: a segment file is missing before {segments[-1]:012d}")
            store._recover(segments[-1], now_ns)
        return store

    @property
    def size(self) -> int:
        """Records so far: the number the next one gets."""
        return self._frontier.size

    @property
    def latched(self) -> str:
        """Why the store refuses to append; empty while it does not."""
        return self._latched

    def root(self) -> bytes:
        return self._frontier.root()

    def append(self, records: Sequence[bytes], now_ns: int) -> int:
        """Append a group; it is durable when this returns the number of its first record.

        Raises StoreError, and from then on always, when it cannot be made durable.
        """
        if self._latched:
            raise StoreError(self._latched)
        first = self._frontier.size
        frontier = self._frontier.copy()
        frontier.extend(records)
        data = segment.group(first, records, segment.Commit(frontier.size, frontier.root(), now_ns))
        try:
            if not self._fresh and self._end + len(data) > self._segment_bytes:
                self._rotate(now_ns)
            self._write_group(data)
            self._frontier = frontier
            self._write_head(now_ns)
        except OSError as error:
            raise self._latch(error) from error
        return first

    @property
    def room(self) -> int:
        """Bytes that were made ready for records, and that even a full disk has."""
        return self._room - self._end

    def prepare(self) -> bool:
        """Zero and sync room ahead if little is left; call it when nobody waits. False: could not.

        A full disk does not latch yet: what room is left can still be used.
        """
        if self._latched or self._end >= self._segment_bytes or self._room - self._end >= _ROOM // 2:
            return True
        try:
            self._make_room(self._room + _ROOM)
        except OSError as error:
            if error.errno not in _FULL:
                self._latch(error)
            return False
        return True

    def spare(self) -> Spare | None:
        """What to `begin` now, so that the end of this segment finds the next one ready; None: not yet."""
        return self._spare if self._end > self._segment_bytes // 8 and not self._latched else None

    def sync_head(self) -> None:
        """Make the head file durable if it changed: from here on a cut tail shows even after power loss."""
        if self._head_dirty and not self._latched:
            try:
                self._io.fdatasync(self._head_fd)
            except OSError as error:
                raise self._latch(error) from error
            self._head_dirty = False

    def close(self) -> None:
        """Sync the head and let go. What was acknowledged is durable already."""
        with contextlib.suppress(StoreError):
            self.sync_head()
        self._release()

    # --- writing

    def _write_group(self, data: bytes) -> None:
        if self._end + len(data) > self._room:
            self._make_room(self._end + len(data))
        write_at(self._io, self._fd, data, self._end)
        self._io.fdatasync(self._fd)
        self._end += len(data)
        self._fresh = False

    def _make_room(self, end: int) -> None:
        end += -end % 4096
        write_at(self._io, self._fd, bytes(end - self._room), self._room)
        self._io.fdatasync(self._fd)
        self._room = end

    def _rotate(self, now_ns: int) -> None:
        commit = segment.Commit(self._frontier.size, self._frontier.root(), now_ns)
        self._write_group(segment.commit_frame(segment.SEAL, commit))
        self._start_segment(self._index + 1, now_ns)

    def _start_segment(self, index: int, now_ns: int) -> None:
        head = segment.Head(
            self.origin, now_ns, self._frontier, self._observer.carry() if self._observer is not None else b""
        )
        content = segment.head_frame(head)
        spare = self._spare.take()
        if spare is not None and len(content) < spare.size:
            self._move_into(spare, index, content)
        else:
            self._install(index, content)
        self._fresh = True

    def _move_into(self, spare: Zeroed, index: int, content: bytes) -> None:
        """As `_install`, with room that is there: one sync of a few blocks, and one of the folder."""
        self._close_fd("_fd")
        self._fd, self._index = spare.fd, index
        write_at(self._io, spare.fd, content, 0)
        self._io.fdatasync(spare.fd)
        self._io.rename(spare.path, self._path(index))
        sync_dir(self._io, spare.path.parent)
        self._end, self._room = len(content), spare.size

    def _install(self, index: int, content: bytes) -> None:
        """Put a segment file with `content` and zeroed room in place, durable, and go on in it."""
        path = self._path(index)
        temporary = path.with_suffix(".tmp")
        fd = create(self._io, temporary)
        self._close_fd("_fd")
        self._fd, self._index = fd, index
        room = len(content) + min(_ROOM, self._segment_bytes)
        room += -room % 4096
        try:
            write_at(self._io, fd, content + bytes(room - len(content)), 0)
            self._io.fsync(fd)
            self._io.rename(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):  # its space may be what everyone is short of
                self._io.unlink(temporary)
            raise
        sync_dir(self._io, path.parent)
        self._end, self._room = len(content), room

    # --- the head file

    def _open_head(self) -> None:
        self._head_fd = self._io.open(self.directory / "head", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)

    def _write_head(self, now_ns: int) -> None:
        write_at(
            self._io, self._head_fd, headfile.pack(self.size, self.root(), now_ns), self._slot * headfile.SLOT
        )
        self._slot ^= 1
        self._head_dirty = True

    # --- recovery

    def _recover(self, index: int, now_ns: int) -> None:
        for leftover in (self.directory / "seg").glob("*.tmp"):
            self._io.unlink(leftover)
        data = self._path(index).read_bytes()
        self._index = index
        sealed, tail = self._replay(data)
        self._open_head()
        slots = headfile.slots(self.directory)
        known = max((slot for slot in slots if slot is not None), default=None)
        self._slot = int(known is not None and known == slots[0])  # the newer one is written over last
        if known is not None and known[0] > self.size + len(tail):
            raise StoreError(
                f"{self.directory}: records {self.size + len(tail)} to {known[0] - 1}"
                " were acknowledged and are gone"
            )
        if sealed:
            self._start_segment(index + 1, now_ns)
        elif known == (self.size, self.root()) and not tail and not self.recovery.torn_bytes:
            self._fd = self._io.open(self._path(index), os.O_RDWR | os.O_CLOEXEC)
            self._room = len(data)
            if self._room - self._end < _ROOM // 2:  # a store that opens can take some records
                self._make_room(self._end + _ROOM)
        else:
            self.recovery.rewritten = True
            self._install(index, data[: self._end])
        if tail:
            self.append(tail, now_ns)
        elif self.size and known != (self.size, self.root()):
            self._write_head(now_ns)

    def _replay(self, data: bytes) -> tuple[bool, list[bytes]]:
        """Follow the frames of the last segment; (is it sealed, complete records behind its last commit)."""
        frames = segment.scan(data)
        first = next(frames, None)
        if first is None:
            raise StoreError(f"{self._path(self._index)}: no head")
        head = segment.parse_head(first)
        self.origin, self._frontier, self._end = head.origin, head.frontier, first.end
        if self._observer is not None:
            self._observer.restore(head.carry)
        pending: list[bytes] = []
        sealed, stop = False, first.end
        for found in frames:
            if sealed or found.seq != self._frontier.size + len(pending):
                raise StoreError(f"{self._path(self._index)}: frame {found.seq} is out of order")
            stop = found.end
            if found.kind == segment.RECORD:
                pending.append(found.payload)
                if self._observer is not None:
                    self._observer.replay(found.seq, found.payload)
                continue
            self._take_commit(found, pending)
            pending = []
            sealed = found.kind == segment.SEAL
        self.recovery.uncommitted = len(pending)
        self.recovery.torn_bytes = len(data[stop:].rstrip(b"\0"))
        return sealed, pending

    def _take_commit(self, found: segment.Frame, pending: list[bytes]) -> None:
        self._frontier.extend(pending)
        commit = segment.parse_commit(found)
        if found.kind not in (segment.COMMIT, segment.SEAL) or commit.root != self._frontier.root():
            raise StoreError(f"{self._path(self._index)}: the root at size {found.seq} is wrong")
        self._end = found.end
        self._fresh = False

    # --- resources

    def _path(self, index: int) -> Path:
        return self.directory / "seg" / f"{index:012d}.seg"

    def _segments(self) -> list[int]:
        matches = (_SEGMENT_NAME.fullmatch(path.name) for path in (self.directory / "seg").iterdir())
        return sorted(int(match[1]) for match in matches if match)

    def _lock(self) -> None:
        self._lock_fd = lock(self.directory / "lock")
        if self._lock_fd < 0:
            raise StoreError(f"{self.directory} is in use by another process")

    def _latch(self, error: OSError) -> StoreError:
        """Refuse everything from now on; what to raise."""
        self._latched = f"ledger cannot write: {error.strerror or error}"
        return StoreError(self._latched)

    @contextlib.contextmanager
    def _giving_up_on_error(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, StoreError) as error:
            self._latched = str(error)
            self._release()
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"{self.directory}: {error}") from error

    def _close_fd(self, name: str) -> None:
        fd: int = getattr(self, name)
        if fd >= 0:
            setattr(self, name, -1)
            self._io.close(fd)

    def _release(self) -> None:
        self._latched = self._latched or "ledger is closed"
        with contextlib.suppress(OSError):
            self._spare.close()
        for name in ("_fd", "_head_fd", "_lock_fd"):
            with contextlib.suppress(OSError):
                self._close_fd(name)
