"""The two ways to name a destination, behind one face: HTTP and SOCKS5 on the same port.

Told apart by the first byte. Sans-I/O: bytes in, `Arrival` out; the answers of each door are its
own (a status line, a reply code).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

from exeat.proxy import refusal, socks5
from exeat.proxy.connect import HeadParser
from exeat.proxy.fields import HttpError
from exeat.proxy.socks5 import SocksError, SocksParser

if TYPE_CHECKING:
    from exeat.policy.model import Address
    from exeat.proxy.connect import RequestHead
    from exeat.proxy.refusal import Refusal
    from exeat.proxy.socks5 import Check

MAX_KNOWN: Final = 1024  # CONNECT heads
MAX_KNOWN_HEAD: Final = 512  # bytes of each
ESTABLISHED: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"


class DoorError(Exception):
    """Not a request. `answer` is to be sent before closing, None for the door's own refusal."""

    def __init__(self, code: str, answer: bytes | None = None) -> None:
        super().__init__(code)
        self.code = code
        self.answer = answer


@dataclass(frozen=True, slots=True)
class Arrival:
    """Where the client wants to go, and the name and password it gives for itself.

    `rest` is what it sent after asking. `asked` is the request of absolute-form HTTP, None for a
    tunnel.
    """

    source: str  # connect, http, socks5
    host: str | Address
    port: int
    rest: bytes
    consumed: int  # bytes of the client that were the asking itself
    asked: RequestHead | None = None
    credentials: tuple[bytes, bytes] | None = field(default=None, repr=False)
    udp: bool = False  # the client asks for a UDP association and says where it will send from

    @property
    def tunnel(self) -> bool:
        return self.asked is None


class Door(Protocol):
    def feed(self, data: bytes) -> tuple[bytes, Arrival | None]:
        """Bytes to send back now, and the arrival when it is complete. Raises DoorError."""
        ...

    def established(self) -> bytes: ...

    def refused(self, why: Refusal, asked: RequestHead | None, *, stays: bool) -> bytes:
        """The door's answer; `stays`: the client may send another request after it."""
        ...


def read_head(parser: HeadParser, data: bytes) -> RequestHead | None:
    """The head of a request, once it is complete. Raises DoorError."""
    try:
        return parser.feed(data)
    except HttpError as error:
        raise DoorError(error.code) from None


def http_refusal(why: Refusal, asked: RequestHead | None, *, stays: bool) -> bytes:
    """The answer to a refused request: without a body where it was HEAD."""
    return refusal.http_answer(why, body=asked is None or asked.method != b"HEAD", stays=stays)


class HttpDoor:
    """Clients say the same CONNECT again and again: what it means is remembered by its very bytes."""

    _known: ClassVar[dict[bytes, Arrival]] = {}

    def __init__(self) -> None:
        self._parser: HeadParser | None = None  # until something has been heard

    def feed(self, data: bytes) -> tuple[bytes, Arrival | None]:
        if self._parser is not None:
            return b"", self._parse(self._parser, data)
        arrival = self._known.get(data)
        if arrival is None:
            self._parser = HeadParser()
            arrival = self._parse(self._parser, data)
            if arrival is not None and arrival.asked is None:
                self._remember(data, arrival)
        return b"", arrival

    def _parse(self, parser: HeadParser, data: bytes) -> Arrival | None:
        head = read_head(parser, data)
        if head is None:
            return None
        source = "connect" if head.connect else "http"
        asked = None if head.connect else head
        return Arrival(source, head.host, head.port, parser.rest, parser.consumed, asked, head.credentials)

    def _remember(self, data: bytes, arrival: Arrival) -> None:
        """Not with what follows the head, and no secrets."""
        if arrival.rest or len(data) > MAX_KNOWN_HEAD or b"authorization" in data.lower():
            return
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        self._known[data] = arrival

    def established(self) -> bytes:
        return ESTABLISHED

    def refused(self, why: Refusal, asked: RequestHead | None, *, stays: bool) -> bytes:
        return http_refusal(why, asked, stays=stays)


class SocksDoor:
    def __init__(self, check: Check | None) -> None:
        self._parser = SocksParser(check)

    def feed(self, data: bytes) -> tuple[bytes, Arrival | None]:
        try:
            out, request = self._parser.feed(data)
        except SocksError as error:
            raise DoorError(error.code, error.answer) from None
        if request is None:
            return out, None
        parser = self._parser
        return out, Arrival(
            "socks5", request.host, request.port, parser.rest, parser.consumed, udp=request.udp
        )

    def established(self) -> bytes:
        return socks5.reply(socks5.SUCCEEDED)

    def refused(self, why: Refusal, asked: RequestHead | None, *, stays: bool) -> bytes:
        return refusal.socks_answer(why)


def open_door(first: int, check: Check | None = None) -> Door:
    """By the first byte; `check` as in SocksParser.

    Raises DoorError for what neither door takes (SOCKS4, TLS, noise).
    """
    if first == socks5.VERSION:
        return SocksDoor(check)
    if first == 4:
        raise DoorError("socks.version", b"")
    if not 0x21 <= first <= 0x7E:
        raise DoorError("http.request_line")
    return HttpDoor()
