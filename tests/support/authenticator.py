"""A passkey in software: what a security key does, by W3C Web Authentication level 3 (sections 6 and 7)."""

from __future__ import annotations

import hashlib
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any

import cbor2
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

PRESENT, VERIFIED, NEW_KEY = 0x01, 0x04, 0x40


def b64(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")


def unb64(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


class Authenticator:
    """One key pair of P-256, for `rp_id`, used by a browser at `origin`."""

    def __init__(self, rp_id: str, origin: str, name: bytes = b"key-1") -> None:
        self._rp, self.origin, self._name = hashlib.sha256(rp_id.encode()).digest(), origin, name
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.count = 0

    @property
    def id(self) -> str:
        return b64(self._name)

    def create(self, options: Any) -> dict[str, Any]:
        """`navigator.credentials.create`, without attestation."""
        numbers = self._key.public_key().public_numbers()
        # A COSE key (RFC 9053 section 7.1): EC2, ES256, P-256, x, y.
        point = {-2: numbers.x.to_bytes(32, "big"), -3: numbers.y.to_bytes(32, "big")}
        cose = cbor2.dumps({1: 2, 3: -7, -1: 1, **point})
        named = b"\0" * 16 + len(self._name).to_bytes(2, "big") + self._name
        data = self._data(PRESENT | VERIFIED | NEW_KEY) + named + cose
        attested = cbor2.dumps({"fmt": "none", "attStmt": {}, "authData": data})
        client = self._client("webauthn.create", options["challenge"])
        return self._answer({"clientDataJSON": b64(client), "attestationObject": b64(attested)})

    def get(self, challenge: str, flags: int = PRESENT | VERIFIED) -> dict[str, Any]:
        """`navigator.credentials.get`."""
        data, client = self._data(flags), self._client("webauthn.get", challenge)
        signature = self._key.sign(data + hashlib.sha256(client).digest(), ec.ECDSA(hashes.SHA256()))
        said = {"clientDataJSON": b64(client), "authenticatorData": b64(data), "signature": b64(signature)}
        return self._answer(said)

    def _data(self, flags: int) -> bytes:
        self.count += 1
        return self._rp + bytes([flags]) + self.count.to_bytes(4, "big")

    def _client(self, kind: str, challenge: str) -> bytes:
        said = {"type": kind, "challenge": challenge, "origin": self.origin, "crossOrigin": False}
        return json.dumps(said).encode()

    def _answer(self, response: dict[str, str]) -> dict[str, Any]:
        return {"id": self.id, "rawId": self.id, "type": "public-key", "response": response}
