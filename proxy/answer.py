"""Where an origin's answer ends, and what of it goes to the client (RFC 9112 section 6, sans-I/O).

Only an answer whose end is beyond doubt leaves the client's connection open for another request.
What two readers might end in two places (two lengths, a length with chunks, folded lines, a broken
chunk, a head that is none) goes to the client as it came until the origin closes, and the client's
connection closes with it.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import Final

from exeat.proxy.body import BodyFramer
from exeat.proxy.fields import Fields, HeadLines, HttpError

_STATUS_LINE: Final = re.compile(rb"(HTTP/1\.[01]) ([1-5][0-9]{2})( [\t\x20-\x7e\x80-\xff]*)?")
_SWITCHING: Final = 101
_NO_CONTENT: Final = 204
_NOT_MODIFIED: Final = 304


class AnswerHead:
    """One head of an answer: `feed` until it says that it is complete, then `rest` follows it.

    Raises HttpError on whatever is not exactly one; `raw` is all that was fed, `size` what of it
    is the head.
    """

    def __init__(self) -> None:
        self._lines = HeadLines()
        self.raw = bytearray()
        self.line = b""
        self.version = b""
        self.status = 0
        self.fields = Fields()

    @property
    def size(self) -> int:
        return self._lines.used

    @property
    def rest(self) -> bytes:
        return self._lines.rest

    def feed(self, data: bytes | memoryview) -> bool:
        self.raw += data
        self._lines.feed(data)
        while (line := self._lines.next()) is not None:
            if not self.line:
                self._start(line)
            elif line:
                self.fields.add(line)
            else:
                return True
        return False

    def _start(self, line: bytes) -> None:
        match = _STATUS_LINE.fullmatch(line)
        if match is None:
            raise HttpError("http.framing")
        self.line, self.version, self.status = line, match[1], int(match[2])

    @property
    def interim(self) -> bool:
        return self.status < 200

    @property
    def websocket(self) -> bool:
        """The connection changes to WebSocket (RFC 6455 section 4.2.2)."""
        return (
            self.status == _SWITCHING
            and [value.lower() for value in self.fields.all(b"upgrade")] == [b"websocket"]
            and b"upgrade" in self.fields.tokens(b"connection")
        )

    def body(self, method: bytes) -> BodyFramer | None:
        """What comes after this head, None when only the origin's close ends it. Raises HttpError."""
        length = self.fields.length(self.version)
        if self.interim or self.status == _NO_CONTENT:
            if length != 0:
                raise HttpError("http.framing")  # must not stand there, and some would wait for it
            return BodyFramer(0)
        if method == b"HEAD" or self.status == _NOT_MODIFIED:
            return BodyFramer(0)
        if length == 0 and b"content-length" not in self.fields:
            return None
        return BodyFramer(length, lenient=True)

    def forwarded(self, *last: bytes) -> bytes:
        """The head for the client: our version, no field that was meant for us, and `last`."""
        lines = [b"HTTP/1.1" + self.line[8:]]
        lines += [
            name + b": " + value for name, value in self.fields.end_to_end() if name.lower() != b"upgrade"
        ]
        return b"\r\n".join([*lines, *last]) + b"\r\n\r\n"


class _State(Enum):
    HEAD = auto()
    BODY = auto()
    OPAQUE = auto()
    DONE = auto()


class Answer:
    """The answer to one request. `take` gives what goes on of the origin's bytes.

    `method` is that of the request; `upgrade` says that it asked for WebSocket, `old` that it was
    one of HTTP/1.0, and `persistent` that its client would stay. `growth` is by how many bytes the
    heads that went on differ from those that came. Raises HttpError(`http.switched`) for a change
    of protocol that nobody asked for.
    """

    def __init__(self, method: bytes, *, upgrade: bool, persistent: bool, old: bool) -> None:
        self._method = method
        self._upgrade = upgrade
        self._persistent = persistent
        self._old = old
        self._state = _State.HEAD
        self._head = AnswerHead()
        self._framer = BodyFramer(0)
        self.switched = False
        self.growth = 0

    @property
    def begun(self) -> bool:
        """The final answer, or what stands in its place, has begun to go on."""
        return self._state is not _State.HEAD

    @property
    def done(self) -> bool:
        """The answer is complete: nothing more passes."""
        return self._state is _State.DONE

    @property
    def opaque(self) -> bool:
        """All further bytes pass as they are, until the origin closes."""
        return self._state is _State.OPAQUE

    @property
    def reusable(self) -> bool:
        """The client may send its next request."""
        return self.done and self._persistent

    def take(self, data: bytes | memoryview) -> bytes | memoryview:
        if self._state is not _State.HEAD:
            return self._take_body(data)
        out = bytearray()
        left = data
        while left and self._state is _State.HEAD:
            head = self._head
            try:
                if not head.feed(left):
                    return bytes(out)
                passing = self._judge(head)
            except HttpError as error:
                if error.code == "http.switched":
                    raise
                self._state = _State.OPAQUE
                return bytes(out + head.raw)
            self.growth += len(passing) - head.size
            out += passing
            left = head.rest
            self._head = AnswerHead()
        out += self._take_body(left)
        return bytes(out)

    def _judge(self, head: AnswerHead) -> bytes:
        """The head as it goes on. Raises HttpError when its meaning is in doubt."""
        if head.status == _SWITCHING:
            if not self._upgrade or not head.websocket:
                raise HttpError("http.switched")
            self._state = _State.OPAQUE
            self.switched = True
            return head.forwarded(b"Connection: Upgrade", b"Upgrade: websocket")
        framer = head.body(self._method)
        if head.interim:
            return b"" if self._old else head.forwarded()  # RFC 9110 section 15.2
        if framer is None:
            out = head.forwarded(b"Connection: close")
            self._state = _State.OPAQUE
            return out
        out = head.forwarded() if self._persistent else head.forwarded(b"Connection: close")
        self._framer = framer
        self._state = _State.DONE if framer.done else _State.BODY
        return out

    def _take_body(self, data: bytes | memoryview) -> bytes | memoryview:
        if self._state is _State.OPAQUE:
            return data
        if self._state is not _State.BODY:
            return b""
        try:
            used = self._framer.take(data)
        except HttpError:
            self._state = _State.OPAQUE
            return data
        if self._framer.done:
            self._state = _State.DONE
        return data[:used]
