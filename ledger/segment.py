"""Framing of segment files. Pure: bytes in, frames out.

    frame   u32 length of body | u32 crc32(length, seq, body) | u64 seq | body        big-endian
    body    one byte of kind, then the payload

`seq` is the number of records before the frame, in every kind of frame: a record's own number,
the tree size at a commit. Kinds:

    H  head of a segment, its first frame: u8 version, u64 time, u8 length + origin, u8 n + n hashes
       (the frontier of the tree so far), then the writer's carry (open flows; opaque here)
    R  one record
    C  a group is complete: u64 tree size, 32 bytes root, u64 time. What follows the last commit
       was never acknowledged
    S  seal, the last frame: as C. The next segment goes on from it
    Z  frames R and C of a sealed segment, packed (zlib): they count as if they stood here

Behind the last frame a segment is zero, so a length of zero is the end. Times are CLOCK_REALTIME
nanoseconds, for people; order never depends on them.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from exeat.ledger.merkle import HASH, Frontier

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

VERSION: Final = 1
HEAD, RECORD, COMMIT, SEAL, PACKED = b"H", b"R", b"C", b"S", b"Z"
OVERHEAD: Final = 17  # bytes that a frame adds to its payload
MAX_BODY: Final = 16 * 1024 * 1024  # only a head with very many open flows comes near it
MAX_ORIGIN: Final = 255
MAX_PLAIN: Final = 64 * 1024 * 1024  # of all that is packed in a segment: else few bytes could be any number
_PACK_BYTES: Final = 1024 * 1024  # of groups are packed into one frame
_LEVEL: Final = 1  # of zlib: a fifth is left, 0.7 us for a record. Level 6 takes 2.6 for another 2 %
_PREFIX: Final = struct.Struct(">IIQ")
_SEQ: Final = slice(8, 16)  # of a frame
_LENGTH_SEQ: Final = struct.Struct(">IQ")
_CHECKED: Final = struct.Struct(">IQc")  # what a frame's checksum covers, but for the payload
_FRAME: Final = struct.Struct(">IIQc")
_COMMIT: Final = struct.Struct(f">Q{HASH}sQ")
_HEAD: Final = struct.Struct(">BQB")
_HEAD_START: Final = struct.Struct(">IIQcBQ")
HEAD_PREFIX: Final = _HEAD_START.size  # bytes of a segment that `head_time` needs


class SegmentError(ValueError):
    """A frame with a valid checksum does not say what it must: damage no crash explains."""


class Frame(NamedTuple):
    """One frame; `payload` is the body without its kind, `end` the offset behind the frame."""

    seq: int
    kind: bytes
    payload: bytes
    end: int


class Commit(NamedTuple):
    size: int
    root: bytes
    time_ns: int


@dataclass(frozen=True, slots=True)
class Head:
    """What a segment starts from."""

    origin: str
    time_ns: int
    frontier: Frontier
    carry: bytes


def frame(seq: int, kind: bytes, payload: bytes) -> bytes:
    length = len(payload) + 1
    crc = zlib.crc32(payload, zlib.crc32(_CHECKED.pack(length, seq, kind)))
    return _FRAME.pack(length, crc, seq, kind) + payload


def group(first: int, records: Sequence[bytes], commit: Commit) -> bytes:
    """The frames of one group commit: the records from number `first` on, then their commit."""
    parts: list[bytes] = []
    crc32, checked, pack = zlib.crc32, _CHECKED.pack, _FRAME.pack
    for seq, record in enumerate(records, first):  # as `frame`, which costs a call and a copy more
        length = len(record) + 1
        parts.append(pack(length, crc32(record, crc32(checked(length, seq, RECORD))), seq, RECORD))
        parts.append(record)
    parts.append(commit_frame(COMMIT, commit))
    return b"".join(parts)


def commit_frame(kind: bytes, commit: Commit) -> bytes:
    """A commit (C) or a seal (S)."""
    return frame(commit.size, kind, _COMMIT.pack(*commit))


def head_frame(head: Head) -> bytes:
    origin = head.origin.encode()
    if not 0 < len(origin) <= MAX_ORIGIN:
        raise SegmentError("an origin has 1 to 255 bytes")
    peaks = head.frontier.peaks
    payload = b"".join(
        (_HEAD.pack(VERSION, head.time_ns, len(origin)), origin, bytes((len(peaks),)), *peaks, head.carry)
    )
    return frame(head.frontier.size, HEAD, payload)


def scan(data: bytes | memoryview, at: int = 0) -> Iterator[Frame]:
    """Every complete frame with a right checksum from offset `at`, up to the first that is not one.

    Packed frames come as they were, with the `end` of what they are packed in.
    """
    return _frames(data, at, 0)


def _frames(data: bytes | memoryview, at: int, around: int) -> Generator[Frame, None, int]:
    """As `scan`; returns where it stopped. `around` is the end of what `data` was packed in, if it was."""
    unpack, prefix_size, crc32, limit = _PREFIX.unpack_from, _PREFIX.size, zlib.crc32, len(data)
    left = MAX_PLAIN
    while at + prefix_size < limit:
        length, crc, seq = unpack(data, at)
        start = at + prefix_size
        end = start + length
        if not 0 < length <= MAX_BODY or end > limit:
            break
        body = bytes(data[start:end])
        if crc32(body, crc32(_LENGTH_SEQ.pack(length, seq))) != crc:
            break
        kind = body[:1]
        if kind != PACKED:
            yield Frame(seq, kind, body[1:], around or end)
        elif around:
            break
        else:
            plain = _inflated(seq, body[1:], min(left, MAX_BODY))
            left -= len(plain)
            if not plain or (yield from _frames(plain, 0, end)) < len(plain):
                break
        at = end
    return at


def _inflated(seq: int, payload: bytes, most: int) -> bytes:
    """The frames in a packed one, `most` bytes of them; empty if they are not that."""
    stream = zlib.decompressobj()
    try:
        plain = stream.decompress(payload, most) if most else b""  # 0 would be no limit
    except zlib.error:
        return b""
    right = stream.eof and not stream.unused_data and plain[_SEQ] == seq.to_bytes(8, "big")
    return plain if right else b""


def pack(data: bytes) -> bytes:
    """A sealed segment with the frames between head and seal packed. Raises SegmentError if it is none."""
    frames = scan(data)
    head = next(frames, None)
    if head is None or head.kind != HEAD or data[head.end + _PREFIX.size :][:1] != RECORD:
        raise SegmentError("not a segment with plain records")
    if len(data) > MAX_PLAIN:
        raise SegmentError("too much for a packed segment")
    parts, seq, begin, end = [data[: head.end]], head.seq, head.end, head.end
    for found in frames:
        full = found.kind == COMMIT and found.end - begin >= _PACK_BYTES
        if full or found.kind == SEAL:
            upto = found.end if full else end
            parts += [frame(seq, PACKED, _deflated(data[begin:upto]))] if upto > begin else []
            seq, begin = found.seq, upto
        if found.kind == SEAL:
            return b"".join((*parts, data[end : found.end]))
        end = found.end
    raise SegmentError("the segment has no seal")


def _deflated(plain: bytes) -> bytes:
    made = zlib.compress(plain, _LEVEL)
    # What is packed is all that will be left.
    if len(plain) > MAX_BODY // 2 or len(made) >= MAX_BODY or zlib.decompress(made) != plain:
        raise SegmentError("these frames cannot be packed")
    return made


def parse_commit(found: Frame) -> Commit:
    """The commit in a C or S frame. Raises SegmentError."""
    if len(found.payload) != _COMMIT.size:
        raise SegmentError("commit of a wrong length")
    commit = Commit(*_COMMIT.unpack(found.payload))
    if commit.size != found.seq:
        raise SegmentError("commit names another size than its frame")
    return commit


def parse_head(found: Frame) -> Head:
    """The head in an H frame. Raises SegmentError."""
    payload = found.payload
    try:
        version, time_ns, origin_length = _HEAD.unpack_from(payload)
        at = _HEAD.size + origin_length
        origin = payload[_HEAD.size : at].decode()
        end = at + 1 + payload[at] * HASH
        peaks = [payload[start : start + HASH] for start in range(at + 1, end, HASH)]
        frontier = Frontier(found.seq, peaks)
    except (struct.error, IndexError, ValueError):
        raise SegmentError("head is malformed") from None
    if found.kind != HEAD or version != VERSION:
        raise SegmentError("segment does not begin with a head of version 1")
    return Head(origin, time_ns, frontier, payload[end:])


def first_seq(prefix: bytes) -> int:
    """The number of the first record of a segment, from its first 16 bytes. Raises SegmentError."""
    if len(prefix) < _PREFIX.size:
        raise SegmentError("segment is shorter than a head")
    return int(_PREFIX.unpack_from(prefix)[2])


def head_time(prefix: bytes) -> int:
    """When a segment was begun, from its first `HEAD_PREFIX` bytes (their checksum is not looked at)."""
    if len(prefix) < HEAD_PREFIX:
        raise SegmentError("segment is shorter than a head")
    *_, kind, version, time_ns = _HEAD_START.unpack(prefix)
    if kind != HEAD or version != VERSION:
        raise SegmentError("segment does not begin with a head of version 1")
    return int(time_ns)
