"""Tokens: what is admitted, what each check refuses, and that nothing forged gets through."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.support.policy_strategies import NOW_MS, NoSuffixes

from exeat.policy.bundles import BundleTrust, admit_bundle, sign_bundle
from exeat.policy.document import Document, load_policy
from exeat.policy.envelope import (
    LEASE_TYPE,
    TokenError,
    canonical_json,
    pae,
    parse_canonical,
    parse_envelope,
    seal,
)
from exeat.policy.leases import Lease
from exeat.policy.model import Subject
from exeat.policy.scopes import ANY_PORT, parse_ports, parse_scope
from exeat.policy.tokens import (
    Admission,
    Link,
    Trust,
    admit_token,
    digest_of,
    effective,
    link_payload,
    parse_link,
    sign_link,
)

HOUR = 3_600_000


def key(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())


def public(name: str) -> str:
    return key(name).public_key().public_bytes_raw().hex()


POLICY = load_policy("egress: v1\nproject: p\n", file="x", suffixes=NoSuffixes())
TRUST = Trust(key("home").public_key(), "w1", {})


def lease(name: str = "L1", *to: str, **fields: Any) -> Lease:
    scopes = tuple(map(parse_scope, to or (".github.com",)))
    return Lease(name, "p", scopes, **{"exp_ms": NOW_MS + HOUR, "seq": 1, **fields})


def chain(*links: tuple[Lease, str, str]) -> list[bytes]:
    """(lease, who signs, who may sign the next) from the first link on."""
    out: list[bytes] = []
    for each, signer, delegate in links:
        parent = digest_of(out[-1]) if out else ""
        out.append(sign_link(Link(each, parent, public(delegate) if delegate else ""), key(signer)))
    return out


def admit(
    tokens: list[bytes], trust: Trust = TRUST, policy: Document = POLICY, now: int = NOW_MS
) -> Admission:
    return admit_token(tokens, trust, policy, NoSuffixes(), now)


ROOT = (lease("L1", ".github.com", ports=parse_ports(["22", "443"])), "home", "w1")
CHILD = (lease("L1.1", "api.github.com", max_bytes=10), "w1", "w2")
GRANDCHILD = (lease("L1.1.1", "api.github.com", agents=frozenset({"a1"}), max_bytes=5), "w2", "w3")


def test_a_chain_of_three_is_the_and_of_its_links() -> None:
    admission = admit(chain(ROOT, CHILD, GRANDCHILD))
    assert admission.reason == "ok"
    assert admission.ids == ("L1", "L1.1", "L1.1.1")
    got = admission.lease
    assert got is not None
    assert [str(scope) for scope in got.to] == ["api.github.com:443"]
    assert (got.max_bytes, got.agents, got.exp_ms) == (5, frozenset({"a1"}), NOW_MS + HOUR)
    assert got.serves(Subject("p", "a1"), "tcp", NOW_MS)
    assert not got.serves(Subject("p", "a2"), "tcp", NOW_MS)


def test_the_and_holds_even_where_a_child_is_wider() -> None:
    wide = lease(
        "L2",
        "*",
        ports=ANY_PORT,
        private=True,
        raw=True,
        direct=True,
        protocols=("tcp", "udp"),
        nodes=frozenset({"w9"}),
    )
    narrow = replace(ROOT[0], nodes=frozenset({"w1"}), job="j", agents=frozenset({"a"}), max_uses=3)
    for links in ((Link(narrow), Link(wide)), (Link(wide), Link(narrow))):
        got = effective(links)
        assert {(scope.name, scope.ports) for scope in got.to} == {("github.com", ((22, 22), (443, 443)))}
        assert (got.private, got.raw, got.ech, got.direct) == (False, False, False, False)
        assert got.protocols == ("tcp",)
        assert (got.job, got.max_uses) == ("j", 3)
        assert not got.serves(Subject("p", "a", "j", node="w1"), "tcp", NOW_MS)
        assert not got.serves(Subject("p", "a", "j", node="w9"), "tcp", NOW_MS)


@pytest.mark.parametrize(
    ("child", "reason"),
    [
        ({"to": (parse_scope("gitlab.com"),)}, "chain.scope"),
        ({"to": (parse_scope("api.github.com:80"),)}, "chain.scope"),
        ({"protocols": ("tcp", "udp")}, "chain.scope"),
        ({"exp_ms": NOW_MS + HOUR + 1}, "chain.time"),
        ({"nbf_ms": 0}, "chain.time"),
        ({"agents": frozenset()}, "chain.agents"),
        ({"agents": frozenset({"a1", "a2"})}, "chain.agents"),
        ({"nodes": frozenset()}, "chain.nodes"),
        ({"job": ""}, "chain.job"),
        ({"job": "other"}, "chain.job"),
        ({"max_bytes": None}, "chain.bytes"),
        ({"max_bytes": 101}, "chain.bytes"),
        ({"max_uses": 6}, "chain.uses"),
        ({"budget": ""}, "chain.budget"),
        ({"private": True}, "chain.private"),
        ({"raw": True}, "chain.speech"),
        ({"ech": True}, "ok"),
        ({"direct": True}, "chain.speech"),
        ({"records": True}, "chain.speech"),
        ({}, "ok"),
        ({"to": (parse_scope("api.github.com"), parse_scope("github.com:22"))}, "ok"),
        ({"except_": (parse_scope("api.github.com"),)}, "ok"),
    ],
)
def test_every_dimension_is_contained(child: dict[str, Any], reason: str) -> None:
    limits: dict[str, Any] = {
        "nbf_ms": 5,
        "agents": frozenset({"a1"}),
        "nodes": frozenset({"w1"}),
        "job": "j",
        "max_bytes": 100,
        "max_uses": 5,
        "budget": "b",
        "ech": True,
    }
    parent = replace(ROOT[0], **limits)
    tokens = chain((parent, "home", "w1"), (replace(parent, **{"id": "L1.1", **child}), "w1", ""))
    assert admit(tokens).reason == reason


@pytest.mark.parametrize(
    ("tokens", "trust", "reason"),
    [
        ([], {}, "token.malformed"),
        ([b"{}"], {}, "token.malformed"),
        ([b"\xff" * 70_000], {}, "token.malformed"),
        (chain((lease(), "w1", "")), {}, "meta.worker_widen"),
        (chain(ROOT, CHILD)[1:], {}, "meta.worker_widen"),
        (chain(ROOT, (CHILD[0], "w2", "")), {}, "chain.delegate"),
        (chain((ROOT[0], "home", ""), CHILD), {}, "chain.delegate"),
        ([chain(ROOT)[0], chain((lease("L0"), "home", "w1"), CHILD)[1]], {}, "chain.parent"),
        ([sign_link(Link(lease(), "ab" * 32), key("home"))], {}, "chain.parent"),
        (chain(ROOT, CHILD, GRANDCHILD, (lease("L4", "api.github.com"), "w3", "")), {}, "chain.depth"),
        (chain((replace(lease(), project="q"), "home", "")), {}, "meta.project"),
        (chain((replace(lease(), issuer="w1"), "home", "")), {}, "meta.worker_widen"),
        (chain((lease("L", nodes=frozenset({"w2"})), "home", "")), {}, "lease.audience"),
        (chain(ROOT, CHILD), {"min_epoch": 1}, "lease.epoch"),
        (chain(ROOT, CHILD), {"revoked": frozenset({"L1"})}, "lease.revoked"),
        (chain(ROOT), {"seen": {"L1": 1}}, "replay.seq"),
        (chain(ROOT, CHILD), {"seen": {"L1": 1}}, "ok"),
        (chain(ROOT, CHILD), {"seen": {"L1": 2}}, "replay.seq"),
        (chain((lease("L", exp_ms=NOW_MS), "home", "")), {}, "lease.expired"),
        (chain((lease("L", nbf_ms=NOW_MS + 5), "home", "")), {}, "ok"),
    ],
)
def test_each_check(tokens: list[bytes], trust: dict[str, Any], reason: str) -> None:
    assert admit(tokens, replace(TRUST, **trust)).reason == reason


def test_the_ceiling_holds_for_the_whole_lease() -> None:
    text = "egress: v1\nproject: p\nceiling: [{to: .github.com}, {to: github.com, ports: 22, proto: udp}]"
    policy = load_policy(text, file="x", suffixes=NoSuffixes())
    assert admit(chain((lease("L"), "home", "")), policy=policy).reason == "ok"
    assert admit(chain(ROOT), policy=policy).reason == "ceiling.exceeded"
    both = lease("L", "github.com", protocols=("tcp", "udp"))
    assert admit(chain((both, "home", "")), policy=policy).reason == "ceiling.exceeded"


def test_dsse_encodes_as_its_specification_says() -> None:
    # https://github.com/secure-systems-lab/dsse/blob/master/protocol.md, test vector.
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_the_type_is_bound() -> None:
    payload = link_payload(Link(lease()))
    assert admit([seal("application/json", payload, key("home")).to_bytes()]).reason == "sig.invalid"
    relabelled = seal("application/json", payload, key("home"))._replace(payload_type=LEASE_TYPE)
    assert admit([relabelled.to_bytes()]).reason == "sig.invalid"
    trust = BundleTrust(key("home").public_key(), "w1", 0)
    assert admit_bundle(chain(ROOT)[0], trust, NOW_MS).reason == "sig.invalid"


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace(b'"v":1', b'"v":2'),
        lambda text: text.replace(b'"v":1', b'"v":true'),
        lambda text: text.replace(b'"seq":1', b'"seq":1,"seq":9'),
        lambda text: text.replace(b'"seq":1', b'"seq": 1'),
        lambda text: text.replace(b'"seq":1', b'"seq":-1'),
        lambda text: text.replace(b'"project":"p"', b'"project":"p","root":true'),
        lambda text: text.replace(b'"to":[".github.com"]', b'"to":[]'),
        lambda text: text.replace(b'"to":[".github.com"]', b'"to":[".GitHub.com"]'),
        lambda text: text.replace(b'"parent":null', b'"parent":"AB"'),
        lambda text: text[:-1],
    ],
)
def test_only_one_encoding_is_read_even_if_signed(edit: Any) -> None:
    payload = edit(link_payload(Link(lease())))
    assert payload != link_payload(Link(lease()))
    assert admit([seal(LEASE_TYPE, payload, key("home")).to_bytes()]).reason == "token.malformed"


def test_links_come_back_as_they_were_signed() -> None:
    for each, _, delegate in (ROOT, CHILD, GRANDCHILD):
        link = Link(each, "ab" * 32, public(delegate))
        assert parse_link(link_payload(link)) == link
    with pytest.raises(TokenError):
        parse_canonical(b'{"a": 1}')


def test_no_forged_replayed_or_mixed_chain_is_admitted() -> None:
    """10,000 chains, each with one thing wrong in it: a flipped byte, another key, links mixed up."""
    dice = random.Random(7)
    good = [chain(ROOT), chain(ROOT, CHILD), chain(ROOT, CHILD, GRANDCHILD)]
    forgers = [key(name) for name in ("w1", "w2", "w9")]
    assert all(admit(each).accepted for each in good)
    accepted = []
    for number in range(10_000):
        tokens = list(dice.choice(good))
        forged = _forge(dice, tokens, forgers, good)
        if forged in good:
            continue
        if admit(forged).accepted:
            accepted.append((number, forged))
    assert accepted == []
    seen = replace(TRUST, seen={"L1": 1, "L1.1": 1, "L1.1.1": 1})
    assert not any(admit(each, seen).accepted for each in good)


def _forge(
    dice: random.Random, tokens: list[bytes], forgers: list[Ed25519PrivateKey], good: list[list[bytes]]
) -> list[bytes]:
    at = dice.randrange(len(tokens))
    envelope = parse_envelope(tokens[at])
    match dice.randrange(6):
        case 0:  # one byte of the envelope
            data = bytearray(tokens[at])
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
            tokens[at] = bytes(data)
        case 1:  # wider, under the old signature
            body = json.loads(envelope.payload)
            body[dice.choice(["exp", "seq", "epoch"])] += dice.randrange(1, 1000)
            tokens[at] = envelope._replace(payload=canonical_json(body)).to_bytes()
        case 2:  # signed again by somebody whose turn it is not
            forger = dice.choice(forgers)
            turn = {1: forgers[0], 2: forgers[1]}.get(at)
            body = json.loads(envelope.payload) | {"exp": NOW_MS + HOUR * 9, "max_bytes": None}
            tokens[at] = seal(LEASE_TYPE, canonical_json(body), forger).to_bytes()
            if forger is turn:
                tokens = tokens[: at + 1]  # the right key, and still wider than its parent
        case 3:  # signed by another, in the name of the right key
            sealed = seal(LEASE_TYPE, envelope.payload, dice.choice(forgers))
            tokens[at] = sealed._replace(key_id=envelope.key_id, signature=dice.randbytes(64)).to_bytes()
        case 4:  # links of several chains, in any order, some twice
            pool = [token for each in good for token in each]
            tokens = [dice.choice(pool) for _ in range(dice.randrange(1, 5))]
        case _:  # the first links left out
            tokens = tokens[1:] or [dice.randbytes(200)]
    return tokens


def test_bundles() -> None:
    trust = BundleTrust(key("home").public_key(), "w1", 4)
    text = POLICY.to_canonical_json()

    def reason(
        version: int = 5, expires: int = NOW_MS + 1, project: str = "p", body: str = text, **more: Any
    ) -> str:
        return admit_bundle(
            sign_bundle(version, expires, {project: body}, key("home"), **more), trust, NOW_MS
        ).reason

    admission = admit_bundle(sign_bundle(5, NOW_MS + 1, {"p": text}, key("home")), trust, NOW_MS)
    assert admission.bundle is not None
    assert admission.bundle.policies == {"p": POLICY}
    assert reason(audience=["w1", "w2"]) == "ok"
    assert reason(audience=["w2"]) == "bundle.audience"
    assert reason(version=4) == "replay.version"
    assert reason(expires=NOW_MS) == "policy.expired"
    assert reason(project="q") == "token.malformed"
    assert reason(body=text.replace("{", "{ ", 1)) == "doc.canonical"
    assert admit_bundle(b"[]", trust, NOW_MS).reason == "token.malformed"
    assert (
        admit_bundle(sign_bundle(5, NOW_MS + 1, {}, key("w1")), trust, NOW_MS).reason == "meta.worker_widen"
    )
