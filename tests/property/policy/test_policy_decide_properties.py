"""The compiled core against the slow reference, and the laws both must keep."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.policy_answers import in_words
from tests.support.policy_strategies import (
    ADDRESSES,
    NAMES,
    NOW_MS,
    PORT_NUMBERS,
    SCOPES,
    document_of,
    lease_lists,
    policy_trees,
    requests,
    rule_bodies,
)
from tests.support.reference_policy import Surroundings, reference

from exeat.policy.addresses import parse_address
from exeat.policy.decide import compile_policy, decide, decide_lookup
from exeat.policy.document import Document
from exeat.policy.leases import Lease, State
from exeat.policy.model import Address, Decision, Request, Sni, Subject, Verdict
from exeat.policy.usage import Overlay, Usage

if TYPE_CHECKING:
    import random

OPENNESS = {Verdict.DENY: 0, Verdict.ASK: 1, Verdict.ALLOW: 2}
USED = st.fixed_dictionaries(
    {("hard", "bytes_up"): st.integers(90, 110), ("soft", "connections"): st.integers(3, 6)}
)
many = settings(max_examples=300)
some = settings(max_examples=120)


def answer(
    document: Document, request: Request, leases: list[Lease], used: dict[Any, int] | None = None
) -> Decision:
    usage = Usage()
    usage.define("p", document.budgets)
    for (budget, counter), amount in (used or {}).items():
        usage.charge("p", [budget], now_ms=NOW_MS, **{counter: amount})
    return decide(compile_policy(document), request, NOW_MS, Overlay.of(leases, usage=usage))


@many
@given(policy_trees(), st.lists(requests(), min_size=5, max_size=12), lease_lists(), USED, st.booleans())
def test_compiled_equals_reference(
    tree: dict[str, Any], asked: list[Request], leases: list[Lease], used: dict[Any, int], spend: bool
) -> None:
    document = document_of(tree)
    spent = used if spend else {}
    for request in asked:
        got = answer(document, request, leases, spent)
        expected = reference(document, request, NOW_MS, Surroundings(leases=leases, used=spent))
        assert in_words(got) == expected, request


@some
@given(
    policy_trees(),
    st.lists(requests(), min_size=3, max_size=8),
    lease_lists(),
    st.randoms(use_true_random=False),
)
def test_order_of_the_document_does_not_change_the_verdict(
    tree: dict[str, Any], asked: list[Request], leases: list[Lease], chance: random.Random
) -> None:
    shuffled = dict(tree)
    for kind in ("allow", "ask", "deny"):
        shuffled[kind] = chance.sample(tree[kind], len(tree[kind]))
    before, after = document_of(tree), document_of(shuffled)
    mixed = chance.sample(leases, len(leases))
    for request in asked:
        first, second = answer(before, request, leases), answer(after, request, mixed)
        assert (first.verdict, first.reason, sorted(first.matched), first.budgets) == (
            second.verdict,
            second.reason,
            sorted(second.matched),
            second.budgets,
        )


NET_DENIES = st.builds(
    lambda nets, ports: {"to": nets, "ports": [ports]},
    st.lists(
        st.sampled_from([scope for scope in SCOPES if scope[0] in "0129["]),
        min_size=1,
        max_size=3,
        unique=True,
    ),
    st.sampled_from(["443", "any"]),
)


@some
@given(
    policy_trees(),
    st.lists(NET_DENIES, min_size=1, max_size=3),
    st.lists(requests(), min_size=2, max_size=4),
    st.lists(st.sampled_from(ADDRESSES), min_size=2, max_size=4, unique=True),
    lease_lists(),
)
def test_order_of_resolved_addresses_changes_nothing(
    tree: dict[str, Any],
    denies: list[dict[str, Any]],
    asked: list[Request],
    resolved: list[str],
    leases: list[Lease],
) -> None:
    net_denies = [{"id": f"net-{n}", "broad": "true", **rule} for n, rule in enumerate(denies)]
    document = document_of({**tree, "deny": [*tree["deny"], *net_denies]})
    for request in asked:
        addresses = tuple(map(parse_address, resolved))
        first = answer(document, replace(request, resolved=addresses), leases)
        for order in permutations(addresses):
            assert answer(document, replace(request, resolved=order), leases) == first


def test_a_deny_of_several_addresses_ranks_by_its_best_scope() -> None:
    # By the first address alone it would be `wide` in one order, and `narrow` in the other.
    document = document_of(
        {
            "egress": "v1",
            "project": "p",
            "deny": [
                {"id": "wide", "to": ["93.0.0.0/8"]},
                {"id": "narrow", "to": ["93.0.0.0/8", "93.184.0.0/16"]},
            ],
        }
    )
    addresses = (parse_address("93.1.2.3"), parse_address("93.184.216.34"))
    for resolved in permutations(addresses):
        got = answer(document, Request(Subject("p", "a1"), "x.org", 443, resolved=resolved), [])
        assert (got.rule, got.matched) == ("narrow", ("narrow", "wide"))


@some
@given(policy_trees(), st.lists(requests(), min_size=3, max_size=8), lease_lists(), rule_bodies("deny"))
def test_adding_a_deny_opens_nothing(
    tree: dict[str, Any], asked: list[Request], leases: list[Lease], rule: dict[str, Any]
) -> None:
    wider = {**tree, "deny": [*tree["deny"], {"id": "more", **rule}]}
    before, after = document_of(tree), document_of(wider)
    for request in asked:
        assert (
            OPENNESS[answer(after, request, leases).verdict]
            <= OPENNESS[answer(before, request, leases).verdict]
        )


@some
@given(policy_trees(), st.lists(requests(), min_size=3, max_size=8), lease_lists(), rule_bodies("allow"))
def test_adding_an_allow_closes_nothing(
    tree: dict[str, Any], asked: list[Request], leases: list[Lease], rule: dict[str, Any]
) -> None:
    # A budget is a limit, not a grant; and where posture decides, a rule of the file takes its place.
    rule = {key: value for key, value in rule.items() if key != "budget"}
    rule["private"] = "true"
    wider = {**tree, "allow": [*tree["allow"], {"id": "more", **rule}]}
    before, after = document_of(tree), document_of(wider)
    for request in asked:
        assert (
            OPENNESS[answer(after, request, leases).verdict]
            >= OPENNESS[answer(before, request, leases).verdict]
        )


@some
@given(policy_trees(), st.lists(requests(), min_size=3, max_size=8), lease_lists())
def test_a_lease_closes_nothing_and_a_dead_one_opens_nothing(
    tree: dict[str, Any], asked: list[Request], leases: list[Lease]
) -> None:
    tree = {**tree, "budgets": {}, **{k: [_without_budget(r) for r in tree[k]] for k in ("allow", "ask")}}
    document = document_of(tree)
    leases = [replace(lease, budget="") for lease in leases]
    ended = [replace(lease, nbf_ms=0, exp_ms=NOW_MS) for lease in leases]
    others = [replace(lease, state=state) for lease in leases for state in State if state is not State.ACTIVE]
    for request in asked:
        bare = answer(document, request, [])
        assert OPENNESS[answer(document, request, leases).verdict] >= OPENNESS[bare.verdict]
        assert answer(document, request, ended) == bare
        assert answer(document, request, others) == bare


def _without_budget(rule: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in rule.items() if key != "budget"}


@some
@given(policy_trees(), requests(), lease_lists())
def test_the_named_rules_exist_and_the_attributed_one_is_among_them(
    tree: dict[str, Any], request: Request, leases: list[Lease]
) -> None:
    document = document_of(tree)
    got = answer(document, request, leases)
    ids = {rule.id for rule in document.rules} | {lease.id for lease in leases}
    assert set(got.matched) <= ids
    if got.rule and not got.reason.startswith("budget."):
        assert got.rule in got.matched
    assert (got.lease != "") == (got.reason == "lease.active")
    assert set(got.budgets) <= set(document.budgets)


@some
@given(policy_trees())
def test_canonical_json_round_trip(tree: dict[str, Any]) -> None:
    document = document_of(tree)
    again = Document.from_canonical_json(document.to_canonical_json())
    assert again == document
    assert again.digest == document.digest


@some
@given(policy_trees(), st.sampled_from(NAMES), lease_lists())
def test_a_lookup_is_the_best_over_ports(tree: dict[str, Any], host: str, leases: list[Lease]) -> None:
    document = document_of(tree)
    policy, overlay = compile_policy(document), Overlay.of(leases)
    subject = Subject("p", "a1", node="n1")
    asked = [
        decide(policy, Request(subject, host, port, proto), NOW_MS, overlay)
        for port in {*PORT_NUMBERS, 1, 21, 23, 52, 54, 79, 81, 439, 440, 442, 444, 450, 451, 8443}
        for proto in ("tcp", "udp")
    ]
    best = max(OPENNESS[decision.verdict] for decision in asked)
    assert OPENNESS[decide_lookup(policy, subject, host, NOW_MS, overlay).verdict] == best


junk = st.one_of(
    st.none(), st.integers(), st.text(max_size=8), st.binary(max_size=8), st.floats(), st.tuples()
)


@pytest.mark.filterwarnings("ignore")
@some
@given(
    st.builds(Request, st.one_of(junk, st.builds(Subject, junk, junk)), junk, junk, junk, junk, junk),
    junk,
)
def test_decide_is_total(request: Any, now_ms: Any) -> None:
    policy = compile_policy(document_of({"egress": "v1", "project": "p", "posture": "public"}))
    got = decide(policy, request, now_ms, Overlay())
    assert isinstance(got, Decision)
    assert got.verdict is Verdict.DENY


def test_garbage_in_the_overlay_is_a_deny() -> None:
    policy = compile_policy(document_of({"egress": "v1", "project": "p", "posture": "public"}))
    request = Request(Subject("p", "a1"), "x.org", 443)
    assert decide(policy, request, NOW_MS, None).reason == "internal.error"  # type: ignore[arg-type]
    assert decide(policy, request, NOW_MS, Overlay()).reason == "posture.public"
    mapped = Address(6, (0xFFFF << 32) | 0x7F000001)
    assert decide(policy, replace(request, resolved=(mapped,)), NOW_MS, Overlay()).reason == "meta.loopback"
    assert decide(policy, replace(request, sni=Sni.ABSENT), NOW_MS, Overlay()).allowed
