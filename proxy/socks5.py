"""SOCKS5 as a server reads it (RFC 1928, RFC 1929), sans-I/O.

CONNECT and UDP ASSOCIATE. Where the socket says who asks, a user name and password are taken and
thrown away; where it does not, `check` is asked about them. BIND gets reply 07, SOCKS4 gets nothing
but a closed connection.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from exeat.policy.addresses import from_packed
from exeat.policy.names import MalformedError, parse_host

if TYPE_CHECKING:
    from exeat.policy.model import Address

VERSION = 5
NO_AUTH, USER_PASS, NONE_ACCEPTABLE = 0x00, 0x02, 0xFF
CONNECT = 1
UDP_ASSOCIATE = 3
IPV4, DOMAIN, IPV6 = 1, 3, 4

SUCCEEDED = 0
GENERAL_FAILURE = 1
NOT_ALLOWED = 2
HOST_UNREACHABLE = 4
CONNECTION_REFUSED = 5
COMMAND_NOT_SUPPORTED = 7
ADDRESS_TYPE_NOT_SUPPORTED = 8


class SocksError(Exception):
    """Not a request we take: a reason code, and the last bytes to send before closing."""

    def __init__(self, code: str, answer: bytes = b"") -> None:
        super().__init__(code)
        self.code = code
        self.answer = answer


@dataclass(frozen=True, slots=True)
class SocksRequest:
    """With `udp`, where the client will send its datagrams from; port 0: it does not say."""

    host: str | Address
    port: int
    udp: bool = False


@dataclass(frozen=True, slots=True)
class Datagram:
    """One datagram of an association (RFC 1928 section 7); `header` is what says where to."""

    header: bytes
    host: str | Address
    port: int
    payload: bytes


def reply(code: int, bound: Address | None = None, port: int = 0) -> bytes:
    """A reply (RFC 1928 section 6); it discloses no bound address but that of an association."""
    address = bytes(4) if bound is None else bound.packed()
    kind = IPV4 if len(address) == 4 else IPV6
    return bytes((VERSION, code, 0, kind)) + address + port.to_bytes(2, "big")


def read_datagram(data: bytes) -> Datagram:
    """Raises SocksError for what is to be dropped, fragments included (FRAG is optional to take)."""
    if len(data) < 5 or data[:3] != b"\0\0\0" or data[3] not in (IPV4, DOMAIN, IPV6):
        raise SocksError("socks.malformed")
    start, size = _extent(data)
    end = start + size + 2
    port = int.from_bytes(data[end - 2 : end], "big")
    if len(data) < end or not port:
        raise SocksError("socks.malformed")
    return Datagram(data[:end], _host(data[3], data[start : start + size]), port, data[end:])


def _extent(data: bytes | bytearray) -> tuple[int, int]:
    """Where the address stands in a request or a datagram, and its size."""
    return {IPV4: (4, 4), IPV6: (4, 16), DOMAIN: (5, data[4])}[data[3]]


Check = Callable[[bytes, bytes], str]


class _State(Enum):
    GREETING = auto()
    AUTH = auto()
    REQUEST = auto()
    DONE = auto()


class SocksParser:
    """`feed` bytes: returns what to send back now, and the request once it is complete.

    `rest` then holds what followed the request. Raises SocksError, after which the parser must
    not be fed again.
    """

    def __init__(self, check: Check | None = None) -> None:
        """`check` gives the reason code why a name and password are not accepted, or ""."""
        self._check = check
        self._buffer = bytearray()
        self._state = _State.GREETING
        self.consumed = 0
        self.rest = b""

    def feed(self, data: bytes) -> tuple[bytes, SocksRequest | None]:
        self._buffer += data
        out = b""
        while True:
            before = self._state
            try:
                if before is _State.REQUEST:
                    return out, self._request()
                out += self._greeting() if before is _State.GREETING else self._auth()
            except SocksError as error:  # what was owed before the error is still owed
                raise SocksError(error.code, out + error.answer) from None
            if self._state is before:
                return out, None

    def _drop(self, count: int) -> None:
        del self._buffer[:count]
        self.consumed += count

    def _greeting(self) -> bytes:
        data = self._buffer
        if data and data[0] != VERSION:
            raise SocksError("socks.version")
        if len(data) < 2 or len(data) < 2 + data[1]:
            return b""
        methods = bytes(data[2 : 2 + data[1]])
        self._drop(2 + data[1])
        if NO_AUTH in methods and self._check is None:
            self._state = _State.REQUEST
            return bytes((VERSION, NO_AUTH))
        if USER_PASS in methods:
            self._state = _State.AUTH
            return bytes((VERSION, USER_PASS))
        raise SocksError("socks.method", bytes((VERSION, NONE_ACCEPTABLE)))

    def _auth(self) -> bytes:
        data = self._buffer
        if data and data[0] != 1:
            raise SocksError("socks.auth")
        if len(data) < 2 or len(data) < 3 + data[1]:
            return b""
        end = 3 + data[1] + data[2 + data[1]]
        if len(data) < end:
            return b""
        name, password = bytes(data[2 : 2 + data[1]]), bytes(data[3 + data[1] : end])
        code = self._check(name, password) if self._check is not None else ""
        if code:
            raise SocksError(code, b"\x01\x01")
        self._drop(end)
        self._state = _State.REQUEST
        return b"\x01\x00"

    def _request(self) -> SocksRequest | None:
        data = self._buffer
        if data and data[0] != VERSION:
            raise SocksError("socks.version", reply(GENERAL_FAILURE))
        if len(data) >= 2 and data[1] not in (CONNECT, UDP_ASSOCIATE):
            raise SocksError("socks.command", reply(COMMAND_NOT_SUPPORTED))
        if len(data) >= 3 and data[2] != 0:
            raise SocksError("socks.malformed", reply(GENERAL_FAILURE))
        if len(data) < 5:
            self._check_address_type()
            return None
        self._check_address_type()
        start, size = _extent(data)
        end = start + size + 2
        if len(data) < end:
            return None
        raw, port = bytes(data[start : start + size]), int.from_bytes(data[end - 2 : end], "big")
        udp = data[1] == UDP_ASSOCIATE
        host = _host(data[3], raw)
        if port == 0 and not udp:
            raise SocksError("malformed.port", reply(NOT_ALLOWED))
        self._drop(end)
        self.rest = bytes(data)
        data.clear()
        self._state = _State.DONE
        return SocksRequest(host, port, udp)

    def _check_address_type(self) -> None:
        if len(self._buffer) >= 4 and self._buffer[3] not in (IPV4, DOMAIN, IPV6):
            raise SocksError("socks.address_type", reply(ADDRESS_TYPE_NOT_SUPPORTED))


def _host(kind: int, raw: bytes) -> str | Address:
    """The same grammar as everywhere: a domain field that is an IP literal counts as that address."""
    if kind != DOMAIN:
        return from_packed(raw)
    try:
        return parse_host(raw)
    except MalformedError as error:
        raise SocksError(error.code, reply(NOT_ALLOWED)) from None
