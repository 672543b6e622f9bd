"""The verifier's way through the segments: frames, their order, and every hash of the tree. Pure.

As `ledger.verify`, whose part it is, it shares no code with the writer. Records go to `book` in
their order once the root of their group has proved them.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from hashlib import sha256
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

_PREFIX: Final = struct.Struct(">IIQ")
_FRAME: Final = struct.Struct(">IIQc")  # a frame up to its payload
_COMMIT: Final = 49  # bytes of a commit's body
_MAX_PLAIN: Final = 1 << 24  # bytes that are packed in one frame
_MAX_UNPACKED: Final = 1 << 26  # and in all of a segment
Book = Callable[[int, bytes], None]
Head = tuple[int, bytes]  # size, root


class BrokenError(Exception):
    """Nothing behind this point can be trusted. `record` is the number of the first one concerned."""

    def __init__(self, record: int, what: str) -> None:
        super().__init__(what)
        self.record = record
        self.what = what


class Begin(NamedTuple):
    """What the head of a segment says of those before it."""

    origin: str
    size: int
    peaks: list[bytes]


class Chain:
    """Segments one after the other: `segment` for each, then `finish`. All raise BrokenError.

    `heads` are (size, root) known from elsewhere. `quick` holds every segment but the last against the
    root in its seal alone: a wrong checksum beside a right record is not seen, nor a wrong root within.
    """

    def __init__(self, heads: Sequence[Head], book: Book | None, *, quick: bool = False) -> None:
        self.origin = ""
        self.size = 0  # committed records
        self.peaks: list[bytes] = []  # roots of the full subtrees, largest first
        self.segments = 0
        self.notes: list[str] = []
        self.dropped: Head = (0, b"")  # the records before this size are gone, and had this root
        self._heads = heads
        self._noted = sorted({size for size, _ in heads})
        self._book = book
        self._quick = quick
        self._sealed = True  # before the first segment: a head must come

    def start_at(self, data: bytes) -> Begin:
        """Take what the head of this segment says for granted; somebody else comes from before it."""
        frame = _frame(data, 0)
        if frame is None:
            raise BrokenError(0, "the head of the segment is damaged")
        self.size = frame[0]
        origin, self.peaks = _parse_head(frame[2], self.size)
        return Begin(origin, self.size, self.peaks[:])

    def segment(self, data: bytes, *, last: bool) -> None:
        if not self._sealed:
            raise BrokenError(self.size, "the segment before this one was never sealed")
        at, pending = self._head(data), list[bytes]()
        data = _unpacked(data, at)
        self._sealed = False
        if self.size == self.dropped[0] and not last and self._gone(data, at):
            return
        while True:
            if self._quick and not last and not self._sealed:
                at = _skim(data, at, self.size + len(pending), pending)
            number = self.size + len(pending)
            frame = _frame(data, at)
            if frame is None:
                break
            seq, kind, body, at = frame
            if self._sealed:
                raise BrokenError(number, "there is something behind the seal")
            if seq != number:
                raise BrokenError(number, f"missing or out of order: record {seq} stands in its place")
            if kind == b"R":
                pending.append(body)
            elif kind in (b"C", b"S"):
                self._commit(body, pending)
                self._sealed = kind == b"S"
                pending = []
            else:
                raise BrokenError(number, "a frame of unknown kind")
        self._end(data, at, len(pending), last=last)
        self.segments += 1

    def finish(self) -> None:
        newest = max((size for size, _ in self._heads), default=0)
        if newest > self.size:
            raise BrokenError(self.size, f"records {self.size} to {newest - 1} are gone: the tail was cut")

    def root(self) -> bytes:
        """RFC 6962 section 2.1, over all records so far."""
        if not self.peaks:
            return sha256(b"").digest()
        node = self.peaks[-1]
        for peak in self.peaks[-2::-1]:
            node = sha256(b"\1" + peak + node).digest()
        return node

    def check_heads(self) -> None:
        """Whether the tree at this size is the one that was noted."""
        for size, root in self._heads:
            if size == self.size and root != self.root():
                raise BrokenError(max(0, size - 1), f"the root at size {size} is not the one that was noted")

    def _head(self, data: bytes) -> int:
        frame = _frame(data, 0)
        if frame is None or frame[1] != b"H" or frame[0] != self.size:
            raise BrokenError(self.size, "the head of the segment is damaged")
        origin, peaks = _parse_head(frame[2], self.size)
        if not origin or self.origin not in ("", origin):
            raise BrokenError(self.size, "the segment belongs to another ledger")
        if self.size and self.size == self.dropped[0]:  # no records to make them from: their root must do
            self.peaks = peaks
            if len(peaks) != self.size.bit_count() or self.root() != self.dropped[1]:
                raise BrokenError(self.size, "the segment does not go on from those that were dropped")
        if peaks != self.peaks:
            raise BrokenError(self.size, "the segment does not go on from the one before it")
        self.origin = origin
        return frame[3]

    def _gone(self, data: bytes, at: int) -> bool:
        """Whether there is nothing but the seal of records that were dropped; then take its word."""
        frame = _frame(data, at)
        if frame is None or frame[1] != b"S" or frame[0] <= self.size or data[frame[3] :].strip(b"\0"):
            return False
        seq, _, body, _ = frame
        if len(body) != 48 or int.from_bytes(body[:8], "big") != seq:
            raise BrokenError(self.size, "the seal of records that were dropped is malformed")
        self.size, self.dropped, self.peaks = seq, (seq, body[8:40]), []
        self._sealed = True
        self.segments += 1
        return True

    def _commit(self, body: bytes, pending: list[bytes]) -> None:
        first, end = self.size, self.size + len(pending)
        for noted in [size for size in self._noted if first < size <= end]:
            self._grow(pending[self.size - first : noted - first])
            self.check_heads()
        self._grow(pending[self.size - first :])
        if len(body) != 48 or int.from_bytes(body[:8], "big") != self.size or body[8:40] != self.root():
            raise BrokenError(first, f"records {first} to {self.size - 1}: not what their Merkle root says")
        if self._book is not None:
            for number, record in enumerate(pending, first):
                self._book(number, record)

    def _grow(self, records: list[bytes]) -> None:
        """The tree with these leaves, row by row: what finds no pair in a row is a peak."""
        row = [sha256(b"\0" + record).digest() for record in records]
        height, left = 0, list[bytes]()
        while row:
            if self.size >> height & 1:
                row.insert(0, self.peaks.pop())
            if len(row) & 1:
                left.append(row.pop())
            pairs = iter(row)
            row = [sha256(b"\1" + one + other).digest() for one, other in zip(pairs, pairs, strict=True)]
            height += 1
        self.peaks += reversed(left)
        self.size += len(records)

    def _end(self, data: bytes, at: int, uncommitted: int, *, last: bool) -> None:
        rest = data[at:].rstrip(b"\0")
        number = self.size + uncommitted
        if self._sealed:
            if rest:
                raise BrokenError(number, "there is something behind the seal")
            return
        if not last:
            raise BrokenError(number, f"the segment breaks off before record {number}, without a seal")
        if not rest and not uncommitted:
            return
        acknowledged = max((size for size, _ in self._heads), default=0)
        if rest and (acknowledged > self.size or _commit_behind(data, at)):
            raise BrokenError(number, "damaged: its checksum does not match")
        self.notes.append(
            f"unfinished write behind record {self.size - 1}: never acknowledged, settled at the next start"
        )


def _parse_head(body: bytes, size: int) -> tuple[str, list[bytes]]:
    """Origin and peaks."""
    try:
        version, _, length = struct.unpack_from(">BQB", body)
        origin, at = body[10 : 10 + length].decode(), 10 + length
        peaks = [body[at + 1 + 32 * n : at + 33 + 32 * n] for n in range(body[at])]
    except (struct.error, IndexError, ValueError):
        raise BrokenError(size, "the head of the segment is malformed") from None
    return (origin if version == 1 else ""), peaks


def is_dropped(data: bytes) -> bool:
    """Whether this segment has lost its records: a seal of more than none right behind the head."""
    head = _frame(data, 0)
    seal = _frame(data, head[3]) if head is not None else None
    return head is not None and seal is not None and seal[1] == b"S" and seal[0] > head[0]


def _unpacked(data: bytes, at: int) -> bytes:
    """The segment with its packed frames, if there are any behind the head at `at`, as they were."""
    parts, left = [data[:at]], _MAX_UNPACKED
    while (frame := _frame(data, at)) is not None and frame[1] == b"Z":
        stream = zlib.decompressobj()
        try:
            plain = stream.decompress(frame[2], min(left, _MAX_PLAIN)) if left else b""  # 0: no limit
        except zlib.error:
            break
        left -= len(plain)
        if not stream.eof or stream.unused_data or plain[8:16] != frame[0].to_bytes(8, "big"):
            break
        parts.append(plain)
        at = frame[3]
    return b"".join((*parts, data[at:])) if len(parts) > 1 else data


def _skim(data: bytes, at: int, number: int, pending: list[bytes]) -> int:
    """Take in records that stand where they should, and pass commits; offset of the first other frame."""
    unpack, limit, add = _FRAME.unpack_from, len(data) - _FRAME.size, pending.append
    while at <= limit:
        length, _, seq, kind = unpack(data, at)
        end = at + 16 + length
        if seq != number or not length or end > len(data):
            break
        if kind == b"R":
            add(data[at + 17 : end])
            number += 1
        elif kind != b"C" or length != _COMMIT:
            break
        at = end
    return at


def _frame(data: bytes, at: int) -> tuple[int, bytes, bytes, int] | None:
    """(seq, kind, payload, end) of the frame at `at`; None if there is no valid one."""
    if at + 16 > len(data):
        return None
    length, crc, seq = _PREFIX.unpack_from(data, at)
    end = at + 16 + length
    if length == 0 or end > len(data):
        return None
    if zlib.crc32(data[at + 8 : end], zlib.crc32(data[at : at + 4])) != crc:
        return None
    return seq, data[at + 16 : at + 17], data[at + 17 : end], end


def _commit_behind(data: bytes, at: int) -> bool:
    """Whether a valid commit stands behind the broken frame at `at`: then it was not a torn write."""
    at += 16 + int.from_bytes(data[at : at + 4], "big")
    while (frame := _frame(data, at)) is not None:
        if frame[1] in (b"C", b"S"):
            return True
        at = frame[3]
    return False
