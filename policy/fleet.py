"""What Home tells its nodes besides leases and bundles, and what nodes tell Home; all of it signed.

A node keeps a `Standing`: the trust document and how far each stream of messages has come. Admitting
is pure: the caller stores the new standing before it acts on the message (CVE-2025-2888 was the other
order). Numbers only grow, so nothing comes twice or late; a role whose keys change begins anew, so that
a key that was stolen and ran ahead cannot lock a fleet out (TUF, fast-forward attack).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from exeat.policy.bundles import BundleAdmission, BundleTrust, admit_bundle
from exeat.policy.envelope import (
    TokenError,
    canonical_json,
    key_id,
    parse_canonical,
    parse_envelope,
    seal,
    verify,
)
from exeat.policy.tokens import Admission, Trust, admit_token
from exeat.policy.trust import Role, TrustDocument, succeed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

    from exeat.policy.document import Document, PublicSuffixes

BEAT_TYPE: Final = "application/vnd.exeat.beat.v1+json"
ALLOTMENT_TYPE: Final = "application/vnd.exeat.allotment.v1+json"
NODES_TYPE: Final = "application/vnd.exeat.nodes.v1+json"
EVENT_TYPE: Final = "application/vnd.exeat.event.v1+json"
MAX_AHEAD_MS: Final = 60_000  # a beat from further in the future than this is none


@dataclass(frozen=True)
class Standing:
    """What a node holds. `marks` are the highest numbers seen, by `ROLE/STREAM`."""

    node: str
    trust: TrustDocument
    marks: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    def mark(self, role: Role, stream: str) -> int:
        return self.marks.get(f"{role}/{stream}", -1)

    def marked(self, role: Role, stream: str, number: int) -> Standing:
        return replace(self, marks=MappingProxyType({**self.marks, f"{role}/{stream}": number}))

    def to_json(self) -> dict[str, Any]:
        """The marks; the trust document is kept as it came."""
        return {"node": self.node, "version": self.trust.version, "marks": dict(self.marks)}


def renewed(standing: Standing, steps: Sequence[bytes], now_ms: int) -> Standing:
    """The standing under a newer trust document; roles whose keys changed begin anew. Raises TokenError."""
    trust = succeed(standing.trust, steps, now_ms)
    same = {role for role in Role if trust.roles[role] == standing.trust.roles[role]}
    kept = {name: number for name, number in standing.marks.items() if Role(name.partition("/")[0]) in same}
    return Standing(standing.node, trust, MappingProxyType(kept))


@dataclass(frozen=True, slots=True)
class Beat:
    """Sent every 10 s: what has been taken back, and the time. `revoked` are ids of leases.

    `bundle` is the version of the bundle in force at Home: a node whose own is older knows that one is
    being kept from it. `killed` are projects, or `*`.
    """

    seq: int
    at_ms: int
    min_epoch: int
    bundle: int
    revoked: tuple[str, ...] = ()
    killed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Allotment:
    """What one node may charge to a budget in one window without asking again."""

    seq: int
    node: str
    project: str
    budget: str
    counter: str
    amount: int
    window_start_ms: int
    window_ms: int


@dataclass(frozen=True)
class Nodes:
    """The fleet: each node's raw public key in hex, and the digest of the manifest that people trusted."""

    version: int
    keys: Mapping[str, str]
    manifests: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Event:
    """What a node tells: the link to the one before is `prev`, SHA-256 of its payload in hex."""

    node: str
    episode: str
    seq: int
    prev: str
    nonce: str
    kind: str
    body: Any


@dataclass(frozen=True, slots=True)
class Told:
    """How far a node's events have come, as Home has them."""

    seq: int = -1
    digest: str = ""


def sign_beat(beat: Beat, key: Ed25519PrivateKey) -> bytes:
    body = {
        "v": 1,
        "seq": beat.seq,
        "at": beat.at_ms,
        "min_epoch": beat.min_epoch,
        "bundle": beat.bundle,
        "revoked": sorted(beat.revoked),
        "killed": sorted(beat.killed),
    }
    return seal(BEAT_TYPE, canonical_json(body), key).to_bytes()


def admit_beat(standing: Standing, data: bytes, now_ms: int) -> tuple[Standing, Beat]:
    """Raises TokenError. The epoch never goes back while the role has the same keys."""
    body = _opened(standing, data, BEAT_TYPE, Role.BEAT, now_ms)
    _exactly(body, "v", "seq", "at", "min_epoch", "bundle", "revoked", "killed")
    seq, at_ms, min_epoch, bundle = _numbers(body, "seq", "at", "min_epoch", "bundle")
    beat = Beat(seq, at_ms, min_epoch, bundle, _words(body["revoked"]), _words(body["killed"]))
    if beat.at_ms > now_ms + MAX_AHEAD_MS:
        raise TokenError("beat.time", "from the future")
    old_epoch = standing.mark(Role.BEAT, "epoch")
    if beat.seq <= standing.mark(Role.BEAT, "seq") or beat.min_epoch < old_epoch:
        raise TokenError("replay.seq", "not newer than the last beat")
    if beat.at_ms < standing.mark(Role.BEAT, "at"):
        raise TokenError("replay.seq", "a later beat of an earlier time")
    marked = standing.marked(Role.BEAT, "seq", beat.seq).marked(Role.BEAT, "at", beat.at_ms)
    return marked.marked(Role.BEAT, "epoch", beat.min_epoch), beat


def sign_allotment(allotment: Allotment, key: Ed25519PrivateKey) -> bytes:
    body = {
        "v": 1,
        "seq": allotment.seq,
        "node": allotment.node,
        "project": allotment.project,
        "budget": allotment.budget,
        "counter": allotment.counter,
        "amount": allotment.amount,
        "start": allotment.window_start_ms,
        "window": allotment.window_ms,
    }
    return seal(ALLOTMENT_TYPE, canonical_json(body), key).to_bytes()


def admit_allotment(standing: Standing, data: bytes, now_ms: int) -> tuple[Standing, Allotment]:
    """Raises TokenError. It replaces what the node had of this budget and counter before."""
    body = _opened(standing, data, ALLOTMENT_TYPE, Role.LEASE, now_ms)
    _exactly(body, "v", "seq", "node", "project", "budget", "counter", "amount", "start", "window")
    seq, amount, start, window = _numbers(body, "seq", "amount", "start", "window")
    node, project, budget, counter = (_word(body[name]) for name in ("node", "project", "budget", "counter"))
    if node != standing.node:
        raise TokenError("allotment.audience", "for another node")
    if now_ms >= start + window:
        raise TokenError("allotment.over", "of a window that is over")
    stream = f"allotment/{project}/{budget}/{counter}"
    if seq <= standing.mark(Role.LEASE, stream):
        raise TokenError("replay.seq", "not newer than the last one")
    allotment = Allotment(seq, node, project, budget, counter, amount, start, window)
    return standing.marked(Role.LEASE, stream, seq), allotment


def admit_bundle_of(standing: Standing, data: bytes, now_ms: int) -> tuple[Standing, BundleAdmission]:
    """`bundles.admit_bundle` for whoever may sign policies now; total like that."""
    key = _speaker(standing, data, Role.POLICY, now_ms)
    if isinstance(key, str):
        return standing, BundleAdmission(key)
    version = standing.mark(Role.POLICY, "bundle")
    admission = admit_bundle(data, BundleTrust(key, standing.node, version), now_ms)
    if admission.bundle is not None:
        standing = standing.marked(Role.POLICY, "bundle", admission.bundle.version)
    return standing, admission


def admit_lease_of(
    standing: Standing,
    chain: Sequence[bytes],
    beat: Beat | None,
    policy: Document,
    suffixes: PublicSuffixes,
    now_ms: int,
) -> tuple[Standing, Admission]:
    """`tokens.admit_token` for whoever may sign leases now, after what the last beat took back."""
    key = _speaker(standing, chain[0] if chain else b"", Role.LEASE, now_ms)
    if isinstance(key, str):
        return standing, Admission(key)
    seen = {
        name.partition("/lease/")[2]: number
        for name, number in standing.marks.items()
        if name.startswith(f"{Role.LEASE}/lease/")
    }
    epoch, revoked = (beat.min_epoch, frozenset(beat.revoked)) if beat else (0, frozenset[str]())
    admission = admit_token(chain, Trust(key, standing.node, seen, epoch, revoked), policy, suffixes, now_ms)
    if admission.lease is not None:
        standing = standing.marked(Role.LEASE, f"lease/{admission.lease.id}", admission.lease.seq)
    return standing, admission


def _speaker(standing: Standing, data: bytes, role: Role, now_ms: int) -> Ed25519PublicKey | str:
    """The key that says it has signed, if it may for `role`; else a reason code."""
    if now_ms >= standing.trust.expires_ms:
        return "trust.expired"
    try:
        key = standing.trust.speaks(role, parse_envelope(data).key_id)
    except TokenError as error:
        return error.code
    return key or "meta.worker_widen"


def sign_nodes(nodes: Nodes, key: Ed25519PrivateKey) -> bytes:
    rows = {name: {"key": nodes.keys[name], "manifest": nodes.manifests.get(name, "")} for name in nodes.keys}
    body = {"v": 1, "version": nodes.version, "nodes": rows}
    return seal(NODES_TYPE, canonical_json(body), key).to_bytes()


def admit_nodes(standing: Standing, data: bytes, now_ms: int) -> tuple[Standing, Nodes]:
    """Raises TokenError. A node that is not in it any more has been put out of the fleet."""
    body = _opened(standing, data, NODES_TYPE, Role.POLICY, now_ms)
    _exactly(body, "v", "version", "nodes")
    (version,) = _numbers(body, "version")
    if version <= standing.mark(Role.POLICY, "nodes"):
        raise TokenError("replay.version", "not newer than what is known")
    keys, manifests = {}, {}
    for name, row in _mapping(body["nodes"]).items():
        _exactly(_mapping(row), "key", "manifest")
        keys[_word(name)], manifests[name] = (
            _hex(row["key"], 32),
            row["manifest"] and _hex(row["manifest"], 32),
        )
    return standing.marked(Role.POLICY, "nodes", version), Nodes(version, keys, manifests)


def sign_event(event: Event, key: Ed25519PrivateKey) -> bytes:
    """By the node's own key."""
    return seal(EVENT_TYPE, _event_payload(event), key).to_bytes()


def event_digest(event: Event) -> str:
    """What the next event names as `prev`."""
    return hashlib.sha256(_event_payload(event)).hexdigest()


def _event_payload(event: Event) -> bytes:
    return canonical_json(
        {
            "v": 1,
            "node": event.node,
            "episode": event.episode,
            "seq": event.seq,
            "prev": event.prev,
            "nonce": event.nonce,
            "kind": event.kind,
            "body": event.body,
        }
    )


def admit_event(told: Told, node: str, key: Ed25519PublicKey, data: bytes) -> tuple[Told, Event]:
    """The next event of `node`, whose key is `key`. Raises TokenError.

    Exactly the next one: a gap is not skipped, so that no event can be left out unseen.
    """
    envelope = parse_envelope(data)
    if envelope.key_id != key_id(key):
        raise TokenError("sig.invalid", "another node's key")
    body = _mapping(parse_canonical(verify(envelope, EVENT_TYPE, key)))
    _exactly(body, "v", "node", "episode", "seq", "prev", "nonce", "kind", "body")
    (seq,) = _numbers(body, "seq")
    words = {name: _word(body[name], empty=name in ("episode", "prev")) for name in _EVENT_WORDS}
    if words["node"] != node:
        raise TokenError("meta.attribution", "in another node's name")
    if seq != told.seq + 1 or words["prev"] != told.digest:
        code = "replay.seq" if seq <= told.seq else "event.gap"
        raise TokenError(code, f"event {seq} after {told.seq}")
    event = Event(**words, seq=seq, body=body["body"])
    return Told(seq, hashlib.sha256(envelope.payload).hexdigest()), event


_EVENT_WORDS: Final = ("node", "episode", "prev", "nonce", "kind")


def _opened(standing: Standing, data: bytes, kind: str, role: Role, now_ms: int) -> dict[str, Any]:
    """The body of an envelope that a key of `role` has signed, under a trust that has not expired."""
    key = _speaker(standing, data, role, now_ms)
    if isinstance(key, str):
        raise TokenError(key, f"not signed by a key that is {role} now")
    body = _mapping(parse_canonical(verify(parse_envelope(data), kind, key)))
    if body.get("v") != 1 or type(body["v"]) is not int:
        raise TokenError("token.malformed", "of another version")
    return body


def _mapping(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TokenError("token.malformed", "not an object")
    return value


def _exactly(body: dict[str, Any], *names: str) -> None:
    if body.keys() != set(names):
        raise TokenError("token.malformed", "unknown or missing keys")


def _numbers(body: dict[str, Any], *names: str) -> tuple[int, ...]:
    values = tuple(body.get(name) for name in names)
    if any(type(value) is not int or not 0 <= value < 1 << 62 for value in values):
        raise TokenError("token.malformed", f"whole numbers: {', '.join(names)}")
    return values  # type: ignore[return-value]


def _word(value: object, *, empty: bool = False) -> str:
    if not isinstance(value, str) or len(value) > 256 or not (value or empty):
        raise TokenError("token.malformed", "not a short text")
    return value


def _words(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TokenError("token.malformed", "not a list")
    return tuple(map(_word, value))


def _hex(value: object, size: int) -> str:
    text = _word(value)
    try:
        if len(text) == 2 * size and bytes.fromhex(text).hex() == text:
            return text
    except ValueError:
        pass
    raise TokenError("token.malformed", f"not {size} bytes in hex")
