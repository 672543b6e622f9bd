"""What a node takes over: signed bundles of policies, and its own overlay, which may only narrow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from exeat.policy.document import Document
from exeat.policy.envelope import (
    BUNDLE_TYPE,
    TokenError,
    canonical_json,
    key_id,
    parse_canonical,
    parse_envelope,
    seal,
    verify,
)
from exeat.policy.errors import PolicyError
from exeat.policy.widens import widens

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

    from exeat.policy.witness import Witness

_KEYS = frozenset({"v", "version", "expires", "audience", "policies"})


@dataclass(frozen=True)
class Bundle:
    """Policies by project. `version` only grows; `audience` empty: for every node."""

    version: int
    expires_ms: int
    policies: Mapping[str, Document]
    audience: frozenset[str] = frozenset()


@dataclass(frozen=True)
class BundleTrust:
    """What a node knows when a bundle arrives; `version` is the last one it took over."""

    home: Ed25519PublicKey
    node: str
    version: int


@dataclass(frozen=True, slots=True)
class BundleAdmission:
    """`reason` is `ok` or the code of the refusal, with which the old policy stays in force."""

    reason: str
    bundle: Bundle | None = None

    @property
    def accepted(self) -> bool:
        return self.bundle is not None


@dataclass(frozen=True, slots=True)
class LocalAdmission:
    reason: str
    witness: Witness | None = None

    @property
    def accepted(self) -> bool:
        return self.reason == "ok"


def sign_bundle(
    version: int,
    expires_ms: int,
    policies: Mapping[str, str],
    key: Ed25519PrivateKey,
    audience: Iterable[str] = (),
) -> bytes:
    """The envelope of a bundle; `policies` are canonical JSON documents by project."""
    body = {
        "v": 1,
        "version": version,
        "expires": expires_ms,
        "audience": sorted(audience),
        "policies": dict(policies),
    }
    return seal(BUNDLE_TYPE, canonical_json(body), key).to_bytes()


def admit_bundle(data: bytes, trust: BundleTrust, now_ms: int) -> BundleAdmission:
    """Signature, version, audience, expiry, then every document. Total: any doubt is a refusal."""
    try:
        envelope = parse_envelope(data)
        if envelope.key_id != key_id(trust.home):
            raise TokenError("meta.worker_widen", "only Home's key signs policies")
        body = parse_canonical(verify(envelope, BUNDLE_TYPE, trust.home))
        return BundleAdmission("ok", _admissible(body, trust, now_ms))
    except (TokenError, PolicyError) as error:
        return BundleAdmission(error.code)
    except Exception:
        # Fail closed: the old policy is the safe one, whatever went wrong with the new.
        return BundleAdmission("internal.error")


def _admissible(body: Any, trust: BundleTrust, now_ms: int) -> Bundle:
    if not isinstance(body, dict) or body.keys() != _KEYS or body["v"] != 1:
        raise TokenError("token.malformed", "not a bundle")
    version, expires_ms = body["version"], body["expires"]
    if type(version) is not int or type(expires_ms) is not int:
        raise TokenError("token.malformed", "not a bundle")
    if version <= trust.version:
        raise TokenError("replay.version", "not newer than what is in force")
    if body["audience"] and trust.node not in body["audience"]:
        raise TokenError("bundle.audience", "for other nodes")
    if now_ms >= expires_ms:
        raise TokenError("policy.expired", "ended before it came")
    policies = {}
    for project, text in body["policies"].items():
        document = Document.from_canonical_json(text, file=f"policy of {project}")
        if document.project != project:
            raise TokenError("token.malformed", "a policy under another project's name")
        policies[project] = document
    return Bundle(version, expires_ms, policies, frozenset(body["audience"]))


def admit_local(home: Document, local: Document, now_ms: int) -> LocalAdmission:
    """Whether a node's own policy may stand in for Home's: only if it lets out nothing more."""
    if home.project != local.project:
        return LocalAdmission("meta.project")
    witness = widens(home, local, now_ms=now_ms)
    return LocalAdmission("ok") if witness is None else LocalAdmission("meta.worker_widen", witness)
