"""Initial packets of a QUIC client, sealed by hand (RFC 9001 section 5), for what no library would send."""

from __future__ import annotations

import hashlib
import hmac
from typing import NamedTuple

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

SALTS = {
    1: ("38762cf7f55934b34d179ae6a4c80cadccbb7f0a", b"quic"),
    0x6B3343CF: ("0dede3def700a6db819381be6e269dcbf9bd2ed9", b"quicv2"),
}
INITIAL_BITS = {1: 0, 0x6B3343CF: 1}
CID = bytes.fromhex("8394c8f03e515708")


class Keys(NamedTuple):
    key: bytes
    iv: bytes
    hp: bytes


def expand(secret: bytes, label: bytes, length: int) -> bytes:
    """HKDF-Expand-Label; one block of SHA-256 is enough for every length here."""
    label = b"tls13 " + label
    info = length.to_bytes(2, "big") + bytes((len(label),)) + label + b"\0\1"
    return hmac.digest(secret, info, hashlib.sha256)[:length]


def keys(destination: bytes = CID, version: int = 1) -> Keys:
    salt, label = SALTS[version]
    initial = hmac.digest(bytes.fromhex(salt), destination, hashlib.sha256)
    secret = expand(initial, b"client in", 32)
    return Keys(
        expand(secret, label + b" key", 16),
        expand(secret, label + b" iv", 12),
        expand(secret, label + b" hp", 16),
    )


def varint(value: int) -> bytes:
    """RFC 9000 section 16, in the shortest form."""
    for width, mark in ((1, 0), (2, 0x40), (4, 0x80), (8, 0xC0)):
        if value < 1 << (8 * width - 2):
            raw = value.to_bytes(width, "big")
            return bytes((raw[0] | mark,)) + raw[1:]
    raise ValueError(value)


def crypto(offset: int, data: bytes) -> bytes:
    return b"\x06" + varint(offset) + varint(len(data)) + data


def initial(
    payload: bytes,
    *,
    number: int = 0,
    width: int = 4,
    destination: bytes = CID,
    keyed_by: bytes | None = None,
    source: bytes = b"",
    token: bytes = b"",
    version: int = 1,
    pad_to: int = 1200,
) -> bytes:
    """A protected Initial packet, its payload padded so that the packet has `pad_to` bytes."""
    first = 0xC0 | INITIAL_BITS[version] << 4 | (width - 1)
    head = bytes((first,)) + version.to_bytes(4, "big")
    for text in (destination, source):
        head += bytes((len(text),)) + text
    head += varint(len(token)) + token
    overhead = len(head) + 2 + width + 16
    payload += bytes(max(0, pad_to - overhead - len(payload), 4 - len(payload)))
    head += (0x4000 | width + len(payload) + 16).to_bytes(2, "big")
    sealed_by = keys(destination if keyed_by is None else keyed_by, version)
    return protect(head, number, width, payload, sealed_by)


def protect(head: bytes, number: int, width: int, payload: bytes, by: Keys) -> bytes:
    shown = number.to_bytes(8, "big")[-width:]
    nonce = (int.from_bytes(by.iv, "big") ^ number).to_bytes(12, "big")
    sealed = AESGCM(by.key).encrypt(nonce, payload, head + shown)
    encryptor = Cipher(algorithms.AES(by.hp), modes.ECB()).encryptor()  # noqa: S305
    mask = encryptor.update((shown + sealed)[4:20])
    hidden = bytes(a ^ b for a, b in zip(shown, mask[1:], strict=False))
    return bytes((head[0] ^ mask[0] & 0x0F,)) + head[1:] + hidden + sealed


def retry(source: bytes, token: bytes = b"token") -> bytes:
    """A server's Retry (RFC 9000 section 17.2.5); its integrity tag is the client's to check."""
    return b"\xf0\0\0\0\1\0" + bytes((len(source),)) + source + token + bytes(16)
