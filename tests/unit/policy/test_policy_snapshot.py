"""What control sends, the gateway decides by."""

from __future__ import annotations

import json
from typing import Any

import pytest

from exeat.appliance.public_suffixes import bundled_suffixes
from exeat.policy.addresses import parse_address
from exeat.policy.document import Document, load_policy
from exeat.policy.leases import Lease
from exeat.policy.model import Request, Subject, Verdict
from exeat.policy.scopes import parse_scope
from exeat.policy.snapshot import Snapshot, SnapshotError
from exeat.policy.usage import Usage

NOW = 1_767_614_400_000
JOB = Subject("p", "a1", job="j1", node="n1")
OTHER = Subject("p", "a1", job="j2", node="n1")


def document(body: str) -> Document:
    return load_policy(f"egress: v1\nproject: p\n{body}", file="x", suffixes=bundled_suffixes())


BROAD = document("allow: [{id: all, to: .a.org}]\nbudgets: {default: {connections: 2/1h}}")
NARROW = document("allow: [{id: one, to: b.org}]")
LEASE = Lease(id="L", project="p", to=(parse_scope("c.org"),), exp_ms=NOW + 1000)


def message(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "generation": 7,
        "fresh_ms": 3_600_000,
        "documents": [BROAD, NARROW],
        "projects": {"p": BROAD.digest},
        "jobs": {"j1": NARROW.digest},
        "leases": [LEASE],
    }
    built: dict[str, Any] = json.loads(json.dumps(Snapshot.message(**(fields | changes))))
    return built


def reason(snapshot: Snapshot, subject: Subject, host: str, *resolved: str, port: int = 443) -> str:
    request = Request(subject, host, port, "tcp", tuple(map(parse_address, resolved)))
    return snapshot.decide(request, NOW, Usage()).reason


def test_bindings() -> None:
    snapshot = Snapshot.load(message())
    assert (snapshot.generation, snapshot.fresh_ms) == (7, 3_600_000)
    assert reason(snapshot, OTHER, "x.a.org") == "rule.allow"
    assert reason(snapshot, JOB, "x.a.org") == "posture.default_deny"
    assert reason(snapshot, JOB, "b.org") == "rule.allow"
    assert reason(snapshot, JOB, "c.org") == "lease.active"
    assert reason(snapshot, Subject("q", "a1"), "b.org") == "meta.project"
    assert reason(snapshot, Subject("q", "a1", job="j1"), "b.org") == "meta.project"
    assert reason(snapshot, Subject("", ""), "b.org") == "meta.attribution"
    assert snapshot.document_for(JOB) == NARROW
    assert snapshot.document_for(Subject("q", "a1")) is None
    assert dict(snapshot.leases) == {"L": LEASE}


def test_revocation_and_epoch() -> None:
    assert reason(Snapshot.load(message(revoked=["L"])), JOB, "c.org") == "posture.default_deny"
    assert reason(Snapshot.load(message(min_epoch=1)), JOB, "c.org") == "posture.default_deny"


def test_budgets_are_charged_by_name() -> None:
    snapshot, usage = Snapshot.load(message()), Usage()
    request = Request(OTHER, "x.a.org", 443)
    for _ in range(2):
        decision = snapshot.decide(request, NOW, usage)
        assert decision.allowed
        usage.charge("p", decision.budgets, connections=1, now_ms=NOW)
    assert snapshot.decide(request, NOW, usage).reason == "budget.exceeded"
    assert snapshot.decide(request, NOW + 3_600_000, usage).allowed


def test_lookups() -> None:
    snapshot, usage = Snapshot.load(message()), Usage()
    assert snapshot.decide_lookup(JOB, "b.org", NOW, usage).verdict is Verdict.ALLOW
    assert snapshot.decide_lookup(JOB, "B.ORG.", NOW, usage).verdict is Verdict.ALLOW
    assert snapshot.decide_lookup(JOB, "x.a.org", NOW, usage).reason == "posture.default_deny"
    private = (parse_address("10.0.0.1"),)
    assert snapshot.decide_lookup(JOB, "b.org", NOW, usage, private).reason == "address.not_public"
    assert snapshot.decide_lookup(JOB, "b\0.org", NOW, usage).reason == "malformed.host"
    assert snapshot.decide_lookup(Subject("q", "x"), "b.org", NOW, usage).reason == "meta.project"


@pytest.mark.parametrize(
    ("ports", "expected"),
    [("53", "deny"), ("53-54", "allow"), ("784", "deny"), ("8443", "allow"), ("8443-8444", "allow")],
)
def test_a_lookup_needs_one_port_that_is_open(ports: str, expected: str) -> None:
    one = document(f"allow: [{{to: b.org, ports: {ports}}}]")
    fields = {"documents": [one], "projects": {"p": one.digest}, "jobs": {}, "control": ["x.org:8443"]}
    decision = Snapshot.load(message(**fields)).decide_lookup(JOB, "b.org", NOW, Usage())
    assert decision.verdict == expected
    fields["control"] = ["b.org:8443"]
    closed = Snapshot.load(message(**fields)).decide_lookup(JOB, "b.org", NOW, Usage())
    assert closed.verdict == ("deny" if ports == "8443" else expected)


def test_the_lab_and_the_node() -> None:
    fields = {
        "treat_as_public": ["203.0.113.0/24", "169.254.0.0/16", "127.0.0.0/8"],
        "control": ["b.org:8443", "198.51.100.1:443"],
        "host_local": ["8.8.8.8"],
    }
    snapshot = Snapshot.load(message(**fields))
    assert reason(snapshot, JOB, "b.org", "203.0.113.9") == "rule.allow"
    assert reason(snapshot, JOB, "b.org", "127.0.0.1") == "rule.allow"
    assert reason(snapshot, JOB, "b.org", "169.254.169.254") == "meta.metadata"
    assert reason(snapshot, JOB, "b.org", "203.0.113.9", "10.0.0.1") == "address.not_public"
    assert reason(snapshot, JOB, "b.org", port=8443) == "meta.control_plane"
    assert reason(snapshot, JOB, "b.org", "198.51.100.1") == "meta.control_plane"
    assert reason(snapshot, JOB, "b.org", "8.8.8.8") == "meta.loopback"
    assert reason(snapshot, JOB, "localhost") == "meta.loopback"


def test_unchanged_policies_are_not_compiled_again() -> None:
    first = Snapshot.load(message())
    second = Snapshot.load(message(generation=8), first)
    assert second.policies[NARROW.digest] is first.policies[NARROW.digest]
    third = Snapshot.load(message(treat_as_public=["10.0.0.0/8"]), second)
    assert third.policies[NARROW.digest] is not first.policies[NARROW.digest]


@pytest.mark.parametrize(
    "change",
    [
        {"generation": "7"},
        {"generation": -1},
        {"generation": True},
        {"fresh_ms": None},
        {"policies": {NARROW.digest: BROAD.to_canonical_json()}},
        {"policies": {}},
        {"policies": []},
        {"projects": {"p": "0" * 64}},
        {"leases": [{}]},
        {"leases": [1]},
        {"treat_as_public": ["10.0.0.1/8"]},
        {"control": ["b.org"]},
        {"control": [".b.org:443"]},
        {"host_local": ["here"]},
        {"revoked": 5},
    ],
)
def test_what_is_not_a_snapshot(change: dict[str, Any]) -> None:
    with pytest.raises(SnapshotError):
        Snapshot.load(message() | change)


@pytest.mark.parametrize(
    "key", ["generation", "fresh_ms", "policies", "projects", "jobs", "leases", "revoked"]
)
def test_what_is_missing(key: str) -> None:
    built = message()
    del built[key]
    with pytest.raises(SnapshotError):
        Snapshot.load(built)
