"""What a client that asked nobody says first, read for the name of its destination (sans-I/O).

`feed` gives the arrival as soon as the bytes say where they are for, or say that they never will.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from exeat.policy.model import Address
from exeat.policy.names import MalformedError, parse_authority, parse_host
from exeat.proxy import refusal
from exeat.proxy.client_hello import HelloError, HelloParser
from exeat.proxy.connect import HeadParser, has_port
from exeat.proxy.doors import Arrival, DoorError, http_refusal, read_head
from exeat.proxy.fields import HttpError
from exeat.proxy.first_bytes import HTTP_PORT, TLS_PORTS, TLS_RECORD, request_begun

if TYPE_CHECKING:
    from exeat.proxy.connect import RequestHead, Target
    from exeat.proxy.fields import Fields
    from exeat.proxy.refusal import Refusal


class RedirectedDoor:
    """The door of one connection to `address`, `port`. `again`: it has carried a request already."""

    def __init__(self, address: Address, port: int, *, again: bool = False) -> None:
        self._address = address
        self._port = port
        self._data = bytearray()
        self._hello = HelloParser() if port in TLS_PORTS else None
        self._http = OriginParser(address, port) if again else None

    def feed(self, data: bytes) -> tuple[bytes, Arrival | None]:
        fresh = data
        self._data += data
        if self._hello is None and self._http is None:
            if self._data[0] == TLS_RECORD:
                self._hello = HelloParser()
            else:
                begun = request_begun(self._data, web=self._port == HTTP_PORT)
                if begun is None:
                    return b"", None
                if not begun:
                    return b"", self.silent()
                self._http = OriginParser(self._address, self._port)
            fresh = bytes(self._data)
        if self._hello is not None:
            return b"", self._read_hello(self._hello, fresh)
        if self._http is not None:
            return b"", self._read_request(self._http, fresh)
        return b"", None

    def silent(self) -> Arrival:
        """The arrival of a client that has not said, and will not say, where it is going."""
        return Arrival("address", self._address, self._port, bytes(self._data), 0)

    @property
    def unfinished(self) -> str:
        """The reason code for a client that stops now; "" if it may as well have nothing to say."""
        if self._http is not None:
            return "http.timeout"
        return "tls.timeout" if self._hello is not None else ""

    def _read_hello(self, parser: HelloParser, data: bytes) -> Arrival | None:
        try:
            hello = parser.feed(data)
        except HelloError as error:
            raise DoorError(error.code) from None
        if hello is None:
            return None
        if hello.sni is None:
            return self.silent()
        return Arrival("sni", hello.sni, self._port, bytes(self._data), 0)

    def _read_request(self, parser: OriginParser, data: bytes) -> Arrival | None:
        head = read_head(parser, data)
        if head is None:
            return None
        return Arrival("host", head.host, head.port, parser.rest, parser.consumed, head)

    def established(self) -> bytes:
        return b""

    def refused(self, why: Refusal, asked: RequestHead | None, *, stays: bool) -> bytes:
        if self._hello is not None and self._data[:1] == bytes((TLS_RECORD,)):
            return refusal.tls_alert(why.reason)
        if self._http is not None or self._port == HTTP_PORT:
            return http_refusal(why, asked, stays=stays)
        return b""


class OriginParser(HeadParser):
    """Requests as an origin gets them (RFC 9112 section 3.2.1): a path, and the host in `Host`."""

    def __init__(self, address: str | Address, port: int) -> None:
        super().__init__()
        self._place = address, port

    def _aim(self, method: bytes, target: bytes) -> Target:
        if method == b"CONNECT":
            raise HttpError("http.nested_connect")
        if (not target.startswith(b"/") and (method, target) != (b"OPTIONS", b"*")) or b"#" in target:
            raise HttpError("http.origin_form")
        return *self._place, target

    def _located(self, target: Target, fields: Fields) -> Target:
        address, port, path = target
        named = fields.all(b"host")
        if not named:  # as HTTP/1.0 may have it
            return target
        try:
            host, said = parse_authority(named[0]) if has_port(named[0]) else (parse_host(named[0]), port)
        except MalformedError as error:
            raise HttpError(error.code) from None
        if said != port or (isinstance(host, Address) and host != address):
            raise HttpError("http.host_mismatch")
        return host, port, path
