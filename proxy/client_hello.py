"""The TLS ClientHello, read before the server sees a byte (RFC 8446 sections 4.1.2, 5.1; RFC 6066).

Sans-I/O, over any cut into records and segments. It decrypts nothing and it does not need to:
it answers which server name the client claims, or why these bytes are not a hello we let out.

ECH (0xfe0d) hides the real name by design, and a GREASE ECH, which Chromium sends when it has
no key, is built so that nobody on the path can tell it from a real one. So the extension is
reported whatever is in it, and the caller refuses it unless a lease allows ECH; browsers in a
jail need it off by policy (`EncryptedClientHelloEnabled: false`).
"""

from __future__ import annotations

from dataclasses import dataclass

from exeat.policy.model import Address
from exeat.policy.names import MalformedError, parse_host

MAX_HELLO = 32 * 1024  # bytes of handshake message; the largest seen in the field are 16 kB
MAX_RAW = 256 * 1024  # bytes on the wire: a hello cut into one-byte records is six times as long
MAX_RECORD = 16 * 1024

_HANDSHAKE, _ALERT, _CHANGE_CIPHER, _DATA = 22, 21, 20, 23
_CLIENT_HELLO = 1
_EXT_SERVER_NAME = 0
_HOST_NAME = 0
# Final ECH, its drafts 08-12, the inner-only reference list, and the older encrypted SNI.
_ECH = frozenset({0xFE0D, 0xFE08, 0xFE09, 0xFE0A, 0xFE0B, 0xFE0C, 0xFD00, 0xFFCE})


class HelloError(Exception):
    """Not a ClientHello we let out. `code` is a reason code beginning with `tls.`."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True, slots=True)
class ClientHello:
    """`sni` is the canonical server name, None when a complete hello carries none."""

    sni: str | None
    ech: bool


class _Reader:
    """A cursor over one message; every read that does not fit is `tls.malformed`."""

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._data = memoryview(data)

    def __len__(self) -> int:
        return len(self._data)

    def take(self, count: int) -> memoryview:
        if count > len(self._data):
            raise HelloError("tls.malformed")
        head, self._data = self._data[:count], self._data[count:]
        return head

    def take_all(self) -> memoryview:
        return self.take(len(self))

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int, *, least: int = 0, most: int = 0xFFFF) -> _Reader:
        """A length-prefixed vector; `size` is that of the prefix, the bounds are in bytes."""
        length = self.number(size)
        if not least <= length <= most:
            raise HelloError("tls.malformed")
        return _Reader(self.take(length))


class HelloParser:
    """`feed` client bytes until it returns the hello; raises HelloError as soon as it cannot be one.

    Bytes are judged in order, so the answer does not depend on how they were cut. What follows
    the record that ends the hello is not looked at.
    """

    def __init__(self) -> None:
        self._record = bytearray()
        self._message = bytearray()
        self._raw = 0

    def feed(self, data: bytes) -> ClientHello | None:
        self._record += data
        while self._whole_record():
            fragment = self._take_record()
            self._message += fragment
            if (hello := self._complete()) is not None:
                return hello
        if self._raw + len(self._record) > MAX_RAW:
            raise HelloError("tls.too_large")
        return None

    def _whole_record(self) -> bool:
        record = self._record
        if record:
            self._check_type(record[0])
        if len(record) >= 2 and record[1] != 3:
            raise HelloError("tls.not_tls")
        if len(record) < 5:
            return False
        length = self._length()
        if not 1 <= length <= MAX_RECORD:
            raise HelloError("tls.malformed")
        self._check_message_head(record[5 : 5 + length])
        return len(record) >= 5 + length

    def _check_type(self, kind: int) -> None:
        if kind == _HANDSHAKE:
            return
        if self._raw and kind in (_DATA, _CHANGE_CIPHER):
            raise HelloError("tls.early_data")
        if self._raw:
            raise HelloError("tls.malformed")
        raise HelloError("tls.sslv2" if kind & 0x80 else "tls.not_tls")

    def _length(self) -> int:
        return int.from_bytes(self._record[3:5], "big")

    def _check_message_head(self, fragment: bytearray) -> None:
        """Say no at the first byte that cannot be right, not after up to 16 MiB of promises."""
        head = (self._message[:4] + fragment[:4])[:4]
        if head and head[0] != _CLIENT_HELLO:
            raise HelloError("tls.malformed")
        if len(head) == 4 and int.from_bytes(head[1:], "big") > MAX_HELLO:
            raise HelloError("tls.too_large")

    def _take_record(self) -> bytes:
        end = 5 + self._length()
        fragment = bytes(self._record[5:end])
        del self._record[:end]
        self._raw += end
        if self._raw > MAX_RAW:
            raise HelloError("tls.too_large")
        return fragment

    def _complete(self) -> ClientHello | None:
        if len(self._message) < 4:
            return None
        length = int.from_bytes(self._message[1:4], "big")
        if len(self._message) < 4 + length:
            return None
        if len(self._message) > 4 + length:
            # A second message in the same record: a second hello would go out unjudged.
            raise HelloError("tls.malformed")
        return parse_body(memoryview(self._message)[4:])


def parse_body(body: bytes | memoryview) -> ClientHello:
    """A ClientHello without its four-byte handshake header."""
    reader = _Reader(body)
    if reader.number(2) not in (0x0300, 0x0301, 0x0302, 0x0303):
        raise HelloError("tls.malformed")
    reader.take(32)
    reader.vector(1, most=32)
    if len(reader.vector(2, least=2, most=0xFFFE)) % 2:
        raise HelloError("tls.malformed")
    reader.vector(1, least=1, most=0xFF)
    if not len(reader):
        return ClientHello(None, ech=False)  # extensions are optional before TLS 1.3
    extensions = reader.vector(2)
    if len(reader):
        raise HelloError("tls.malformed")
    return _judge_extensions(extensions)


def _judge_extensions(extensions: _Reader) -> ClientHello:
    seen: set[int] = set()
    names: _Reader | None = None
    while len(extensions):
        kind = extensions.number(2)
        content = extensions.vector(2)
        if kind in seen:
            raise HelloError("tls.two_names" if kind == _EXT_SERVER_NAME else "tls.malformed")
        seen.add(kind)
        if kind == _EXT_SERVER_NAME:
            names = content
    ech = not _ECH.isdisjoint(seen)
    return ClientHello(None if names is None else _server_name(names), ech=ech)


def _server_name(content: _Reader) -> str:
    names = content.vector(2, least=1)
    if len(content):
        raise HelloError("tls.malformed")
    if names.number(1) != _HOST_NAME:
        raise HelloError("tls.name_type")
    raw = bytes(names.vector(2, least=1).take_all())
    if len(names):
        raise HelloError("tls.two_names")
    if raw.endswith(b"."):  # RFC 6066 section 3: without a trailing dot
        raise HelloError("tls.malformed")
    try:
        host = parse_host(raw)
    except MalformedError as error:
        raise HelloError("tls.sni_ip" if error.code == "malformed.legacy_ip" else "tls.malformed") from None
    if isinstance(host, Address):
        raise HelloError("tls.sni_ip")
    return host
