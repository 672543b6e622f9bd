"""Where a request's body ends: Content-Length or strict chunked (RFC 9112 sections 6 and 7.1).

Sans-I/O. The relay passes exactly the bytes this says belong to the one request it judged;
whatever a client sends after them (a pipelined request to somewhere else) goes nowhere.
"""

from __future__ import annotations

import re

from exeat.proxy.connect import HttpError

_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,8})\r\n")
_MAX_SIZE_LINE = 10  # bytes: eight digits and CRLF. Extensions and trailers are refused.


class BodyFramer:
    """`take` says how many bytes of the given ones belong to the body; `done` when it is over.

    `length` in bytes, or None for chunked. Raises HttpError(`http.body`) on a broken chunk; the
    bytes before it may already have been passed on, the broken ones have not.
    """

    def __init__(self, length: int | None) -> None:
        self._chunked = length is None
        self._left = length or 0
        self._line = bytearray()
        self._last = False
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
                self._size_byte(data[at])
                at += 1
        return at

    @staticmethod
    def _expect(got: int, wanted: int) -> None:
        if got != wanted:
            raise HttpError("http.body")

    def _size_byte(self, byte: int) -> None:
        self._line.append(byte)
        if byte != 0x0A:
            if len(self._line) >= _MAX_SIZE_LINE:
                raise HttpError("http.body")
            return
        match = _SIZE_LINE.fullmatch(self._line)
        if match is None:
            raise HttpError("http.body")
        size = int(match[1], 16)
        self._line.clear()
        self._last = size == 0
        self._left = size + 2  # the data and its CRLF; after the last chunk only the CRLF
