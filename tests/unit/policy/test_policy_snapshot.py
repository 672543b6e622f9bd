"""What control sends, the gateway decides by."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from exeat.appliance.public_suffixes import bundled_suffixes
from exeat.policy import verdicts
from exeat.policy.addresses import parse_address
from exeat.policy.document import Document, load_policy
from exeat.policy.leases import Lease
from exeat.policy.model import Request, Subject, Verdict
from exeat.policy.scopes import parse_ports, parse_scope
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


def test_a_baseline_holds_for_projects_and_jobs_and_is_compiled_anew_when_it_changes() -> None:
    one, two = (
        load_policy(f"egress: v1\nproject: baseline\n{body}", file="b", suffixes=bundled_suffixes())
        for body in ("deny: [{id: no, to: b.org}]", "ceiling: []")
    )
    plain = Snapshot.load(message())
    with_one = message(documents=[BROAD, NARROW, one], baseline=one.digest)
    assert plain.to_compile(with_one) == len(BROAD.to_canonical_json()) + len(NARROW.to_canonical_json())
    first = Snapshot.load(with_one, plain)
    assert first.to_compile(with_one) == 0
    assert Snapshot.load(with_one, first).policies[NARROW.digest] is first.policies[NARROW.digest]
    assert reason(first, JOB, "b.org") == "rule.deny"
    assert reason(first, OTHER, "x.a.org") == "rule.allow"
    assert first.document_for(JOB) is not None
    second = Snapshot.load(message(documents=[BROAD, NARROW, two], baseline=two.digest), first)
    assert reason(second, OTHER, "x.a.org") == "ceiling.exceeded"
    for broken in ({"baseline": one.digest}, {"documents": [BROAD, NARROW, one], "baseline": "00"}):
        with pytest.raises(SnapshotError):
            Snapshot.load(message(**broken))


@pytest.mark.parametrize("killed", ["*", "p"])
def test_the_kill_switch_comes_before_every_policy_and_lease(killed: str) -> None:
    open_to_all = document("posture: off\nacknowledge: unenforced\nexpires: 2030-01-01T00:00:00Z")
    fields = {
        "documents": [open_to_all, NARROW, BROAD],
        "projects": {"p": open_to_all.digest, "q": BROAD.digest},
    }
    fields["shadows"] = {"p": BROAD.digest}
    free, stopped = (Snapshot.load(message(**fields, killed=names)) for names in ((), (killed,)))
    usage, other = Usage(), Subject("q", "a1")
    for subject, host in ((OTHER, "x.org"), (JOB, "b.org"), (JOB, "c.org")):
        assert not free.stops(subject)
        assert stopped.stops(subject)
        assert reason(free, subject, host) != "kill"
        request = Request(subject, host, 443)
        decision = stopped.decide(request, NOW, usage)
        assert (decision.verdict, decision.reason, decision.budgets) == (Verdict.DENY, "kill", ())
        assert stopped.decide_lookup(subject, host, NOW, usage) == decision
        assert stopped.shadow(request, decision, NOW, usage) == ""
        assert stopped.shadow_lookup(subject, host, decision, NOW, usage) == ""
    assert free.may_speak_udp(OTHER, NOW)
    assert not stopped.may_speak_udp(OTHER, NOW)
    assert reason(stopped, other, "x.a.org") == ("kill" if killed == "*" else reason(free, other, "x.a.org"))
    assert reason(stopped, Subject("", ""), "b.org") == ("kill" if killed == "*" else "meta.attribution")
    meanwhile = free.meanwhile(message(**fields, killed=[killed]))
    assert reason(meanwhile, OTHER, "x.org") == "kill"
    assert reason(meanwhile.meanwhile(message(**fields)), OTHER, "x.org") != "kill"


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
        {"killed": "*"},
        {"killed": None},
        {"killed": ["p", 5]},
    ],
)
def test_what_is_not_a_snapshot(change: dict[str, Any]) -> None:
    with pytest.raises(SnapshotError):
        Snapshot.load(message() | change)


@pytest.mark.parametrize(
    "key", ["generation", "fresh_ms", "policies", "projects", "jobs", "leases", "revoked", "killed"]
)
def test_what_is_missing(key: str) -> None:
    built = message()
    del built[key]
    with pytest.raises(SnapshotError):
        Snapshot.load(built)


@pytest.mark.parametrize(
    ("body", "lease_ports", "expected"),
    [
        ("", "22", "allow"),  # nothing but a lease, and not on 443
        ("", "53", "deny"),
        ("posture: public\ndeny: [{to: 'b.org:443'}]", "", "allow"),  # there is still 80
        ("posture: custom\ndefault: public\ndeny: [{to: 'b.org:443'}]", "", "allow"),
        ("posture: custom\ndefault: ask\ndeny: [{to: 'b.org:443'}]", "", "ask"),
        ("posture: custom\ndefault: deny\nask: [{to: b.org, ports: 22}]", "", "ask"),
        ("posture: custom\ndefault: deny\ndeny: [{to: 'b.org:22'}]", "", "deny"),
        ("allow: [{to: b.org, ports: 1-65535, except: ['b.org:1-8000']}]", "", "allow"),
        ("allow: [{to: b.org, ports: 7, proto: udp}]", "", "allow"),
    ],
)
def test_a_lookup_finds_the_one_port_that_is_open(body: str, lease_ports: str, expected: str) -> None:
    one = document(body)
    lease = Lease("L", "p", (parse_scope("b.org"),), exp_ms=NOW + 1000)
    lease = replace(lease, ports=parse_ports([lease_ports])) if lease_ports else lease
    fields = {"documents": [one], "projects": {"p": one.digest}, "jobs": {}}
    snapshot = Snapshot.load(message(**fields, leases=[lease] if lease_ports else []))
    assert snapshot.decide_lookup(JOB, "b.org", NOW, Usage()).verdict == expected


@pytest.mark.parametrize(
    ("address", "expected"),
    [("8.8.8.8", "allow"), ("::ffff:8.8.8.8", "allow"), ("64:ff9b::808:808", "deny"), ("9.9.9.9", "allow")],
)
def test_a_lookup_knows_where_a_denied_network_leaves_a_port_open(address: str, expected: str) -> None:
    one = document(
        "allow: [{to: b.org, ports: 400-450}]\n"
        "deny: [{to: 8.0.0.0/8, ports: 1-448}, {to: 8.8.8.8, ports: 450}, {to: '64:ff9b::/96'}]"
    )
    fields = {"documents": [one], "projects": {"p": one.digest}, "jobs": {}, "leases": []}
    decision = Snapshot.load(message(**fields)).decide_lookup(
        JOB, "b.org", NOW, Usage(), (parse_address(address),)
    )
    assert decision.verdict == expected


def test_tables_are_dropped_before_they_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    many = document("allow:\n" + "".join(f"  - {{to: .r{n}.org, ports: {n + 1}}}\n" for n in range(200)))
    fields = {"documents": [many], "projects": {"p": many.digest}, "jobs": {}, "leases": []}
    snapshot = Snapshot.load(message(**fields))
    monkeypatch.setattr(verdicts, "MAX_WEIGHT", 1000)
    for number in (*range(200), *range(200)):
        if number + 1 not in (53,):
            assert reason(snapshot, JOB, f"x.r{number}.org", port=number + 1) == "rule.allow"
            assert reason(snapshot, JOB, f"x.r{number}.org", port=number + 2).endswith(("deny", "dns_bypass"))
    policy = snapshot.policy_for(JOB)
    assert policy is not None
    assert policy.verdicts.weight <= 1000


@pytest.mark.parametrize("labels", [1, 2, 3, 60, 120])
def test_long_names_are_found_below_short_suffixes(labels: int) -> None:
    one = document("allow: [{to: .a.org}, {to: '*.b.c.d.org'}]")
    snapshot = Snapshot.load(message(documents=[one], projects={"p": one.digest}, jobs={}, leases=[]))
    prefix = "x." * labels
    assert reason(snapshot, JOB, f"{prefix}a.org") == "rule.allow"
    assert reason(snapshot, JOB, f"{prefix}b.c.d.org") == "rule.allow"
    assert reason(snapshot, JOB, f"{prefix}c.d.org") == "posture.default_deny"
    assert reason(snapshot, JOB, f"{prefix}aa.org") == "posture.default_deny"


def test_nested_and_adjacent_networks() -> None:
    one = document(
        "allow:\n"
        "  - {id: wide, to: 8.0.0.0/8, ports: any}\n"
        "  - {id: half, to: 8.8.0.0/16, ports: 22}\n"
        "  - {id: last, to: 8.8.255.255, ports: 22}\n"
        "  - {id: next, to: 8.9.0.0/16, ports: 22}\n"
        "  - {id: end, to: 223.255.255.255, ports: 22}\n"
    )
    snapshot = Snapshot.load(message(documents=[one], projects={"p": one.digest}, jobs={}, leases=[]))
    for address, ids in {
        "8.0.0.0": ["wide"],
        "8.7.255.255": ["wide"],
        "8.8.0.0": ["half", "wide"],
        "8.8.255.255": ["last", "half", "wide"],
        "8.9.0.0": ["next", "wide"],
        "8.10.0.0": ["wide"],
        "8.255.255.255": ["wide"],
        "9.0.0.0": [],
        "7.255.255.255": [],
        "223.255.255.255": ["end"],
        "223.255.255.254": [],
    }.items():
        request = Request(JOB, parse_address(address), 22)
        assert list(snapshot.decide(request, NOW, Usage()).matched) == ids, address


def test_leases_are_found_by_whatever_they_are_bound_to() -> None:
    scope = (parse_scope("c.org"),)
    bound = [
        Lease("job", "p", scope, job="j1", exp_ms=NOW + 1000),
        Lease("other-job", "p", scope, job="j9", exp_ms=NOW + 1000),
        Lease("agent", "p", scope, agents=frozenset({"a1", "a2"}), exp_ms=NOW + 1000),
        Lease("other-agent", "p", scope, agents=frozenset({"a3"}), exp_ms=NOW + 1000),
        Lease("job-of-another", "p", scope, job="j1", agents=frozenset({"a3"}), exp_ms=NOW + 1000),
        Lease("node", "p", scope, nodes=frozenset({"n1"}), exp_ms=NOW + 1000),
        Lease("free", "p", (*scope, parse_scope(".org")), exp_ms=NOW + 1000),
        Lease("other-project", "q", scope, exp_ms=NOW + 1000),
        Lease("port", "p", scope, ports=parse_ports(["22"]), exp_ms=NOW + 1000),
        Lease("except", "p", scope, except_=scope, exp_ms=NOW + 1000),
        Lease("ended", "p", scope, exp_ms=NOW),
    ]
    decision = Snapshot.load(message(leases=bound)).decide(Request(JOB, "c.org", 443), NOW, Usage())
    assert decision.matched == ("agent", "free", "job", "node")
    assert (decision.rule, decision.lease) == ("agent", "agent")
