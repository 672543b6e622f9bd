"""The ClientHello of a QUIC connection, out of its Initial packets (RFC 9000, 9001; version 2: RFC 9369).

Sans-I/O. Initial packets are sealed with keys that follow from the first Destination Connection ID of
the client, so anybody on the path may open them; nothing later is opened here. A hello may be spread
over several datagrams in any order, and one UDP flow could begin a second connection to another name
at any time: so every Initial packet of the client is looked at for as long as the flow lives, and
must belong to the one connection whose hello was judged.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from exeat.proxy.client_hello import MAX_HELLO, ClientHello, HelloError, parse_body

if TYPE_CHECKING:
    from collections.abc import Iterator

LEAST_DATAGRAM: Final = 1200  # RFC 9000 section 14.1: a server drops Initials in smaller ones
_MAX_STREAM: Final = 2 * (MAX_HELLO + 4)  # a hello, and the one that answers a HelloRetryRequest
_MAX_CID: Final = 20
_MAX_PACKETS: Final = 8  # of one datagram; a client has no use for more than three or four
_MAX_FRAMES: Final = 256  # of one packet; that many, of one byte each, nobody else would send
_TAG: Final = 16
_LONG, _FIXED = 0x80, 0x40
_PADDING, _PING, _ACK, _ACK_ECN, _CRYPTO, _CLOSE = 0x00, 0x01, 0x02, 0x03, 0x06, 0x1C
_CLIENT_HELLO: Final = 1


class Kind(Enum):
    INITIAL = auto()
    ZERO_RTT = auto()
    HANDSHAKE = auto()
    RETRY = auto()


class _Version(NamedTuple):
    """`kinds` in the order of the two type bits of a long header."""

    salt: bytes
    label: bytes
    kinds: tuple[Kind, ...]


# RFC 9001 section 5.2 and RFC 9369 sections 3.2, 3.3.1.
_VERSIONS: Final = {
    0x00000001: _Version(
        bytes.fromhex("38762cf7f55934b34d179ae6a4c80cadccbb7f0a"),
        b"quic",
        (Kind.INITIAL, Kind.ZERO_RTT, Kind.HANDSHAKE, Kind.RETRY),
    ),
    0x6B3343CF: _Version(
        bytes.fromhex("0dede3def700a6db819381be6e269dcbf9bd2ed9"),
        b"quicv2",
        (Kind.RETRY, Kind.INITIAL, Kind.ZERO_RTT, Kind.HANDSHAKE),
    ),
}


def _malformed() -> HelloError:
    return HelloError("quic.malformed")


class _Reader:
    """A cursor over bytes; every read that does not fit is `quic.malformed`."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self._data = data
        self.at = at

    @property
    def left(self) -> int:
        return len(self._data) - self.at

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise _malformed()
        self.at += count
        return self._data[self.at - count : self.at]

    def byte(self) -> int:
        return self.take(1)[0]

    def varint(self) -> int:
        """RFC 9000 section 16."""
        first = self.byte()
        rest = self.take((1 << (first >> 6)) - 1)
        return int.from_bytes(bytes((first & 0x3F,)) + rest, "big")

    def connection_id(self) -> bytes:
        length = self.byte()
        if length > _MAX_CID:
            raise _malformed()
        return self.take(length)

    def skip_zeros(self) -> None:
        rest = self._data[self.at :]
        self.at += len(rest) - len(rest.lstrip(b"\0"))


@dataclass(frozen=True, slots=True)
class _Packet:
    """A packet with a long header: `data` is all of it, its packet number begins at `number_at`."""

    kind: Kind
    version: int
    destination: bytes
    source: bytes
    data: bytes
    number_at: int


def _packets(datagram: bytes) -> Iterator[_Packet]:
    """The long-header packets of a datagram, as far as they go (RFC 9000 sections 12.2, 17.2).

    Raises HelloError for a version that is not known here and for what cannot be parsed.
    """
    start = count = 0
    while start < len(datagram) and datagram[start] & _LONG:
        if count == _MAX_PACKETS:
            raise _malformed()  # each costs us a decryption
        packet = _long_packet(datagram, start)
        yield packet
        start += len(packet.data)
        count += 1


def _long_packet(datagram: bytes, start: int) -> _Packet:
    reader = _Reader(datagram, start)
    first = reader.byte()
    version = int.from_bytes(reader.take(4), "big")
    known = _VERSIONS.get(version)
    if known is None:
        raise HelloError("quic.version")
    if not first & _FIXED:
        raise _malformed()
    kind = known.kinds[first >> 4 & 3]
    destination, source = reader.connection_id(), reader.connection_id()
    if kind is Kind.RETRY:
        reader.at = len(datagram)
        return _Packet(kind, version, destination, source, datagram[start:], 0)
    if kind is Kind.INITIAL:
        reader.take(reader.varint())  # token
    length = reader.varint()
    number_at = reader.at - start
    reader.take(length)
    return _Packet(kind, version, destination, source, datagram[start : reader.at], number_at)


class _Keys:
    """What seals the client's Initial packets (RFC 9001 sections 5.2 to 5.4)."""

    def __init__(self, version: _Version, destination: bytes) -> None:
        extract = hmac.HMAC(version.salt, hashes.SHA256())
        extract.update(destination)
        secret = _expand(extract.finalize(), b"client in", 32)
        self._aead = AESGCM(_expand(secret, version.label + b" key", 16))
        self._iv = int.from_bytes(_expand(secret, version.label + b" iv", 12), "big")
        self._mask = Cipher(algorithms.AES(_expand(secret, version.label + b" hp", 16)), modes.ECB())  # noqa: S305 (one block, as RFC 9001 5.4.3 has it)

    def open(self, packet: _Packet, largest: int) -> tuple[int, bytes] | None:
        """Packet number and frames; None when these are not the keys of this packet."""
        data, at = bytearray(packet.data), packet.number_at
        if len(data) < at + 4 + _TAG:
            raise _malformed()
        encryptor = self._mask.encryptor()
        mask = encryptor.update(packet.data[at + 4 : at + 20])
        data[0] ^= mask[0] & 0x0F
        width = (data[0] & 3) + 1
        for offset in range(width):
            data[at + offset] ^= mask[1 + offset]
        end = at + width
        number = _full_number(int.from_bytes(data[at:end], "big"), 8 * width, largest)
        nonce = (self._iv ^ number).to_bytes(12, "big")
        try:
            return number, self._aead.decrypt(nonce, packet.data[end:], bytes(data[:end]))
        except InvalidTag:
            return None


def _expand(secret: bytes, label: bytes, length: int) -> bytes:
    """HKDF-Expand-Label with an empty context (RFC 8446 section 7.1)."""
    label = b"tls13 " + label
    info = length.to_bytes(2, "big") + bytes((len(label),)) + label + b"\0"
    return HKDFExpand(hashes.SHA256(), length, info).derive(secret)


def _full_number(truncated: int, bits: int, largest: int) -> int:
    """RFC 9000 appendix A.3; `largest` is -1 before the first packet."""
    expected, window = largest + 1, 1 << bits
    candidate = expected & ~(window - 1) | truncated
    if candidate + window // 2 <= expected and candidate < (1 << 62) - window:
        return candidate + window
    if candidate > expected + window // 2 and candidate >= window:
        return candidate - window
    return candidate


def _crypto_frames(payload: bytes) -> Iterator[tuple[int, bytes]]:
    """(offset, data) of the CRYPTO frames; only what an Initial packet may carry (RFC 9000 12.4)."""
    reader = _Reader(payload)
    count = 0
    while reader.left:
        count += 1
        if count > _MAX_FRAMES:
            raise _malformed()
        kind = reader.byte()
        if kind == _PADDING:
            reader.skip_zeros()
        elif kind in (_ACK, _ACK_ECN):
            _skip_ack(reader, ecn=kind == _ACK_ECN)
        elif kind == _CRYPTO:
            offset = reader.varint()
            yield offset, reader.take(reader.varint())
        elif kind == _CLOSE:
            reader.varint(), reader.varint()
            reader.take(reader.varint())
        elif kind != _PING:
            raise _malformed()


def _skip_ack(reader: _Reader, *, ecn: bool) -> None:
    reader.varint(), reader.varint()
    ranges = reader.varint()
    if ranges > reader.left:  # each is at least two bytes: no loop by announcement
        raise _malformed()
    for _ in range(1 + 2 * ranges + 3 * ecn):
        reader.varint()


class _Stream:
    """The client's CRYPTO data, put together from pieces in any order."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._known = bytearray()  # 1 where a byte has come

    def put(self, offset: int, piece: bytes) -> None:
        """Raises HelloError where a byte comes again as another: which one the server takes is not known."""
        end = offset + len(piece)
        if end > _MAX_STREAM:
            raise HelloError("tls.too_large")
        grow = max(0, end - len(self.data))
        self.data += bytes(grow)
        self._known += bytes(grow)
        for old, new, known in zip(self.data[offset:end], piece, self._known[offset:end], strict=True):
            if known and old != new:
                raise _malformed()
        self.data[offset:end] = piece
        self._known[offset:end] = b"\1" * len(piece)

    @property
    def whole(self) -> int:
        """How many bytes from the beginning are there without a gap."""
        gap = self._known.find(0)
        return len(self._known) if gap < 0 else gap


class QuicWatch:
    """The datagrams of one UDP flow to a QUIC port. After a HelloError the flow is to be ended."""

    def __init__(self) -> None:
        self._first: bytes | None = None  # Destination Connection ID of the first Initial
        self._keys: dict[tuple[int, bytes], _Keys] = {}
        self._origins: list[bytes] = []  # connection ids that keys may follow from
        self._stream = _Stream()
        self._hellos: list[ClientHello] = []
        self._read = 0  # bytes of the stream that are whole messages already looked at
        self._largest = -1

    def client(self, datagram: bytes) -> ClientHello | None:
        """Look at a datagram before it goes out. The hello, once; until then hold what came.

        Raises HelloError (`quic.*`, `tls.*`) for what must not go out.
        """
        if self._hellos and not (datagram and datagram[0] & _LONG):
            return None  # of a connection that is known: no new one begins like this
        before = len(self._hellos)
        for number, packet in enumerate(self._long_packets(datagram)):
            if packet.kind is Kind.RETRY:
                raise _malformed()
            if packet.kind is Kind.INITIAL:
                if not self._hellos and len(datagram) < LEAST_DATAGRAM:
                    raise _malformed()
                self._initial(packet)
            elif self._first is None and number == 0:
                raise HelloError("quic.not_quic")  # nothing that a connection begins with
        return self._hellos[0] if self._hellos and not before else None

    def server(self, datagram: bytes) -> None:
        """Take note of a Retry: it alone changes what the client's Initial keys follow from."""
        if not datagram or not datagram[0] & _LONG or len(self._origins) > 1:
            return
        try:
            packet = next(_packets(datagram), None)
        except HelloError:
            return  # version negotiation, or nothing of ours: it is the client's to make sense of
        if packet is not None and packet.kind is Kind.RETRY:
            self._origins.append(packet.source)

    def _long_packets(self, datagram: bytes) -> Iterator[_Packet]:
        if not datagram or not datagram[0] & _LONG:
            raise HelloError("quic.not_quic")
        return _packets(datagram)

    def _initial(self, packet: _Packet) -> None:
        if self._first is None:
            self._first = packet.destination
            self._origins.append(packet.destination)
        elif not self._hellos and packet.destination != self._first:
            raise HelloError("quic.second_connection")
        opened = self._open(packet)
        if opened is None:
            raise HelloError("quic.second_connection" if self._hellos else "quic.malformed")
        number, payload = opened
        self._largest = max(self._largest, number)
        for offset, piece in _crypto_frames(payload):
            self._stream.put(offset, piece)
        self._read_hellos()

    def _open(self, packet: _Packet) -> tuple[int, bytes] | None:
        """With the keys of this connection: those of another would be a connection not judged."""
        for origin in self._origins:
            key = (packet.version, origin)
            if key not in self._keys:
                self._keys[key] = _Keys(_VERSIONS[packet.version], origin)
            opened = self._keys[key].open(packet, self._largest)
            if opened is not None:
                return opened
        return None

    def _read_hellos(self) -> None:
        judged = len(self._hellos)  # as of this packet: the server has been able to answer those
        while rest := self._stream.data[self._read : self._stream.whole]:
            if len(self._hellos) > judged or judged > 1:
                raise HelloError("tls.malformed")  # after a hello nothing comes before its answer
            if rest[0] != _CLIENT_HELLO:
                raise HelloError("tls.malformed")
            if len(rest) < 4:
                return
            length = int.from_bytes(rest[1:4], "big")
            if length > MAX_HELLO:
                raise HelloError("tls.too_large")
            if len(rest) < 4 + length:
                return
            self._add(parse_body(bytes(rest[4 : 4 + length])))
            self._read += 4 + length

    def _add(self, hello: ClientHello) -> None:
        """The second hello answers a HelloRetryRequest; it may not claim another name (RFC 8446 4.1.2)."""
        if self._hellos and hello != self._hellos[0]:
            raise HelloError("tls.two_names")
        self._hellos.append(hello)
