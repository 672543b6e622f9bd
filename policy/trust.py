"""The trust document: which keys may say what in a fleet, and how one such document follows another.

After The Update Framework (TUF specification 1.0, sections 5.3 and 6.1): the root role's keys are
kept offline and more than one must sign; each document is signed by the root of the one before and
by its own; versions go up by one, so that no step is left out. The other roles have keys that are
online, any one of which may sign; a worker's key is in no role.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from exeat.policy.envelope import (
    MAX_ENVELOPE,
    TokenError,
    canonical_json,
    decode_base64,
    key_id,
    pae,
    parse_canonical,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

TRUST_TYPE: Final = "application/vnd.exeat.trust.v1+json"
MAX_KEYS: Final = 16  # of one role
MAX_STEPS: Final = 64  # documents of one succession
ROOT_THRESHOLD: Final = 2  # the least that a root may ask for


class Role(StrEnum):
    """What a key may sign: trust documents; bundles and the list of nodes; leases and allotments; beats."""

    ROOT = "root"
    POLICY = "policy"
    LEASE = "lease"
    BEAT = "beat"


@dataclass(frozen=True, slots=True)
class Keys:
    """The raw public keys of a role in hex, and how many of them must sign."""

    keys: tuple[str, ...]
    threshold: int = 1


@dataclass(frozen=True)
class TrustDocument:
    """`expires_ms`: from then on nothing signed under it is taken; a newer one must come."""

    version: int
    expires_ms: int
    roles: Mapping[Role, Keys]

    def payload(self) -> bytes:
        """The canonical bytes that are signed."""
        roles = {
            str(role): {"keys": list(self.roles[role].keys), "threshold": self.roles[role].threshold}
            for role in Role
        }
        body = {"v": 1, "version": self.version, "expires": self.expires_ms, "roles": roles}
        return canonical_json(body)

    @property
    def digest(self) -> str:
        """SHA-256 of the payload in hex: what a new node is given to pin."""
        return hashlib.sha256(self.payload()).hexdigest()

    def speaks(self, role: Role, signer: str) -> Ed25519PublicKey | None:
        """The key with the id `signer`, if it may sign for the role."""
        for text in self.roles[role].keys:
            key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(text))
            if key_id(key) == signer:
                return key
        return None


def sign_trust(document: TrustDocument, keys: Sequence[Ed25519PrivateKey]) -> bytes:
    """The envelope with a signature of each key."""
    payload = document.payload()
    signatures = [
        {
            "keyid": key_id(key.public_key()),
            "sig": base64.b64encode(key.sign(pae(TRUST_TYPE, payload))).decode(),
        }
        for key in keys
    ]
    encoded = base64.b64encode(payload).decode()
    return canonical_json({"payload": encoded, "payloadType": TRUST_TYPE, "signatures": signatures})


def pinned(data: bytes, digest: str) -> TrustDocument:
    """The first document of a node, known by its digest. Raises TokenError.

    It must bear its own root's signatures, too: a pin that was mistyped must not pass by luck of form.
    """
    document, payload, signatures = _parse(data)
    if document.digest != digest:
        raise TokenError("trust.pin", "not the trust document that was pinned")
    _require(document, payload, signatures)
    return document


def succeed(current: TrustDocument, steps: Sequence[bytes], now_ms: int) -> TrustDocument:
    """The document at the end of `steps`, each one version after the other. Raises TokenError.

    Only the last must not have expired: a node that was away goes through old ones (TUF 5.3.10).
    """
    if not steps or len(steps) > MAX_STEPS:
        raise TokenError("token.malformed", "no documents, or too many at once")
    for data in steps:
        document, payload, signatures = _parse(data)
        if document.version != current.version + 1:
            raise TokenError("replay.version", f"version {document.version} after {current.version}")
        _require(current, payload, signatures)
        _require(document, payload, signatures)
        current = document
    if now_ms >= current.expires_ms:
        raise TokenError("trust.expired", "ended before it came")
    return current


def _require(document: TrustDocument, payload: bytes, signatures: Sequence[tuple[str, bytes]]) -> None:
    """Enough of the document's root keys have signed. Raises TokenError `trust.threshold`."""
    good: set[str] = set()
    for signer, signature in signatures:
        key = document.speaks(Role.ROOT, signer)
        if key is None or signer in good:
            continue
        try:
            key.verify(signature, pae(TRUST_TYPE, payload))
        except InvalidSignature:
            continue
        good.add(signer)
    wanted = document.roles[Role.ROOT].threshold
    if len(good) < wanted:
        raise TokenError("trust.threshold", f"{len(good)} of {wanted} root keys have signed")


def _parse(data: bytes) -> tuple[TrustDocument, bytes, list[tuple[str, bytes]]]:
    if len(data) > MAX_ENVELOPE:
        raise TokenError("token.malformed", "too large")
    try:
        body = json.loads(data)
        found = [(item["keyid"], item["sig"]) for item in body["signatures"]]
        right = body.keys() == {"payload", "payloadType", "signatures"} and len(found) <= 2 * MAX_KEYS
        if not right or body["payloadType"] != TRUST_TYPE:
            raise ValueError("not a trust document")
        signatures = [(str(signer), decode_base64(text)) for signer, text in found]
        payload = decode_base64(body["payload"])
        return _document(parse_canonical(payload)), payload, signatures
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise TokenError("token.malformed", str(error)) from None


def _document(body: Any) -> TrustDocument:
    if body.keys() != {"v", "version", "expires", "roles"} or body["v"] != 1:
        raise ValueError("unknown keys or version")
    if body["roles"].keys() != set(map(str, Role)):
        raise ValueError("not the roles there are")
    roles = {role: _keys(body["roles"][role]) for role in Role}
    if roles[Role.ROOT].threshold < ROOT_THRESHOLD:
        raise ValueError("a root that one key can change")
    if any(roles[role].threshold != 1 for role in Role if role is not Role.ROOT):
        raise ValueError("only the root has a threshold")
    version, expires_ms = body["version"], body["expires"]
    if type(version) is not int or type(expires_ms) is not int or version < 1 or expires_ms < 0:
        raise ValueError("version and expires are whole numbers")
    owners = [key for role in Role for key in roles[role].keys]
    if len(owners) != len(set(owners)):
        raise ValueError("a key in two roles")
    return TrustDocument(version, expires_ms, roles)


def _keys(body: Any) -> Keys:
    keys, threshold = body["keys"], body["threshold"]
    if body.keys() != {"keys", "threshold"} or type(keys) is not list or type(threshold) is not int:
        raise ValueError("not the keys of a role")
    if not 1 <= threshold <= len(keys) <= MAX_KEYS:
        raise ValueError("a threshold that cannot be reached, or too many keys")
    if any(bytes.fromhex(key).hex() != key or len(key) != 64 for key in keys):
        raise ValueError("not a raw key in hex")
    return Keys(tuple(keys), threshold)
