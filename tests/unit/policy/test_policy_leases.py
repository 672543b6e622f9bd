"""The lease table, every (state, event) pair of it, and what approvers may and may not change."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from exeat.policy import leases
from exeat.policy.admin import Actor
from exeat.policy.leases import TERMINAL, TRANSITIONS, Approval, Event, Lease, Narrowing, Outcome, State
from exeat.policy.scopes import ANY_PORT, Scope, parse_ports, parse_scope

if TYPE_CHECKING:
    from collections.abc import Callable

NOW = 1_767_614_400_000
MINUTE = 60_000
ALICE, BOB = Actor("alice", "approver"), Actor("bob", "operator")
AGENT = Actor("a1", "agent")


def scopes(*texts: str) -> tuple[Scope, ...]:
    return tuple(map(parse_scope, texts))


def draft(**changes: object) -> Lease:
    base = Lease(id="p/a1/1", project="p", to=scopes(".github.com"), requester="a1", ttl_ms=30 * MINUTE)
    return replace(base, **changes)  # type: ignore[arg-type]


def requested(**changes: object) -> Lease:
    return leases.request(draft(**changes), NOW).lease


def active(**changes: object) -> Lease:
    return leases.approve(requested(**changes), ALICE, NOW).lease


def in_state(state: State) -> Lease:
    return replace(active(), state=state, pending=("proxy",) if state is State.REVOKING else ())


EVENTS: dict[Event, Callable[[Lease], Outcome]] = {
    Event.APPROVE: lambda lease: leases.approve(lease, ALICE, NOW + 1),
    Event.DENY: lambda lease: leases.deny(lease, ALICE, NOW + 1),
    Event.RENEW: lambda lease: leases.renew(lease, ALICE, NOW + 1),
    Event.REVOKE: lambda lease: leases.revoke(lease, ALICE, NOW + 1),
    Event.ACKNOWLEDGE: lambda lease: leases.acknowledge(lease, "proxy", NOW + 1),
    Event.EXHAUST: lambda lease: leases.exhaust(lease, NOW + 1),
}


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", EVENTS)
def test_every_pair_follows_the_table(state: State, event: Event) -> None:
    before = in_state(state)
    outcome = EVENTS[event](before)
    reachable = TRANSITIONS.get(state, {}).get(event)
    if reachable is None:
        assert outcome == Outcome(before, f"state.{state}")  # an illegal event changes nothing
    else:
        assert outcome.reason == "ok"
        assert outcome.lease.state in reachable


def test_terminal_states_stay() -> None:
    assert {State.EXPIRED, State.EXHAUSTED, State.REVOKED, State.DENIED, State.LAPSED} == TERMINAL
    for state in TERMINAL:
        assert leases.settle(in_state(state), NOW + 10**12).state is state


def test_time() -> None:
    assert leases.settle(requested(), NOW + 60 * MINUTE - 1).state is State.REQUESTED
    assert leases.settle(requested(), NOW + 60 * MINUTE).state is State.LAPSED
    assert leases.settle(active(), NOW + 30 * MINUTE - 1).state is State.ACTIVE
    assert leases.settle(active(), NOW + 30 * MINUTE).state is State.EXPIRED
    assert leases.settle(in_state(State.REVOKING), NOW + 30 * MINUTE).state is State.REVOKED


def test_revoking_waits_for_everyone() -> None:
    first = leases.revoke(active(), ALICE, NOW, pending=["proxy", "guard"]).lease
    assert (first.state, first.pending) == (State.REVOKING, ("guard", "proxy"))
    second = leases.acknowledge(first, "guard", NOW).lease
    assert (second.state, second.pending) == (State.REVOKING, ("proxy",))
    assert leases.acknowledge(second, "stranger", NOW).lease.state is State.REVOKING
    assert leases.acknowledge(second, "proxy", NOW).lease.state is State.REVOKED
    assert leases.revoke(active(), ALICE, NOW).lease.state is State.REVOKED
    assert leases.revoke(requested(), AGENT, NOW, pending=["proxy"]).lease.state is State.REVOKED


@pytest.mark.parametrize(
    ("actor", "changes", "reason"),
    [
        (AGENT, {}, "meta.self_grant"),
        (Actor("a2", "agent"), {}, "meta.self_grant"),
        (Actor("w1", "worker"), {}, "meta.self_grant"),
        (Actor("u7", "driver"), {}, "meta.self_grant"),
        (Actor("u1", "viewer"), {}, "meta.role"),
        (Actor("u1", "ADMIN"), {}, "meta.role"),
        (Actor("", "admin"), {}, "meta.attribution"),
        (ALICE, {"requester": "alice"}, "meta.sod"),
        (ALICE, {"on_behalf_of": "alice"}, "meta.sod"),
    ],
)
def test_who_may_not_approve(actor: Actor, changes: dict[str, object], reason: str) -> None:
    lease = requested(**changes)
    assert leases.approve(lease, actor, NOW) == Outcome(lease, reason)


def test_approvals_count_people_once() -> None:
    lease = requested(approvals_needed=2)
    once = leases.approve(lease, ALICE, NOW).lease
    twice = leases.approve(once, ALICE, NOW + 1).lease
    assert twice.state is State.REQUESTED
    assert twice.approvals == (Approval("alice", NOW),)
    assert leases.approve(twice, BOB, NOW + 2).lease.state is State.ACTIVE


WIDER = [
    Narrowing(to=scopes(".org")),
    Narrowing(to=scopes("github.com", "evil.org")),
    Narrowing(to=scopes("*")),
    Narrowing(to=scopes("10.0.0.1")),
    Narrowing(to=()),
    Narrowing(ports=ANY_PORT),
    Narrowing(ports=parse_ports(["443", "22"])),
    Narrowing(to=scopes("api.github.com:22")),
    Narrowing(ttl_ms=30 * MINUTE + 1),
    Narrowing(ttl_ms=0),
    Narrowing(ttl_ms=-1),
    Narrowing(max_bytes=1001),
    Narrowing(max_uses=4),
    Narrowing(max_uses=-1),
]


@pytest.mark.parametrize("change", WIDER)
def test_nothing_widens(change: Narrowing) -> None:
    lease = requested(max_bytes=1000, max_uses=3)
    assert leases.approve(lease, ALICE, NOW, change) == Outcome(lease, "review.widened")


def test_every_dimension_narrows() -> None:
    change = Narrowing(
        to=scopes("*.api.github.com", "github.com:443"),
        except_=scopes("x.api.github.com"),
        ttl_ms=MINUTE,
        max_bytes=10,
        max_uses=1,
    )
    lease = leases.approve(requested(), ALICE, NOW, change).lease
    assert (lease.to, lease.except_, lease.exp_ms) == (change.to, change.except_, NOW + MINUTE)
    assert (lease.max_bytes, lease.max_uses) == (10, 1)


def test_a_second_approver_sees_what_the_first_narrowed() -> None:
    lease = requested(approvals_needed=2)
    narrowed = leases.approve(lease, ALICE, NOW, Narrowing(to=scopes("api.github.com"))).lease
    final = leases.approve(narrowed, BOB, NOW).lease
    assert final.to == scopes("api.github.com")
    assert leases.approve(narrowed, BOB, NOW, Narrowing(to=scopes(".github.com"))).reason == "review.widened"


def test_renewal() -> None:
    lease = active(max_ttl_ms=60 * MINUTE)
    later = leases.renew(lease, AGENT, NOW + 10 * MINUTE).lease
    assert later.exp_ms == NOW + 40 * MINUTE
    assert leases.renew(later, AGENT, NOW + 20 * MINUTE, MINUTE).lease.exp_ms == later.exp_ms  # never sooner
    capped = leases.renew(later, AGENT, NOW + 39 * MINUTE)
    assert (capped.reason, capped.ok, capped.lease.exp_ms) == (
        "lease.max_ttl_capped",
        True,
        NOW + 60 * MINUTE,
    )
    assert leases.renew(lease, Actor("a2", "agent"), NOW).reason == "meta.role"


@pytest.mark.parametrize(
    "bad", [{"to": ()}, {"requester": ""}, {"approvals_needed": 0}, {"ttl_ms": 0}, {"max_ttl_ms": 0}]
)
def test_requests_that_make_no_sense(bad: dict[str, object]) -> None:
    outcome = leases.request(draft(**bad), NOW)
    assert (outcome.reason, outcome.lease.state) == ("lease.invalid", State.DENIED)


def test_a_request_cannot_bring_its_own_approvals_or_end() -> None:
    lease = requested(approvals=(Approval("alice", 0),), exp_ms=NOW * 2, state=State.ACTIVE, activated_ms=5)
    assert (lease.state, lease.approvals, lease.exp_ms, lease.activated_ms) == (State.REQUESTED, (), 0, 0)


def test_json_round_trip() -> None:
    lease = active(
        to=scopes(".a.org", "[2606:4700::]:22", "10.0.0.0/8:1-9"),
        ports=parse_ports(["1-5", "443"]),
        protocols=("tcp", "udp"),
        except_=scopes("b.a.org"),
        agents=frozenset({"a1", "a2"}),
        max_bytes=5,
        reason="why not",
    )
    for state in State:
        one = replace(lease, state=state, pending=("proxy",))
        assert Lease.from_json(json.loads(json.dumps(one.to_json()))) == one


@pytest.mark.parametrize(
    "change",
    [
        {"id": ""},
        {"id": 5},
        {"to": ["https://a"]},
        {"to": 5},
        {"ports": ["0"]},
        {"ports": []},
        {"proto": ["sctp"]},
        {"proto": []},
        {"state": "open"},
        {"exp_ms": "soon"},
        {"exp_ms": -1},
        {"exp_ms": True},
        {"private": "yes"},
        {"raw": 1},
        {"ech": None},
        {"direct": "yes"},
        {"records": 1},
        {"max_bytes": -5},
        {"approvals": [{"by": "x"}]},
        {"unknown": 1},
    ],
)
def test_json_that_is_not_a_lease(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        Lease.from_json(active().to_json() | change)
