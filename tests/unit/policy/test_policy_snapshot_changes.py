"""From one snapshot to the next: what is taken over, what is taken away, and what is not a snapshot."""

from __future__ import annotations

import gc
import json
from types import FunctionType, ModuleType
from typing import Any

import pytest

from exeat.appliance.public_suffixes import bundled_suffixes
from exeat.policy.document import Document, load_policy
from exeat.policy.index import Cell
from exeat.policy.leases import Lease
from exeat.policy.model import Request, Subject
from exeat.policy.rules import Rule
from exeat.policy.scopes import parse_scope
from exeat.policy.snapshot import MAX_OVERLAYS, Snapshot, SnapshotError
from exeat.policy.usage import Usage

NOW = 1_767_614_400_000
HOUR = 3_600_000
WHO = Subject("p", "a1")
JOB = Subject("p", "a1", job="j1")


def document(project: str, body: str) -> Document:
    return load_policy(f"egress: v1\nproject: {project}\n{body}", file="x", suffixes=bundled_suffixes())


ONE = document("p", "allow: [{id: all, to: .a.org}]\nbudgets: {default: {connections: 2/1h}}")
TWO = document("q", "allow: [{id: one, to: b.org, budget: b}]\nbudgets: {b: {bytes: 10/1h}}")
THREE = document("p", "allow: [{id: job, to: c.org}]")


def lease(name: str, host: str, epoch: int = 5) -> Lease:
    return Lease(id=name, project="p", to=(parse_scope(host),), exp_ms=NOW + 1000, epoch=epoch)


def message(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "generation": 7,
        "fresh_ms": HOUR,
        "documents": [ONE, TWO, THREE],
        "projects": {"p": ONE.digest, "q": TWO.digest},
        "jobs": {"j1": THREE.digest},
        "leases": [lease("L", "c.org")],
    }
    built: dict[str, Any] = json.loads(json.dumps(Snapshot.message(**(fields | changes))))
    return built


def reason(snapshot: Snapshot, subject: Subject, host: str) -> str:
    return snapshot.decide(Request(subject, host, 443), NOW, Usage()).reason


def test_a_message_is_what_it_says() -> None:
    given = {
        "revoked": ["b", "a"],
        "killed": ["q", "p"],
        "control": ["h.org:1"],
        "treat_as_public": ["10.0.0.0/8"],
        "host_local": ["10.0.0.1"],
        "min_epoch": 3,
    }
    built = message(jobs=None, leases=(), documents=[THREE], **given)
    assert built == built | given | {
        "t": "snapshot",
        "generation": 7,
        "fresh_ms": HOUR,
        "policies": {THREE.digest: THREE.to_canonical_json()},
        "projects": {"p": ONE.digest, "q": TWO.digest},
        "jobs": {},
        "leases": [],
        "revoked": ["a", "b"],
        "killed": ["p", "q"],
    }
    assert message()["min_epoch"] == 0
    assert message()["leases"] == [json.loads(json.dumps(lease("L", "c.org").to_json()))]


def test_what_may_be_left_out() -> None:
    built = message()
    for key in ("treat_as_public", "control", "host_local", "min_epoch"):
        del built[key]
    whole = Snapshot.load(message())
    bare = Snapshot.load(built, whole)
    assert bare.policies[ONE.digest] is whole.policies[ONE.digest]  # the same place
    assert bare.min_epoch == 0


def test_zero_is_a_number() -> None:
    snapshot = Snapshot.load(message(generation=0, fresh_ms=0))
    assert (snapshot.generation, snapshot.fresh_ms) == (0, 0)


def test_how_much_there_is_to_compile() -> None:
    old = Snapshot.load(message(documents=[ONE, TWO], jobs={}))
    size = {d.digest: len(d.to_canonical_json()) for d in (ONE, TWO, THREE)}
    assert old.to_compile(message(documents=[ONE, TWO], jobs={})) == 0
    assert old.to_compile(message()) == size[THREE.digest]
    # Somewhere else every policy means something else, so all are compiled again.
    assert old.to_compile(message(control=["h.org:1"])) == sum(size.values())
    assert old.to_compile({}) == 0
    assert old.to_compile(message() | {"policies": [1]}) == 0
    assert old.to_compile(message() | {"policies": {"x": 1}}) == 0
    assert old.to_compile(message() | {"control": [".org"]}) == 0


def test_meanwhile_takes_away_at_once_and_gives_nothing_new() -> None:
    old = Snapshot.load(
        message(min_epoch=3, revoked=["M"], leases=[lease("L", "c.org"), lease("N", "d.org")])
    )
    assert reason(old, WHO, "d.org") == "lease.active"
    newer = message(
        generation=8,
        projects={"p": THREE.digest, "r": THREE.digest},
        jobs={"j2": THREE.digest},
        leases=[lease("L", "c.org"), lease("M", "e.org")],
        revoked=["L"],
        min_epoch=2,
    )
    between = old.meanwhile(newer)
    assert (between.generation, between.min_epoch) == (7, 3)
    assert dict(between.projects) == {"p": ONE.digest}
    assert dict(between.jobs) == {}
    assert reason(between, WHO, "c.org") == "posture.default_deny"  # revoked
    assert reason(between, WHO, "d.org") == "posture.default_deny"  # gone
    assert reason(between, WHO, "e.org") == "lease.active"
    assert reason(between, JOB, "c.org") == "posture.default_deny"  # the job's policy is gone
    assert reason(between, WHO, "x.a.org") == "rule.allow"
    assert reason(between, Subject("q", "a1"), "b.org") == "meta.project"
    assert reason(between, Subject("r", "a1"), "c.org") == "meta.project"
    assert set(between.leases) == {"L", "M"}
    assert reason(old.meanwhile(newer | {"min_epoch": 6}), WHO, "e.org") == "posture.default_deny"
    kept = old.meanwhile({key: value for key, value in message().items() if key != "min_epoch"})
    assert (kept.min_epoch, dict(kept.jobs)) == (3, {"j1": THREE.digest})
    assert reason(kept, JOB, "c.org") == "lease.active"


def test_meanwhile_without_an_epoch_fences_nothing() -> None:
    newer = {key: value for key, value in message().items() if key != "min_epoch"}
    assert Snapshot.load(message()).meanwhile(newer).min_epoch == 0


@pytest.mark.parametrize(
    "change",
    [
        {"leases": [1]},
        {"leases": [{"to": ["10.0.0.0/99"]}]},
        {"leases": [[("to", None)]]},
        {"projects": None},
        {"revoked": 5},
        {"min_epoch": -1},
    ],
)
def test_meanwhile_of_what_is_not_a_snapshot(change: dict[str, Any]) -> None:
    with pytest.raises(SnapshotError):
        Snapshot.load(message()).meanwhile(message() | change)


@pytest.mark.parametrize("missing", ["leases", "projects", "jobs", "revoked"])
def test_meanwhile_of_a_message_that_lacks_something(missing: str) -> None:
    newer = {key: value for key, value in message().items() if key != missing}
    with pytest.raises(SnapshotError):
        Snapshot.load(message()).meanwhile(newer)


def test_counters_are_restored_under_the_budgets_of_every_policy() -> None:
    snapshot, usage = Snapshot.load(message()), Usage()
    rows = [
        {"project": "p", "budgets": ["default"], "at_ms": NOW, "connections": 2},
        {"project": "q", "budgets": ["b"], "at_ms": NOW, "bytes_up": 4, "bytes_down": 6},
    ]
    snapshot.restore(usage, {"rows": rows, "leases": [{"lease": "L", "bytes": 3, "uses": 4}]})
    assert snapshot.decide(Request(WHO, "x.a.org", 443), NOW, usage).reason == "budget.exceeded"
    assert snapshot.decide(Request(Subject("q", "a1"), "b.org", 443), NOW, usage).reason == "budget.exceeded"
    assert (usage.lease_bytes("L"), usage.lease_uses("L")) == (3, 4)
    # `restore` has told the counters which windows there are, so that later charges count too.
    assert usage.used("p", "default", "connections", HOUR, NOW) == 2


def test_a_job_without_a_policy_of_its_own_has_its_project_s() -> None:
    snapshot = Snapshot.load(message(leases=()))
    assert reason(snapshot, Subject("p", "a1", job="j9"), "x.a.org") == "rule.allow"
    assert reason(snapshot, JOB, "c.org") == "rule.allow"
    assert reason(snapshot, JOB, "x.a.org") == "posture.default_deny"


@pytest.mark.parametrize("change", [{"projects": {"p": "0" * 64}}, {"jobs": {"j1": "0" * 64}}])
def test_a_binding_to_a_policy_that_is_not_there(change: dict[str, Any]) -> None:
    with pytest.raises(SnapshotError):
        Snapshot.load(message() | change)


@pytest.mark.parametrize("endpoint", ["10.0.0.0/8:443", "h.org:1-2", "h.org:any", "*:443", "*.h.org:443"])
def test_an_endpoint_is_one_host_and_one_port(endpoint: str) -> None:
    with pytest.raises(SnapshotError):
        Snapshot.load(message() | {"control": [endpoint]})


def test_a_policy_is_known_by_its_place_too() -> None:
    first = Snapshot.load(message(control=["h.org:443"]))
    again = Snapshot.load(message(control=["h.org:443"]), first)
    moved = Snapshot.load(message(control=["h.org:444"]), first)
    assert again.policies[ONE.digest] is first.policies[ONE.digest]
    assert moved.policies[ONE.digest] is not first.policies[ONE.digest]


def test_every_counter_has_an_overlay_of_its_own() -> None:
    snapshot = Snapshot.load(message())
    counters = [Usage() for _ in range(MAX_OVERLAYS + 2)]
    for usage in counters:
        request = Request(WHO, "x.a.org", 443)
        for expected in ("rule.allow", "rule.allow", "budget.exceeded"):
            decision = snapshot.decide(request, NOW, usage)
            assert decision.reason == expected
            usage.charge("p", decision.budgets, connections=1, now_ms=NOW)
        assert len(snapshot._overlays) <= MAX_OVERLAYS


def test_an_overlay_is_made_once() -> None:
    snapshot, counters = Snapshot.load(message()), [Usage(), Usage()]
    policies = [snapshot.policy_for(who) for who in (WHO, JOB)]
    pairs = [(policy, usage) for policy in policies if policy for usage in counters]
    made = [snapshot._overlay(*pair) for pair in pairs]
    assert len({id(overlay) for overlay in made}) == 4
    assert all(snapshot._overlay(*pair) is overlay for pair, overlay in zip(pairs, made, strict=True))


def test_every_policy_tells_the_counters_which_windows_it_has() -> None:
    snapshot, usage, other = Snapshot.load(message()), Usage(), Subject("q", "a1")
    assert snapshot.decide(Request(WHO, "x.a.org", 443), NOW, usage).allowed
    assert snapshot.decide(Request(other, "b.org", 443), NOW, usage).allowed
    usage.charge("q", ["b"], now_ms=NOW, bytes_up=10)
    assert snapshot.decide(Request(other, "b.org", 443), NOW, usage).reason == "budget.exceeded"


LARGE = """
allow: [{id: a, to: [.a.org, "*.b.a.org", c.org, "*"], broad: true}]
deny: [{id: d, to: [10.0.0.0/8, 10.1.0.0/16, "2606:4700::/32", e.org]}, {id: f, to: f.org}]
ask: [{id: g, to: 10.2.0.0/16}]
"""
CEILING = "ceiling: [{to: .org, broad: true}, {to: 10.0.0.0/8, ports: any}]"


@pytest.mark.parametrize("body", ["", LARGE, LARGE + CEILING, CEILING, "deny: [{id: n, to: 10.0.0.0/8}]"])
def test_what_a_policy_leaves_behind_is_every_rule_and_place_of_it(body: str) -> None:
    policy = document("p", body)
    old = Snapshot.load(message(documents=[policy], projects={"p": policy.digest}, jobs={}))
    gone = old.policies[policy.digest]
    left = old.leftover(Snapshot.load(message()))
    assert {id(piece) for piece in left} == {id(piece) for piece in _rules_and_cells(gone)}
    assert old.leftover(old) == []


def _rules_and_cells(whole: object) -> list[object]:
    """What can be reached from `whole`, whatever holds it."""
    found: dict[int, object] = {}
    new = [whole]
    while new:
        item = new.pop()
        if id(item) not in found and not isinstance(item, type | ModuleType | FunctionType):
            found[id(item)] = item
            new += gc.get_referents(item)
    return [item for item in found.values() if isinstance(item, Rule | Cell)]


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        (Subject("r", "a1"), "meta.project"),
        (Subject("r", ""), "meta.attribution"),
        (Subject("", "a1"), "meta.attribution"),
    ],
)
def test_who_is_bound_to_nothing(subject: Subject, expected: str) -> None:
    snapshot = Snapshot.load(message())
    assert reason(snapshot, subject, "b.org") == expected
    assert snapshot.decide_lookup(subject, "b.org", NOW, Usage()).reason == expected
