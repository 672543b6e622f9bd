"""HTTP/1.1 inside a tunnel: each request must name the tunnel's own host (sans-I/O).

The bytes pass as they came, a head once it has been judged. The framing is as strict as at the
proxy's own door, so that the server behind the tunnel begins the next request where we do. An
Upgrade may stand in the first request only: its answer alone is read, and after a 101 the tunnel
speaks another protocol, which nobody reads.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from exeat.policy.names import MalformedError, parse_authority, parse_host
from exeat.proxy.body import BodyFramer
from exeat.proxy.connect import request_line
from exeat.proxy.fields import Fields, HeadLines, HttpError

if TYPE_CHECKING:
    from exeat.policy.model import Address

_WITH_PORT = re.compile(rb".*:[0-9]+")


class TunnelRequests:
    """The client's side. `take` gives the bytes that have been judged; raises HttpError.

    `asking`: an Upgrade waits for its answer, and until then nothing may follow it.
    """

    def __init__(self, host: str | Address, port: int) -> None:
        self._host = host
        self._port = port
        self._body = BodyFramer(0)
        self._raw = bytearray()  # of a head that is not complete
        self._lines = HeadLines()
        self._line: tuple[bytes, bytes, bytes] | None = None
        self._fields = Fields()
        self._requests = 0
        self.asking = False
        self.switched = False

    @property
    def within_head(self) -> bool:
        return bool(self._raw)

    def take(self, data: bytes | memoryview) -> bytes | memoryview:
        if self.switched:
            return data
        out = bytearray()
        left = memoryview(data)
        while left:
            if not self._body.done:
                used = self._body.take(left)
                out += left[:used]
                left = left[used:]
            elif self.asking:
                raise HttpError("http.upgrade")
            else:
                left = self._take_head(left, out)
        return bytes(out)

    def _take_head(self, data: memoryview, out: bytearray) -> memoryview:
        """Feed a head; once it is judged it goes to `out`. What follows it is returned."""
        before = len(self._raw)
        self._raw += data
        self._lines.feed(data)
        while (line := self._lines.next()) is not None:
            if self._line is None:
                self._line = request_line(line)
            elif line:
                self._fields.add(line)
            else:
                size = self._lines.used
                self._judge(*self._line, self._fields)
                out += self._raw[:size]
                self._raw = bytearray()
                self._lines, self._line, self._fields = HeadLines(), None, Fields()
                return data[size - before :]
        return data[:0]

    def _judge(self, method: bytes, target: bytes, version: bytes, fields: Fields) -> None:
        if method == b"CONNECT":
            raise HttpError("http.nested_connect")
        if not target.startswith((b"/", b"*")):
            raise HttpError("http.target_form")
        hosts = fields.all(b"host")
        if not hosts and version == b"HTTP/1.1":
            raise HttpError("http.host_missing")
        if len(hosts) > 1:
            raise HttpError("http.host_twice")
        if hosts and not names_target(hosts[0], self._host, self._port):
            raise HttpError("http.host_mismatch")
        self._body = BodyFramer(fields.length(version))
        if b"upgrade" in fields or b"http2-settings" in fields:
            if self._requests or b"http2-settings" in fields or b"h2c" in fields.tokens(b"upgrade"):
                raise HttpError("http.upgrade")
            self.asking = True
        self._requests += 1


def names_target(raw: bytes, host: str | Address, port: int) -> bool:
    """Whether a Host field means exactly this place; without a port it means the tunnel's."""
    try:
        if _WITH_PORT.fullmatch(raw) and not raw.endswith(b"]"):
            return parse_authority(raw) == (host, port)
        return parse_host(raw) == host
    except MalformedError:
        return False
