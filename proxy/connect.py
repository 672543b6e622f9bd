"""The request head of an HTTP/1.1 forward proxy: CONNECT and absolute-form (RFC 9112, sans-I/O).

The target in the request line decides where a request goes; `Host` never does. A request of
HTTP/1.0 goes on as one, so that no answer comes back chunked to a client that cannot read it.
"""

from __future__ import annotations

import re
from base64 import b64decode
from dataclasses import dataclass, field

from exeat.policy.addresses import format_address
from exeat.policy.model import Address
from exeat.policy.names import MalformedError, parse_authority, parse_host
from exeat.proxy.fields import TOKEN, Fields, HeadLines, HttpError

DEFAULT_PORT = 80

_VISIBLE = re.compile(rb"[\x21-\x7e]+")
_WEBSOCKET = b"ws"  # a scheme that some clients say for an Upgrade (RFC 6455 section 3)
_VERSIONS = (b"HTTP/1.1", b"HTTP/1.0")

Target = tuple[str | Address, int, bytes]  # host, port, path


@dataclass(frozen=True, slots=True)
class RequestHead:
    """A complete head.

    `upstream` is what goes to the origin in its place: empty for CONNECT, else the request in
    origin-form with our own Host. `length` is the body's Content-Length in bytes, None when it
    is chunked. `upgrade`: the client would go on with WebSocket. `persistent`: it may send
    another request on this connection. `expects`: it waits for `100 Continue` before its body.
    `old`: it speaks HTTP/1.0. `credentials`: the name and password it gives for itself.
    """

    method: bytes
    host: str | Address
    port: int
    connect: bool
    upstream: bytes
    length: int | None
    upgrade: bool = False
    persistent: bool = False
    expects: bool = False
    old: bool = False
    credentials: tuple[bytes, bytes] | None = field(default=None, repr=False)


class HeadParser:
    """`feed` bytes until it returns a head; `rest` then holds what followed it.

    Raises HttpError, after which the parser must not be fed again.
    """

    def __init__(self) -> None:
        self._lines = HeadLines()
        self._request_line: tuple[bytes, bytes, bytes] | None = None
        self._target: Target | None = None
        self._fields = Fields()
        self.rest = b""

    @property
    def consumed(self) -> int:
        """Bytes of the head itself, without `rest`."""
        return self._lines.used

    def feed(self, data: bytes) -> RequestHead | None:
        self._lines.feed(data)
        while (line := self._lines.next()) is not None:
            if self._request_line is None:
                self._start(line)
            elif line:
                self._fields.add(line)
            else:
                self.rest = self._lines.rest
                return self._finish()
        return None

    def _start(self, line: bytes) -> None:
        method, target, version = request_line(line)
        self._target = self._aim(method, target)
        self._request_line = (method, target, version)

    def _aim(self, method: bytes, target: bytes) -> Target:
        """Where the request line says that it goes. Raises HttpError."""
        return _connect_target(target) if method == b"CONNECT" else _absolute_target(method, target)

    def _located(self, target: Target, _fields: Fields) -> Target:
        """Where it goes, now that the fields are known. Raises HttpError."""
        return target

    def _finish(self) -> RequestHead:
        if self._request_line is None or self._target is None:
            raise HttpError("http.request_line")
        method, target, version = self._request_line
        fields = self._fields
        length, upgrade = framing(fields, method, version)
        host, port, path = self._located(self._target, fields)
        if method == b"CONNECT":
            if length != 0:
                raise HttpError("http.connect_body")
            credentials = basic_credentials(fields)
            return RequestHead(
                method, host, port, connect=True, upstream=b"", length=0, credentials=credentials
            )
        if target.partition(b":")[0].lower() == _WEBSOCKET and not upgrade:
            raise HttpError("http.scheme")
        if version == b"HTTP/1.1" and b"host" not in fields:
            raise HttpError("http.host_missing")
        return RequestHead(
            method,
            host,
            port,
            connect=False,
            upstream=_origin_form(b"%s %s %s" % (method, path, version), host, port, fields, upgrade=upgrade),
            length=length,
            upgrade=upgrade,
            persistent=version == b"HTTP/1.1"
            and b"close" not in fields.tokens(b"connection") | fields.tokens(b"proxy-connection"),
            expects=b"expect" in fields,
            old=version == b"HTTP/1.0",
            credentials=basic_credentials(fields),
        )


def basic_credentials(fields: Fields) -> tuple[bytes, bytes] | None:
    """User-id and password of Proxy-Authorization (RFC 7617 section 2), None if they do not stand there."""
    values = fields.all(b"proxy-authorization")
    if len(values) != 1:
        return None
    scheme, _, token = values[0].partition(b" ")
    if scheme.lower() != b"basic":
        return None
    try:
        name, colon, password = b64decode(token.strip(b" "), validate=True).partition(b":")
    except ValueError:
        return None
    return (name, password) if colon else None


def request_line(line: bytes) -> tuple[bytes, bytes, bytes]:
    """Method, target and version of a request line (RFC 9112 section 3). Raises HttpError."""
    parts = line.split(b" ")
    if len(parts) != 3 or parts[2] not in _VERSIONS:
        raise HttpError("http.version" if _looks_versioned(parts) else "http.request_line")
    method, target, version = parts
    if not TOKEN.fullmatch(method) or not _VISIBLE.fullmatch(target):
        raise HttpError("malformed.non_ascii_host" if _non_ascii(target) else "http.request_line")
    return method, target, version


def framing(fields: Fields, method: bytes, version: bytes) -> tuple[int | None, bool]:
    """The body's length as in RequestHead, and whether the client asks for WebSocket.

    WebSocket (RFC 6455 section 4.1) is the one protocol an HTTP/1.1 connection may change to:
    after h2c, requests would go by that nobody judges.
    """
    if len(fields.all(b"host")) > 1:
        raise HttpError("http.host_twice")
    length = fields.length(version)
    if b"upgrade" not in fields and b"http2-settings" not in fields:
        return length, False
    asked = fields.all(b"upgrade")
    if (
        [value.lower() for value in asked] != [b"websocket"]
        or b"http2-settings" in fields
        or b"upgrade" not in fields.tokens(b"connection")
        or (method, version, length) != (b"GET", b"HTTP/1.1", 0)
    ):
        raise HttpError("http.upgrade")
    return length, True


def _looks_versioned(parts: list[bytes]) -> bool:
    return len(parts) == 2 or (len(parts) == 3 and parts[2].startswith(b"HTTP/"))


def _non_ascii(raw: bytes) -> bool:
    return any(byte >= 0x80 for byte in raw)


def _connect_target(target: bytes) -> Target:
    try:
        host, port = parse_authority(target)
    except MalformedError as error:
        raise HttpError(error.code) from None
    return host, port, b""


def _absolute_target(method: bytes, target: bytes) -> Target:
    scheme, separator, rest = target.partition(b"://")
    if not separator:
        raise HttpError("http.target_form")
    if scheme.lower() not in (b"http", _WEBSOCKET):
        raise HttpError("http.scheme")
    if b"#" in rest:
        raise HttpError("malformed.host")
    cut = min((i for i in (rest.find(b"/"), rest.find(b"?")) if i >= 0), default=len(rest))
    authority, path = rest[:cut], rest[cut:]
    try:
        if has_port(authority):
            host, port = parse_authority(authority)
        else:
            host, port = parse_host(authority), DEFAULT_PORT
    except MalformedError as error:
        raise HttpError(error.code) from None
    if not path and method == b"OPTIONS":
        return host, port, b"*"  # RFC 9112 section 3.2.4
    return host, port, path if path.startswith(b"/") else b"/" + path


def has_port(authority: bytes) -> bool:
    return b":" in (authority.rpartition(b"]")[2] if authority.startswith(b"[") else authority)


def host_field(host: str | Address, port: int) -> bytes:
    """The value of `Host` for a target: brackets for IPv6, no port when it is 80."""
    if isinstance(host, Address):
        text = format_address(host)
        text = f"[{text}]" if host.family == 6 else text
    else:
        text = host
    return (text if port == DEFAULT_PORT else f"{text}:{port}").encode("ascii")


def _origin_form(line: bytes, host: str | Address, port: int, fields: Fields, *, upgrade: bool) -> bytes:
    """What the origin gets: one request on a connection of its own, which ends with the answer."""
    lines = [line, b"Host: " + host_field(host, port)]
    for name, value in fields.end_to_end():
        if name.lower() not in (b"host", b"upgrade"):
            lines.append(name + b": " + value)
    lines += [b"Connection: Upgrade", b"Upgrade: websocket"] if upgrade else [b"Connection: close"]
    return b"\r\n".join(lines) + b"\r\n\r\n"
