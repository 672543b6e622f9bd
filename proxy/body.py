"""Where a body ends: Content-Length or chunked (RFC 9112 sections 6 and 7.1). Sans-I/O.

The relay passes exactly the bytes this says belong to the one request it judged; whatever a
client sends after them is its next request, which is judged for itself.
"""

from __future__ import annotations

import re

from exeat.proxy.fields import HttpError

_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,8})\r\n")
_MAX_SIZE_LINE = 10  # bytes: eight digits and CRLF
_LENIENT_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(;[\t\x20-\x7e\x80-\xff]*)?\r\n")
_TRAILER_LINE = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*\r\n")
_MAX_LENIENT_LINE = 16 * 1024


class BodyFramer:
    """`take` says how many bytes of the given ones belong to the body; `done` when it is over.

    `length` in bytes, or None for chunked. Chunk extensions and trailers are refused, unless
    `lenient`: they are read where an origin answers. Raises HttpError(`http.body`) on a broken
    chunk; the bytes before it may already have been passed on, the broken ones have not.
    """

    def __init__(self, length: int | None, *, lenient: bool = False) -> None:
        self._chunked = length is None
        self._left = length or 0
        self._line = bytearray()
        self._last = False
        self._lenient = lenient
        self._max_line = _MAX_LENIENT_LINE if lenient else _MAX_SIZE_LINE
        self.done = length == 0

    def take(self, data: bytes | memoryview) -> int:
        if not self._chunked:
            used = min(self._left, len(data))
            self._left -= used
            self.done = self._left == 0
            return used
        return self._take_chunked(memoryview(data))

    def _take_chunked(self, data: memoryview) -> int:
        """A small machine over bytes: size line, that many bytes, CRLF, again; `0` line, CRLF, end."""
        at = 0
        while at < len(data) and not self.done:
            if self._left > 2:
                step = min(self._left - 2, len(data) - at)
                self._left -= step
                at += step
            elif self._left:
                self._expect(data[at], b"\r\n"[2 - self._left])
                self._left -= 1
                at += 1
                self.done = self._last and not self._left
            else:
                self._line_byte(data[at])
                at += 1
        return at

    @staticmethod
    def _expect(got: int, wanted: int) -> None:
        if got != wanted:
            raise HttpError("http.body")

    def _line_byte(self, byte: int) -> None:
        self._line.append(byte)
        if byte != 0x0A:
            if len(self._line) >= self._max_line:
                raise HttpError("http.body")
            return
        line = bytes(self._line)
        self._line.clear()
        if self._last:
            self._trailer(line)
        else:
            self._size(line)

    def _size(self, line: bytes) -> None:
        match = (_LENIENT_SIZE_LINE if self._lenient else _SIZE_LINE).fullmatch(line)
        if match is None:
            raise HttpError("http.body")
        size = int(match[1], 16)
        self._last = size == 0
        if not (self._last and self._lenient):
            self._left = size + 2  # the data and its CRLF; after the last chunk only the CRLF

    def _trailer(self, line: bytes) -> None:
        if line == b"\r\n":
            self.done = True
        elif not _TRAILER_LINE.fullmatch(line):
            raise HttpError("http.body")
