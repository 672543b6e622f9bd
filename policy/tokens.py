"""Capability tokens: a lease as a chain of signed links that can travel and only ever narrow.

Home's key signs the first link; each link may name a delegate key, and only that key may sign the
next. A link's payload is canonical JSON (`link_payload`), its envelope DSSE (`envelope.py`).
Admission checks the whole chain once; what comes out is an ordinary `Lease` that is the AND of all
links, computed scope by scope, so that even a fault in the containment check could not widen.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from exeat.policy.containment import excess, meet
from exeat.policy.envelope import (
    LEASE_TYPE,
    Envelope,
    TokenError,
    canonical_json,
    key_id,
    parse_canonical,
    parse_envelope,
    seal,
    verify,
)
from exeat.policy.leases import HOME, Lease, State
from exeat.policy.model import Speech, permits
from exeat.policy.rule_loader import is_too_broad
from exeat.policy.scopes import ANY_PORT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from exeat.policy.document import Document, PublicSuffixes

MAX_DEPTH = 3
_TRAVELS = (
    *("id", "project", "to", "ports", "proto", "except", "private", "raw", "ech", "direct", "records"),
    *("agents", "nodes", "job"),
    *("ttl_ms", "max_bytes", "max_uses", "budget", "approvals", "reason", "policy", "issuer", "epoch", "seq"),
)
_KEYS = frozenset({*_TRAVELS, "v", "nbf", "exp", "parent", "delegate"})


@dataclass(frozen=True, slots=True)
class Link:
    """One link. `parent` is the SHA-256 of the parent's payload in hex ("" for the first); `delegate`
    the raw public key, in hex, that may sign the next ("" for nobody)."""

    lease: Lease
    parent: str = ""
    delegate: str = ""


@dataclass(frozen=True)
class Trust:
    """What a node knows when a token arrives. `seen` maps lease ids to the last sequence number."""

    home: Ed25519PublicKey
    node: str
    seen: Mapping[str, int]
    min_epoch: int = 0
    revoked: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Admission:
    """`reason` is `ok` or the code of the refusal. `lease` is the AND of the chain, `ids` its links:
    revoking any of them ends it."""

    reason: str
    lease: Lease | None = None
    ids: tuple[str, ...] = ()

    @property
    def accepted(self) -> bool:
        return self.lease is not None


def link_payload(link: Link) -> bytes:
    body = {name: value for name, value in link.lease.to_json().items() if name in _TRAVELS}
    body |= {
        "v": 1,
        "nbf": link.lease.nbf_ms,
        "exp": link.lease.exp_ms,
        "parent": link.parent or None,
        "delegate": link.delegate or None,
    }
    return canonical_json(body)


def parse_link(payload: bytes) -> Link:
    """Raises TokenError `token.malformed`: every key must be there, none other, in canonical form."""
    body = parse_canonical(payload)
    try:
        if body.keys() != _KEYS or body["v"] != 1 or type(body["v"]) is not int:
            raise ValueError("unknown keys or version")
        fields = {name: body[name] for name in _TRAVELS}
        lease = Lease.from_json(fields | {"nbf_ms": body["nbf"], "exp_ms": body["exp"]})
        link = Link(lease, _hex(body["parent"]), _hex(body["delegate"]))
        if link_payload(link) != payload or not lease.to:
            raise ValueError("not in canonical form")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise TokenError("token.malformed", str(error)) from None
    return link


def _hex(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) != 64 or bytes.fromhex(value).hex() != value:
        raise ValueError("not 32 bytes in hex")
    return value


def sign_link(link: Link, key: Ed25519PrivateKey) -> bytes:
    """The envelope of a link, as it travels."""
    return seal(LEASE_TYPE, link_payload(link), key).to_bytes()


def digest_of(envelope: bytes) -> str:
    """What the next link names as its parent."""
    return hashlib.sha256(parse_envelope(envelope).payload).hexdigest()


def admit_token(
    chain: Sequence[bytes], trust: Trust, policy: Document, suffixes: PublicSuffixes, now_ms: int
) -> Admission:
    """Whether this node may act on the chain (first link first). Total: any doubt is a refusal.

    The caller stores the sequence number before it applies the lease.
    """
    try:
        links = _verified([parse_envelope(data) for data in chain[: MAX_DEPTH + 1]], trust.home)
        _check_form(links, policy, suffixes)
        for parent, child in pairwise(links):
            _check_contained(parent.lease, child.lease)
        _check_admissible(links, trust, policy, now_ms)
        lease = effective(links)
    except TokenError as error:
        return Admission(error.code)
    except Exception:
        # Fail closed: a token that trips the check has no business here.
        return Admission("internal.error")
    return Admission("ok", lease, tuple(link.lease.id for link in links))


def _verified(envelopes: Sequence[Envelope], home: Ed25519PublicKey) -> list[Link]:
    """Signatures, then parent digests, then depth."""
    if not envelopes:
        raise TokenError("token.malformed", "an empty chain")
    if envelopes[0].key_id != key_id(home):
        raise TokenError("meta.worker_widen", "only Home's key begins a chain")
    key, links = home, [parse_link(verify(envelopes[0], LEASE_TYPE, home))]
    for envelope in envelopes[1:]:
        key = _delegate_of(links[-1])
        if envelope.key_id != key_id(key):
            raise TokenError("chain.delegate", "signed by a key that the link before does not name")
        links.append(parse_link(verify(envelope, LEASE_TYPE, key)))
    before = ""
    for envelope, link in zip(envelopes, links, strict=True):
        if link.parent != before:
            raise TokenError("chain.parent", "not a link of this chain")
        before = hashlib.sha256(envelope.payload).hexdigest()
    if len(links) > MAX_DEPTH:
        raise TokenError("chain.depth", f"more than {MAX_DEPTH} links")
    return links


def _delegate_of(link: Link) -> Ed25519PublicKey:
    if not link.delegate:
        raise TokenError("chain.delegate", "the link before names no delegate")
    return Ed25519PublicKey.from_public_bytes(bytes.fromhex(link.delegate))


def _check_form(links: Sequence[Link], policy: Document, suffixes: PublicSuffixes) -> None:
    for link in links:
        if link.lease.project != policy.project:
            raise TokenError("meta.project", "for another project")
        if link.lease.issuer != HOME:
            raise TokenError("meta.worker_widen", "issued by another than Home")
        if any(is_too_broad(scope, suffixes) for scope in link.lease.to):
            raise TokenError("scope.too_broad", "a wildcard over names of many owners")


def _check_contained(parent: Lease, child: Lease) -> None:
    inside = set(child.protocols) <= set(parent.protocols) and excess([parent], child) is None
    tests = (
        ("scope", inside),
        ("time", parent.nbf_ms <= child.nbf_ms and child.exp_ms <= parent.exp_ms),
        ("agents", _within(child.agents, parent.agents)),
        ("nodes", _within(child.nodes, parent.nodes)),
        ("job", parent.job in ("", child.job)),
        ("bytes", _at_most(child.max_bytes, parent.max_bytes)),
        ("uses", _at_most(child.max_uses, parent.max_uses)),
        ("budget", parent.budget in ("", child.budget)),
        ("private", parent.private or not child.private),
        ("speech", all(permits(parent, speech) for speech in Speech if permits(child, speech))),
    )
    for dimension, holds in tests:
        if not holds:
            raise TokenError(f"chain.{dimension}", f"wider than its parent: {dimension}")


def _within(child: frozenset[str], parent: frozenset[str]) -> bool:
    """Empty means everyone."""
    return not parent or (bool(child) and child <= parent)


def _at_most(child: int | None, parent: int | None) -> bool:
    return parent is None or (child is not None and child <= parent)


def _check_admissible(links: Sequence[Link], trust: Trust, policy: Document, now_ms: int) -> None:
    leases = [link.lease for link in links]
    last = leases[-1]
    if policy.ceiling is not None:
        for proto in last.protocols:
            roof = [rule for rule in policy.ceiling if proto in rule.protocols]
            if excess(roof, last) is not None:
                raise TokenError("ceiling.exceeded", "outside the organisation's ceiling")
    if any(lease.epoch < trust.min_epoch for lease in leases):
        raise TokenError("lease.epoch", "of an epoch that was fenced off")
    if any(lease.nodes and trust.node not in lease.nodes for lease in leases):
        raise TokenError("lease.audience", "for another node")
    if any(lease.id in trust.revoked for lease in leases):
        raise TokenError("lease.revoked", "a link was revoked")
    # The links before come along unchanged with every new child; only a newer version outdates them.
    if last.seq <= trust.seen.get(last.id, -1) or any(
        lease.seq < trust.seen.get(lease.id, -1) for lease in leases[:-1]
    ):
        raise TokenError("replay.seq", "seen before")
    if any(now_ms >= lease.exp_ms for lease in leases):
        raise TokenError("lease.expired", "ended before it came")


def effective(links: Sequence[Link]) -> Lease:
    """The AND of all links, as one lease."""
    leases = [link.lease for link in links]
    lease = leases[0]
    for child in leases[1:]:
        lease = _both(lease, child)
    return replace(lease, state=State.ACTIVE)


def _both(one: Lease, two: Lease) -> Lease:
    return replace(
        two,
        to=tuple(dict.fromkeys(both for a in one.to for b in two.to if (both := meet(one, a, two, b)))),
        ports=ANY_PORT,  # every scope carries its own
        protocols=tuple(proto for proto in one.protocols if proto in two.protocols),
        except_=tuple(dict.fromkeys((*one.except_, *two.except_))),
        private=one.private and two.private,
        raw=one.raw and two.raw,
        ech=permits(one, Speech.ECH) and permits(two, Speech.ECH),
        direct=one.direct and two.direct,
        records=one.records and two.records,
        agents=_meet_words(one.agents, two.agents),
        nodes=_meet_words(one.nodes, two.nodes),
        job=_meet_word(one.job, two.job),
        nbf_ms=max(one.nbf_ms, two.nbf_ms),
        exp_ms=min(one.exp_ms, two.exp_ms),
        ttl_ms=min(one.ttl_ms, two.ttl_ms),
        max_bytes=_least(one.max_bytes, two.max_bytes),
        max_uses=_least(one.max_uses, two.max_uses),
        budget=two.budget or one.budget,
        epoch=min(one.epoch, two.epoch),
    )


_NOBODY = "\0"  # no agent, node or job is called this


def _meet_words(one: frozenset[str], two: frozenset[str]) -> frozenset[str]:
    if not one or not two:
        return one or two
    return one & two or frozenset({_NOBODY})


def _meet_word(one: str, two: str) -> str:
    return one or two if not one or not two or one == two else _NOBODY


def _least(one: int | None, two: int | None) -> int | None:
    return min((limit for limit in (one, two) if limit is not None), default=None)
