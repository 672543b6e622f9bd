"""What a client may say first inside a tunnel, judged before the other side hears it (sans-I/O).

On TLS ports the first bytes must be one complete ClientHello. Elsewhere a client that begins
like TLS is held to the same, and one that begins like an HTTP/1 request must name the tunnel's
own host and must not CONNECT further. Anything else on such a port is some other protocol and
passes as it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from exeat.proxy.client_hello import ClientHello, HelloError, HelloParser
from exeat.proxy.fields import HttpError
from exeat.proxy.tunnel_requests import TunnelRequests

if TYPE_CHECKING:
    from exeat.policy.model import Address

TLS_PORTS = frozenset({443, 8443})
HTTP_PORT = 80
MAX_HTTP = 16 * 1024

TLS_RECORD = 0x16
_TEXT = re.compile(rb"[\t\r\x20-\xff]*")
# What a request line can look like before it is complete. Off port 80 nothing else is waited for,
# so that protocols whose clients begin with text and no line end are not held up.
_REQUEST_BEGUN = re.compile(rb"[A-Z]{0,32}( +[\x21-\x7e]*( +[HTP/0-9.]{0,8} *\r?)?)?")
_NAMES_METHOD = re.compile(rb"[!-~]{1,32}[ \t]")
_REQUEST_LINE = re.compile(rb"([A-Z]{1,32}) ([\x21-\x7e]+) HTTP/1\.[01]\r\n")


class TunnelError(Exception):
    """These first bytes must not go out; `code` is a reason code."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class Kind(Enum):
    TLS = auto()
    HTTP = auto()
    OTHER = auto()


@dataclass(frozen=True, slots=True)
class FirstBytes:
    """Judged: what they are, the hello when they are TLS, and all bytes read so far, to be sent on.

    Of HTTP, `data` is the first head only; `requests` judges the `rest`, and what comes after it.
    """

    kind: Kind
    data: bytes
    hello: ClientHello | None = None
    requests: TunnelRequests | None = None
    rest: bytes = b""

    def passing(self) -> bytes:
        """All that may go out by now. Raises TunnelError."""
        if self.requests is None:
            return self.data
        try:
            return self.data + self.requests.take(self.rest)
        except HttpError as error:
            raise TunnelError(error.code) from None


class FirstBytesJudge:
    """`feed` client bytes until it returns FirstBytes; raises TunnelError, then feed no more."""

    __slots__ = ("_data", "_given", "_hello", "_host", "_port", "_requests")

    def __init__(self, host: str | Address, port: int) -> None:
        self._host = host
        self._port = port
        self._data = bytearray()
        self._requests: TunnelRequests | None = None  # once it may be HTTP
        self._given = 0  # bytes that `_requests` has had
        self._hello: HelloParser | None = HelloParser() if port in TLS_PORTS else None

    def feed(self, data: bytes) -> FirstBytes | None:
        if not data:
            return None
        if not self._data and data[0] == TLS_RECORD and self._hello is None:
            self._hello = HelloParser()
        self._data += data
        if self._hello is not None:
            return self._feed_hello(self._hello, data)
        if not _may_be_http(self._data, web=self._port == HTTP_PORT):
            return self._passed(Kind.OTHER)
        return self._feed_http()

    @property
    def tls(self) -> bool:
        """The client began to speak TLS: an alert is something it can read."""
        return self._hello is not None and self._data[:1] == bytes((TLS_RECORD,))

    @property
    def incomplete(self) -> str:
        """The reason code for a client that stops in the middle, "" if it has said nothing."""
        if not self._data:
            return ""
        return "http.request_line" if self._hello is None else "tls.malformed"

    def _passed(self, kind: Kind, hello: ClientHello | None = None) -> FirstBytes:
        return FirstBytes(kind, bytes(self._data), hello)

    def _feed_hello(self, parser: HelloParser, data: bytes) -> FirstBytes | None:
        try:
            hello = parser.feed(data)
        except HelloError as error:
            raise TunnelError(error.code) from None
        return None if hello is None else self._passed(Kind.TLS, hello)

    def _feed_http(self) -> FirstBytes | None:
        data = bytes(self._data[:MAX_HTTP])
        # At once, not when the head is complete: by our grammar it might never be.
        line, newline, _ = data.lstrip(b"\r\n \t").partition(b"\n")
        if (newline or not _TEXT.fullmatch(line)) and not _REQUEST_LINE.match(data):
            raise TunnelError("http.request_line")
        end = data.find(b"\r\n\r\n")
        upto = len(self._data) if end < 0 else end + 4
        if self._requests is None:
            self._requests = TunnelRequests(self._host, self._port)
        try:
            self._requests.take(bytes(self._data[self._given : upto]))
        except HttpError as error:
            raise TunnelError(error.code) from None
        self._given = upto
        if end < 0:
            return None
        return FirstBytes(Kind.HTTP, data[:upto], requests=self._requests, rest=bytes(self._data[upto:]))


def _may_be_http(data: bytearray, *, web: bool) -> bool:
    """True while the first line may still be, or is, one that any HTTP server would take.

    Generous on purpose: servers skip empty lines and take bare LF, so what only resembles a
    request line is caught here and then refused for not being exactly one. `web`: on the port
    where HTTP is what one expects, any text is waited for. Elsewhere cleartext HTTP/2 is one more
    protocol that the rule for this port admits.
    """
    text = bytes(data[:MAX_HTTP]).lstrip(b"\r\n \t")
    line, newline, _ = text.partition(b"\n")
    if web:
        # Up to the first byte that no text has, whatever follows it: the answer must be the same
        # for a client that sends byte by byte.
        begun = _TEXT.match(line)
        if begun is not None and begun.end() < len(line):
            return _NAMES_METHOD.match(line, 0, begun.end()) is not None or b"HTTP/" in begun[0].upper()
        return b"HTTP/" in line.upper() if newline else True
    if _REQUEST_BEGUN.fullmatch(line) is None:
        return False
    return b" HTTP/1" in line if newline else True


def request_begun(data: bytearray, *, web: bool) -> bool | None:
    """Is this an HTTP/1 request, or would some server take it for one? None: too early to say."""
    if not _may_be_http(data, web=web):
        return False
    line, newline, _ = bytes(data[:MAX_HTTP]).lstrip(b"\r\n \t").partition(b"\n")
    return True if newline or len(data) >= MAX_HTTP or not _TEXT.fullmatch(line) else None
