"""Lines and fields of HTTP/1.1 heads (RFC 9112 sections 2.2 and 5, sans-I/O).

Everything here works on bytes and accepts one spelling only. Two parsers that read the same
bytes differently are how requests get smuggled, so whatever another parser might read in a
second way (bare LF, folded lines, two lengths, an odd Transfer-Encoding) is an error, never
repaired.
"""

from __future__ import annotations

import re
from typing import Final

MAX_HEAD: Final = 16 * 1024  # bytes up to and including the empty line

TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_LENGTH: Final = re.compile(rb"0|[1-9][0-9]{0,17}")

# RFC 9110 section 7.6.1, plus the de-facto ones.
HOP_BY_HOP: Final = frozenset({b"connection", b"keep-alive", b"te", b"trailer", b"proxy-connection"})
# A Connection option naming one of these would make us drop the framing or the target.
_UNDROPPABLE: Final = frozenset({b"host", b"content-length", b"transfer-encoding", b"connection"})


class HttpError(Exception):
    """The bytes are not HTTP as we take it. `code` is a reason code, e.g. `http.line_ending`."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class HeadLines:
    """The lines of one head: `feed` bytes, then call `next` until it returns None.

    Judges in byte order, so that the verdict does not depend on how the bytes were cut. `used`
    counts the bytes of the lines given out; `rest` is what has been fed and not given out.
    """

    def __init__(self) -> None:
        self._pending = bytearray()
        self.used = 0

    @property
    def rest(self) -> bytes:
        return bytes(self._pending)

    def feed(self, data: bytes | memoryview) -> None:
        self._pending += data

    def next(self) -> bytes | None:
        """A line without its CRLF, None when it is not complete yet. Raises HttpError."""
        room = MAX_HEAD - self.used
        end = self._pending.find(b"\n", 0, room)
        line = bytes(self._pending[: room if end < 0 else end + 1])
        _check_line_bytes(line)
        if end < 0:
            if len(self._pending) >= room:
                raise HttpError("http.head_too_large")
            return None
        del self._pending[: end + 1]
        self.used += end + 1
        return line[:-2]


def _check_line_bytes(line: bytes) -> None:
    """Refuse NUL, CR not before LF, LF not after CR. A last CR may still get its LF."""
    body = line[:-1] if line.endswith((b"\r", b"\n")) else line
    if line.endswith(b"\n"):
        if not line.endswith(b"\r\n"):
            raise HttpError("http.line_ending")
        body = line[:-2]
    if b"\r" in body or b"\0" in body:
        raise HttpError("http.line_ending")


class Fields:
    """The field lines of a head, in order. Names are compared in lower case."""

    def __init__(self) -> None:
        self.lines: list[tuple[bytes, bytes]] = []
        self._values: dict[bytes, list[bytes]] = {}

    def add(self, line: bytes) -> None:
        """One field line: a token, a colon at once, a value of printable bytes. Raises HttpError."""
        name, colon, value = line.partition(b":")
        if not colon or not TOKEN.fullmatch(name):
            raise HttpError("http.header")  # also a folded line: it begins with white space
        if not _VALUE.fullmatch(value):
            raise HttpError("http.header")
        value = value.strip(b" \t")
        self.lines.append((name, value))
        self._values.setdefault(name.lower(), []).append(value)

    def __contains__(self, name: bytes) -> bool:
        return name in self._values

    def all(self, name: bytes) -> list[bytes]:
        return self._values.get(name, [])

    def tokens(self, name: bytes) -> frozenset[bytes]:
        """The members of a comma-separated field, in lower case."""
        return frozenset(
            token
            for value in self.all(name)
            for part in value.split(b",")
            if (token := part.strip(b" \t").lower())
        )

    def length(self, version: bytes) -> int | None:
        """Bytes of the body by Content-Length, None for chunked, 0 when neither stands there.

        Refuses whatever has two readings (RFC 9112 section 6.3).
        """
        lengths, codings = self.all(b"content-length"), self.all(b"transfer-encoding")
        if len(lengths) + len(codings) > 1:
            raise HttpError("http.framing")
        if codings:
            if codings[0].lower() != b"chunked" or version != b"HTTP/1.1":
                raise HttpError("http.framing")
            return None
        if not lengths:
            return 0
        if not _LENGTH.fullmatch(lengths[0]):
            raise HttpError("http.framing")
        return int(lengths[0])

    def end_to_end(self) -> list[tuple[bytes, bytes]]:
        """The lines that are meant for the other end: not for the next hop, and none for a proxy."""
        options = self.tokens(b"connection")
        if options & _UNDROPPABLE:
            raise HttpError("http.header")
        dropped = HOP_BY_HOP | options
        return [
            (name, value)
            for name, value in self.lines
            if (lowered := name.lower()) not in dropped and not lowered.startswith(b"proxy-")
        ]
