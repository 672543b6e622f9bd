"""DSSE envelopes with one ed25519 signature: bytes are signed, so there is nothing to canonicalise twice.

https://github.com/secure-systems-lab/dsse: the signature is over PAE(type, payload), which binds the
type, so that a bundle can never pass as a lease. Pure: keys are arguments, nothing is generated here.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from typing import TYPE_CHECKING, Any, NamedTuple

from cryptography.exceptions import InvalidSignature

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

LEASE_TYPE = "application/vnd.exeat.lease.v1+json"
BUNDLE_TYPE = "application/vnd.exeat.bundle.v1+json"
MAX_ENVELOPE = 65_536  # bytes


class TokenError(ValueError):
    """A token is not accepted. `code` is stable: `sig.*`, `chain.*`, `replay.*`, `lease.*`, ..."""

    def __init__(self, code: str, message: str = "") -> None:
        super().__init__(message or code)
        self.code = code


class Envelope(NamedTuple):
    """What an envelope says of itself; nothing of it is trusted before `verify`."""

    payload_type: str
    payload: bytes
    key_id: str
    signature: bytes

    def to_bytes(self) -> bytes:
        return canonical_json(
            {
                "payload": base64.b64encode(self.payload).decode(),
                "payloadType": self.payload_type,
                "signatures": [{"keyid": self.key_id, "sig": base64.b64encode(self.signature).decode()}],
            }
        )


def canonical_json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def parse_canonical(data: bytes) -> Any:
    """The value of JSON in the one form that `canonical_json` writes. Raises TokenError `token.malformed`.

    One value has one encoding, so keys set twice, spaces and odd escapes cannot hide anything.
    """
    try:
        value = json.loads(data)
        if canonical_json(value) == data:
            return value
    except (ValueError, RecursionError):
        pass
    raise TokenError("token.malformed", "not canonical JSON")


def pae(payload_type: str, payload: bytes) -> bytes:
    """Pre-authentication encoding of DSSE v1."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def key_id(key: Ed25519PublicKey) -> str:
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()


def seal(payload_type: str, payload: bytes, key: Ed25519PrivateKey) -> Envelope:
    signature = key.sign(pae(payload_type, payload))
    return Envelope(payload_type, payload, key_id(key.public_key()), signature)


def parse_envelope(data: bytes) -> Envelope:
    """Raises TokenError `token.malformed`. Exactly one signature; nothing is verified yet."""
    if len(data) > MAX_ENVELOPE:
        raise TokenError("token.malformed", "too large")
    try:
        body = json.loads(data)
        [signature] = body["signatures"]
        if body.keys() != {"payload", "payloadType", "signatures"} or signature.keys() != {"keyid", "sig"}:
            raise ValueError("unknown keys")
        texts = (body["payloadType"], body["payload"], signature["keyid"], signature["sig"])
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("not text")
        return Envelope(texts[0], decode_base64(texts[1]), texts[2], decode_base64(texts[3]))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, binascii.Error):
        raise TokenError("token.malformed", "not a DSSE envelope with one signature") from None


def decode_base64(text: str) -> bytes:
    """The bytes. Raises ValueError unless `text` is their one encoding."""
    data = base64.b64decode(text, validate=True)
    if base64.b64encode(data).decode() != text:
        raise ValueError("not canonical base64")
    return data


def verify(envelope: Envelope, payload_type: str, key: Ed25519PublicKey) -> bytes:
    """The payload, if it was signed with `key` as this type. Raises TokenError `sig.invalid`."""
    if envelope.payload_type != payload_type or envelope.key_id != key_id(key):
        raise TokenError("sig.invalid", "another type or key")
    try:
        key.verify(envelope.signature, pae(envelope.payload_type, envelope.payload))
    except InvalidSignature:
        raise TokenError("sig.invalid", "the signature does not match") from None
    return envelope.payload
