"""The request head of an HTTP/1.1 forward proxy: CONNECT and absolute-form (RFC 9112, sans-I/O).

Everything here works on bytes and accepts one spelling only. Two parsers that read the same
bytes differently are how requests get smuggled, so whatever another parser might read in a
second way (bare LF, folded lines, two lengths, an odd Transfer-Encoding) is refused instead of
repaired. The target in the request line decides where a request goes; `Host` never does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from exeat.policy.addresses import format_address
from exeat.policy.model import Address
from exeat.policy.names import MalformedError, parse_authority, parse_host

MAX_HEAD = 16 * 1024  # bytes up to and including the empty line
DEFAULT_PORT = 80

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_VISIBLE = re.compile(rb"[\x21-\x7e]+")
_LENGTH = re.compile(rb"0|[1-9][0-9]{0,17}")
_VERSIONS = (b"HTTP/1.1", b"HTTP/1.0")

# RFC 9110 section 7.6.1, plus the de-facto ones. Everything named Proxy-* goes too.
_HOP_BY_HOP = frozenset({b"connection", b"keep-alive", b"te", b"trailer", b"proxy-connection"})
# A Connection option naming one of these would make us drop the framing or the target.
_UNDROPPABLE = frozenset({b"host", b"content-length", b"transfer-encoding", b"connection"})


class HttpError(Exception):
    """The bytes are not a request we take. `code` is a reason code, e.g. `http.line_ending`."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True, slots=True)
class RequestHead:
    """A complete head.

    `upstream` is what goes to the origin in its place: empty for CONNECT, else the request in
    origin-form with our own Host. `length` is the body's Content-Length in bytes, None when it
    is chunked.
    """

    method: bytes
    host: str | Address
    port: int
    connect: bool
    upstream: bytes
    length: int | None


class HeadParser:
    """`feed` bytes until it returns a head; `rest` then holds what followed it.

    Judges line by line in byte order, so that the verdict does not depend on how the bytes were
    cut. Raises HttpError, after which the parser must not be fed again.
    """

    def __init__(self) -> None:
        self._pending = bytearray()
        self._used = 0
        self._request_line: tuple[bytes, bytes, bytes] | None = None
        self._target: tuple[str | Address, int, bytes] | None = None
        self._fields: list[tuple[bytes, bytes]] = []
        self.rest = b""

    @property
    def consumed(self) -> int:
        """Bytes of the head itself, without `rest`."""
        return self._used

    def feed(self, data: bytes) -> RequestHead | None:
        self._pending += data
        while (line := self._next_line()) is not None:
            if self._request_line is None:
                self._start(line)
            elif line:
                self._fields.append(_field(line))
            else:
                self.rest = bytes(self._pending)
                self._pending.clear()
                return self._finish()
        return None

    def _next_line(self) -> bytes | None:
        room = MAX_HEAD - self._used
        end = self._pending.find(b"\n", 0, room)
        line = bytes(self._pending[: room if end < 0 else end + 1])
        _check_line_bytes(line)
        if end < 0:
            if len(self._pending) >= room:
                raise HttpError("http.head_too_large")
            return None
        del self._pending[: end + 1]
        self._used += end + 1
        return line[:-2]

    def _start(self, line: bytes) -> None:
        parts = line.split(b" ")
        if len(parts) != 3 or parts[2] not in _VERSIONS:
            raise HttpError("http.version" if _looks_versioned(parts) else "http.request_line")
        method, target, version = parts
        if not _TOKEN.fullmatch(method) or not _VISIBLE.fullmatch(target):
            raise HttpError("malformed.non_ascii_host" if _non_ascii(target) else "http.request_line")
        self._target = _connect_target(target) if method == b"CONNECT" else _absolute_target(target)
        self._request_line = (method, target, version)

    def _finish(self) -> RequestHead:
        if self._request_line is None or self._target is None:
            raise HttpError("http.request_line")
        method, _, version = self._request_line
        host, port, path = self._target
        is_connect = method == b"CONNECT"
        length = _framing(self._fields, version)
        if is_connect:
            if length != 0:
                raise HttpError("http.connect_body")
            return RequestHead(method, host, port, connect=True, upstream=b"", length=0)
        if version == b"HTTP/1.1" and not any(name == b"host" for name, _ in self._lowered()):
            raise HttpError("http.host_missing")
        upstream = _origin_form(method, host, port, path, self._fields)
        return RequestHead(method, host, port, connect=False, upstream=upstream, length=length)

    def _lowered(self) -> list[tuple[bytes, bytes]]:
        return [(name.lower(), value) for name, value in self._fields]


def _check_line_bytes(line: bytes) -> None:
    """Refuse NUL, CR not before LF, LF not after CR. A last CR may still get its LF."""
    body = line[:-1] if line.endswith((b"\r", b"\n")) else line
    if line.endswith(b"\n"):
        if not line.endswith(b"\r\n"):
            raise HttpError("http.line_ending")
        body = line[:-2]
    if b"\r" in body or b"\0" in body:
        raise HttpError("http.line_ending")


def _looks_versioned(parts: list[bytes]) -> bool:
    return len(parts) == 2 or (len(parts) == 3 and parts[2].startswith(b"HTTP/"))


def _non_ascii(raw: bytes) -> bool:
    return any(byte >= 0x80 for byte in raw)


def _connect_target(target: bytes) -> tuple[str | Address, int, bytes]:
    try:
        host, port = parse_authority(target)
    except MalformedError as error:
        raise HttpError(error.code) from None
    return host, port, b""


def _absolute_target(target: bytes) -> tuple[str | Address, int, bytes]:
    scheme, separator, rest = target.partition(b"://")
    if not separator:
        raise HttpError("http.target_form")
    if scheme.lower() != b"http":
        raise HttpError("http.scheme")
    if b"#" in rest:
        raise HttpError("malformed.host")
    cut = min((i for i in (rest.find(b"/"), rest.find(b"?")) if i >= 0), default=len(rest))
    authority, path = rest[:cut], rest[cut:]
    try:
        if _has_port(authority):
            host, port = parse_authority(authority)
        else:
            host, port = parse_host(authority), DEFAULT_PORT
    except MalformedError as error:
        raise HttpError(error.code) from None
    return host, port, path if path.startswith(b"/") else b"/" + path


def _has_port(authority: bytes) -> bool:
    return b":" in (authority.rpartition(b"]")[2] if authority.startswith(b"[") else authority)


def _field(line: bytes) -> tuple[bytes, bytes]:
    """One field line (RFC 9112 section 5): a token, a colon at once, a value of printable bytes."""
    name, colon, value = line.partition(b":")
    if not colon or not _TOKEN.fullmatch(name):
        raise HttpError("http.header")  # also a folded line: it begins with white space
    if not _VALUE.fullmatch(value):
        raise HttpError("http.header")
    return name, value.strip(b" \t")


def _framing(fields: list[tuple[bytes, bytes]], version: bytes) -> int | None:
    """Content-Length, None for chunked, 0 for neither; refuses anything with two readings."""
    seen: dict[bytes, list[bytes]] = {}
    for name, value in fields:
        seen.setdefault(name.lower(), []).append(value)
    if len(seen.get(b"host", ())) > 1:
        raise HttpError("http.host_twice")
    if b"upgrade" in seen or b"http2-settings" in seen:
        raise HttpError("http.upgrade")
    lengths = seen.get(b"content-length", [])
    codings = seen.get(b"transfer-encoding", [])
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


def host_field(host: str | Address, port: int) -> bytes:
    """The value of `Host` for a target: brackets for IPv6, no port when it is 80."""
    if isinstance(host, Address):
        text = format_address(host)
        text = f"[{text}]" if host.family == 6 else text
    else:
        text = host
    return (text if port == DEFAULT_PORT else f"{text}:{port}").encode("ascii")


def _origin_form(
    method: bytes, host: str | Address, port: int, path: bytes, fields: list[tuple[bytes, bytes]]
) -> bytes:
    dropped = _HOP_BY_HOP | _connection_options(fields)
    lines = [b"%s %s HTTP/1.1" % (method, path), b"Host: " + host_field(host, port)]
    for name, value in fields:
        lowered = name.lower()
        if lowered == b"host" or lowered in dropped or lowered.startswith(b"proxy-"):
            continue
        lines.append(name + b": " + value)
    lines.append(b"Connection: close")
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _connection_options(fields: list[tuple[bytes, bytes]]) -> frozenset[bytes]:
    options: set[bytes] = set()
    for name, value in fields:
        if name.lower() != b"connection":
            continue
        options.update(option.strip(b" \t").lower() for option in value.split(b","))
    if options & _UNDROPPABLE:
        raise HttpError("http.header")
    return frozenset(options)
