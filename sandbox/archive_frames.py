"""What the reader of an archive says from inside its jail, read outside: bytes in, events out.

The frames are described in archive_inside.py. Nothing in them is believed: paths, links and sums
are judged here by the same rules, and anything that does not fit is `archive.broken`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from exeat.sandbox.archive_inside import CHUNK, HEAD, ArchiveError, Meter, check_link, parts_of, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exeat.sandbox.archive_inside import Caps

_LONGEST: Final = {b"D": 4096, b"F": 4097, b"C": CHUNK, b"H": 8193, b"S": 8193, b"E": 0, b"X": 1024}
_SAID: Final = "the reader inside the jail said something that cannot be"


class Folder(NamedTuple):
    parts: tuple[str, ...]


class File(NamedTuple):
    """Its content comes in the events that follow, as bytes."""

    parts: tuple[str, ...]
    executable: bool


class HardLink(NamedTuple):
    parts: tuple[str, ...]
    target: tuple[str, ...]


class SymbolicLink(NamedTuple):
    parts: tuple[str, ...]
    target: str


class End(NamedTuple):
    """Nothing may follow."""


Event = Folder | File | HardLink | SymbolicLink | End | bytes


class Frames:
    """`feed` what was read; `ended` says whether the last word was spoken."""

    def __init__(self, caps: Caps, packed: int) -> None:
        self._caps = caps
        self._meter = Meter(caps, packed)
        self._buffer = bytearray()
        self._in_file = False
        self.ended = False

    @property
    def size(self) -> int:
        """Bytes of content so far."""
        return self._meter.size

    def feed(self, data: bytes) -> Iterator[Event]:
        """Raises ArchiveError: what the reader refused, or what it should have."""
        self._buffer += data
        while len(self._buffer) >= HEAD.size:
            kind, length = HEAD.unpack_from(self._buffer)
            if self.ended or length > _LONGEST.get(kind, -1):
                raise ArchiveError("archive.broken", _SAID)
            if len(self._buffer) < HEAD.size + length:
                return
            body = bytes(self._buffer[HEAD.size : HEAD.size + length])
            del self._buffer[: HEAD.size + length]
            yield self._event(kind, body)
        if self.ended and self._buffer:
            raise ArchiveError("archive.broken", _SAID)

    def _event(self, kind: bytes, body: bytes) -> Event:
        if kind == b"C":
            if not self._in_file or not body:
                raise ArchiveError("archive.broken", _SAID)
            self._meter.content(len(body))
            return body
        self._in_file = kind == b"F"
        match kind:
            case b"D":
                return Folder(self._entry(body, "D"))
            case b"F":
                if body[:1] not in (b"x", b"-"):
                    raise ArchiveError("archive.broken", _SAID)
                return File(self._entry(body[1:], "F"), body[:1] == b"x")
            case b"H":
                name, target = (self._parts(part) for part in self._two(body))
                self._meter.hard_link(name, target)
                return HardLink(name, target)
            case b"S":
                path, text = self._two(body)
                parts, to = self._parts(path), self._text(text)
                check_link(parts, to, self._caps)
                self._meter.entry(parts, "S")
                return SymbolicLink(parts, to)
            case b"X":
                code, why = self._two(body)
                raise ArchiveError(shown(self._text(code)), shown(self._text(why)))
        self.ended = True
        return End()

    def _entry(self, path: bytes, kind: str) -> tuple[str, ...]:
        parts = self._parts(path)
        self._meter.entry(parts, kind)
        return parts

    def _parts(self, path: bytes) -> tuple[str, ...]:
        text = self._text(path)
        parts = parts_of(text, self._caps)
        if "/".join(parts) != text:
            raise ArchiveError("archive.broken", _SAID)
        return parts

    def _two(self, body: bytes) -> tuple[bytes, bytes]:
        first, nul, second = body.partition(b"\0")
        if not nul:
            raise ArchiveError("archive.broken", _SAID)
        return first, second

    def _text(self, body: bytes) -> str:
        try:
            return body.decode()
        except UnicodeDecodeError:
            raise ArchiveError("archive.broken", _SAID) from None
