"""Trust in a fleet: who may say what, in which order, and that nothing forged, late or mixed is taken."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.support.policy_strategies import NOW_MS, NoSuffixes

from exeat.policy.bundles import sign_bundle
from exeat.policy.document import load_policy
from exeat.policy.envelope import TokenError, canonical_json, seal
from exeat.policy.fleet import (
    BEAT_TYPE,
    Allotment,
    Beat,
    Event,
    Nodes,
    Standing,
    Told,
    admit_allotment,
    admit_beat,
    admit_bundle_of,
    admit_event,
    admit_lease_of,
    admit_nodes,
    event_digest,
    renewed,
    sign_allotment,
    sign_beat,
    sign_event,
    sign_nodes,
)
from exeat.policy.leases import Lease
from exeat.policy.scopes import parse_scope
from exeat.policy.tokens import Link, sign_link
from exeat.policy.trust import Keys, Role, TrustDocument, pinned, sign_trust, succeed

if TYPE_CHECKING:
    from collections.abc import Callable

HOUR = 3_600_000
POLICY = load_policy("egress: v1\nproject: p\n", file="x", suffixes=NoSuffixes())


def key(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())


def public(name: str) -> str:
    return key(name).public_key().public_bytes_raw().hex()


def trust(version: int = 1, expires_ms: int = NOW_MS + HOUR, **roles: Keys) -> TrustDocument:
    usual = {
        Role.ROOT: Keys((public("r1"), public("r2"), public("r3")), 2),
        **{role: Keys((public(role),)) for role in (Role.POLICY, Role.LEASE, Role.BEAT)},
    }
    return TrustDocument(version, expires_ms, usual | {Role(name): keys for name, keys in roles.items()})


def signed(document: TrustDocument, *names: str) -> bytes:
    return sign_trust(document, [key(name) for name in names])


HERE = Standing("w1", trust())
BEAT = Beat(1, NOW_MS, 3, 7, ("L1",), ("p",))
ALLOTMENT = Allotment(1, "w1", "p", "default", "bytes_up", 1000, NOW_MS - 1, HOUR)
NODES = Nodes(1, {"w1": public("w1"), "w2": public("w2")}, {"w1": "ab" * 32})


def refused(code: str, admit: Callable[[], object]) -> None:
    with pytest.raises(TokenError) as error:
        admit()
    assert error.value.code == code


# -- the trust document


def test_the_first_document_is_pinned_by_its_digest() -> None:
    data = signed(trust(), "r1", "r3")
    assert pinned(data, trust().digest) == trust()
    refused("trust.pin", lambda: pinned(data, trust(2).digest))
    refused("trust.threshold", lambda: pinned(signed(trust(), "r1", "r1"), trust().digest))
    refused("trust.threshold", lambda: pinned(signed(trust(), "r1", "policy"), trust().digest))


def test_a_new_root_is_signed_by_the_old_one_and_by_itself() -> None:
    new = trust(2, root=Keys((public("n1"), public("n2")), 2))
    assert succeed(trust(), [signed(new, "r1", "r2", "n1", "n2")], NOW_MS) == new
    refused("trust.threshold", lambda: succeed(trust(), [signed(new, "n1", "n2")], NOW_MS))
    refused("trust.threshold", lambda: succeed(trust(), [signed(new, "r1", "r2", "n1")], NOW_MS))


def test_versions_go_up_by_one_and_only_the_last_must_be_alive() -> None:
    old, new = trust(2, expires_ms=5), trust(3)
    steps = [signed(old, "r1", "r2"), signed(new, "r2", "r3")]
    assert succeed(trust(), steps, NOW_MS).version == 3
    refused("replay.version", lambda: succeed(trust(), steps[1:], NOW_MS))
    refused("replay.version", lambda: succeed(new, steps, NOW_MS))
    refused("trust.expired", lambda: succeed(trust(), steps[:1], NOW_MS))


@pytest.mark.parametrize(
    "changes",
    [
        {"root": Keys((public("r1"), public("r2")), 1)},
        {"root": Keys((public("r1"),), 2)},
        {"beat": Keys((public("policy"),))},
        {"beat": Keys((public("b1"), public("b2")), 2)},
        {"beat": Keys(())},
        {"beat": Keys((public("beat").upper(),))},
        {"version": 0},
    ],
)
def test_a_document_that_is_too_weak_is_none(changes: dict[str, Any]) -> None:
    document = (
        replace(trust(), version=changes.pop("version", 1)) if "version" in changes else trust(**changes)
    )
    refused("token.malformed", lambda: pinned(signed(document, "r1", "r2", "r3"), document.digest))


def test_a_rotated_role_begins_anew_and_no_other_does() -> None:
    here, _ = admit_beat(HERE, sign_beat(replace(BEAT, seq=1 << 40), key("beat")), NOW_MS)
    here, _ = admit_nodes(here, sign_nodes(NODES, key("policy")), NOW_MS)
    after = renewed(here, [signed(trust(2, beat=Keys((public("beat2"),))), "r1", "r2")], NOW_MS)
    assert admit_beat(after, sign_beat(BEAT, key("beat2")), NOW_MS)[1] == BEAT
    refused("meta.worker_widen", lambda: admit_beat(after, sign_beat(BEAT, key("beat")), NOW_MS))
    refused("replay.version", lambda: admit_nodes(after, sign_nodes(NODES, key("policy")), NOW_MS))


# -- messages


def test_what_home_says_is_taken_once_and_in_order() -> None:
    here, beat = admit_beat(HERE, sign_beat(BEAT, key("beat")), NOW_MS)
    assert beat == BEAT
    refused("replay.seq", lambda: admit_beat(here, sign_beat(BEAT, key("beat")), NOW_MS))
    later = replace(BEAT, seq=2)
    for wrong in (replace(later, at_ms=NOW_MS - 1), replace(later, min_epoch=2)):
        refused("replay.seq", lambda wrong=wrong: admit_beat(here, sign_beat(wrong, key("beat")), NOW_MS))
    early = replace(later, at_ms=NOW_MS + HOUR)
    refused("beat.time", lambda: admit_beat(here, sign_beat(early, key("beat")), NOW_MS))

    here, allotment = admit_allotment(here, sign_allotment(ALLOTMENT, key("lease")), NOW_MS)
    assert allotment == ALLOTMENT
    again = sign_allotment(ALLOTMENT, key("lease"))
    refused("replay.seq", lambda: admit_allotment(here, again, NOW_MS))
    other = sign_allotment(replace(ALLOTMENT, seq=2, node="w2"), key("lease"))
    refused("allotment.audience", lambda: admit_allotment(here, other, NOW_MS))
    over = sign_allotment(replace(ALLOTMENT, seq=2, window_ms=1), key("lease"))
    refused("allotment.over", lambda: admit_allotment(here, over, NOW_MS))

    here, nodes = admit_nodes(here, sign_nodes(NODES, key("policy")), NOW_MS)
    assert nodes.manifests == {"w1": "ab" * 32, "w2": ""}
    refused("trust.expired", lambda: admit_nodes(HERE, sign_nodes(NODES, key("policy")), NOW_MS + HOUR))


def test_each_role_says_its_own_and_a_worker_says_nothing() -> None:
    for name in ("root", "r1", "policy", "lease", "w1"):
        refused("meta.worker_widen", lambda name=name: admit_beat(HERE, sign_beat(BEAT, key(name)), NOW_MS))
    # The right key and another type: a beat cannot pass as a list of nodes.
    beat = canonical_json({"v": 1, "version": 9, "nodes": {}})
    refused("sig.invalid", lambda: admit_nodes(HERE, seal(BEAT_TYPE, beat, key("policy")).to_bytes(), NOW_MS))


def test_bundles_and_leases_come_under_the_same_trust() -> None:
    def bundle(version: int, signer: str) -> bytes:
        return sign_bundle(version, NOW_MS + HOUR, {"p": POLICY.to_canonical_json()}, key(signer))

    here, admission = admit_bundle_of(HERE, bundle(4, "policy"), NOW_MS)
    assert admission.accepted
    assert admit_bundle_of(here, bundle(4, "policy"), NOW_MS)[1].reason == "replay.version"
    assert admit_bundle_of(here, bundle(5, "lease"), NOW_MS)[1].reason == "meta.worker_widen"
    assert admit_bundle_of(here, b"{}", NOW_MS)[1].reason == "token.malformed"

    def lease(seq: int, signer: str = "lease", **fields: Any) -> list[bytes]:
        made = Lease("L9", "p", (parse_scope("a.example.org"),), exp_ms=NOW_MS + HOUR, seq=seq, **fields)
        return [sign_link(Link(made), key(signer))]

    def admit(at: Standing, chain: list[bytes], beat: Beat | None = None) -> tuple[Standing, str]:
        after, said = admit_lease_of(at, chain, beat, POLICY, NoSuffixes(), NOW_MS)
        return after, said.reason

    here, reason = admit(here, lease(1))
    assert reason == "ok"
    assert admit(here, lease(1))[1] == "replay.seq"
    assert admit(here, lease(2, "policy"))[1] == "meta.worker_widen"
    assert admit(here, lease(2), BEAT)[1] == "lease.epoch"
    assert admit(here, lease(2, epoch=3), replace(BEAT, revoked=("L9",)))[1] == "lease.revoked"
    assert admit(here, [])[1] == "token.malformed"


# -- events of nodes


def events(count: int) -> list[Event]:
    made: list[Event] = []
    for seq in range(count):
        prev = event_digest(made[-1]) if made else ""
        made.append(Event("w1", "e1", seq, prev, f"n{seq}", "job.end", {"code": seq}))
    return made


def test_events_are_a_chain_without_a_gap() -> None:
    told, chain = Told(), events(3)
    for event in chain:
        told, got = admit_event(told, "w1", key("w1").public_key(), sign_event(event, key("w1")))
        assert got == event
    once, _ = admit_event(Told(), "w1", key("w1").public_key(), sign_event(chain[0], key("w1")))
    for event, signer, code in (
        (chain[0], "w1", "replay.seq"),
        (chain[2], "w1", "event.gap"),
        (replace(chain[1], prev="00" * 32), "w1", "event.gap"),
        (replace(chain[1], node="w2"), "w1", "meta.attribution"),
        (chain[1], "w2", "sig.invalid"),
    ):
        data = sign_event(event, key(signer))
        refused(code, lambda data=data: admit_event(once, "w1", key("w1").public_key(), data))


# -- forged, replayed and mixed envelopes

FORGERIES = 100_000


def test_no_forged_replayed_or_mixed_envelope_is_taken() -> None:
    """Everything a taken-over store of messages could hand out: true ones again, cut, mixed and changed."""
    rng = random.Random(20_261_121)
    true = {
        "beat": sign_beat(BEAT, key("beat")),
        "allotment": sign_allotment(ALLOTMENT, key("lease")),
        "nodes": sign_nodes(NODES, key("policy")),
        "bundle": sign_bundle(4, NOW_MS + HOUR, {"p": POLICY.to_canonical_json()}, key("policy")),
    }
    here, _ = admit_beat(HERE, true["beat"], NOW_MS)
    here, _ = admit_allotment(here, true["allotment"], NOW_MS)
    here, _ = admit_nodes(here, true["nodes"], NOW_MS)
    here, _ = admit_bundle_of(here, true["bundle"], NOW_MS)
    thieves = [sign_beat(replace(BEAT, seq=9), key("w1")), sign_nodes(replace(NODES, version=9), key("w2"))]
    pool = [*true.values(), *thieves]
    for _ in range(FORGERIES):
        data = _forged(rng, pool)
        for admit in (admit_beat, admit_allotment, admit_nodes):
            try:
                admit(here, data, NOW_MS)
            except TokenError:
                continue
            pytest.fail(f"taken: {data!r}")
        after, admission = admit_bundle_of(here, data, NOW_MS)
        assert not admission.accepted
        assert after is here


def _forged(rng: random.Random, pool: list[bytes]) -> bytes:
    one, two = rng.choice(pool), rng.choice(pool)
    how = rng.randrange(5)
    if how == 0:  # a true one again
        return one
    if how == 1:  # one byte changed
        at = rng.randrange(len(one))
        return one[:at] + bytes((rng.randrange(256),)) + one[at + 1 :]
    if how == 2:  # cut, or with more behind
        return one[: rng.randrange(len(one))] if rng.random() < 0.5 else one + two[: rng.randrange(8)]
    if how == 3:  # the head of one with the tail of another
        return one[: rng.randrange(len(one))] + two[rng.randrange(len(two)) :]
    first, second = one.split(b'"signatures"'), two.split(b'"signatures"')  # another's signature
    return first[0] + b'"signatures"' + second[1]
