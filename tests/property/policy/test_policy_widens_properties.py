"""`widens` against `decide` on random pairs: no widening is missed, and every witness is one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.policy_strategies import (
    ADDRESSES,
    HOSTS,
    NOW_MS,
    PORT_NUMBERS,
    document_of,
    policy_trees,
    rule_bodies,
)

from exeat.policy.addresses import parse_address
from exeat.policy.model import Request, Sni, Speech, Subject
from exeat.policy.widens import Level, differences, widens
from exeat.policy.witness import UNSPENT, Spent, judge

if TYPE_CHECKING:
    from exeat.policy.document import Document
    from exeat.policy.widens import Witness

WEEK_MS = 7 * 86_400_000
SLOW = [HealthCheck.data_too_large, HealthCheck.filter_too_much]


@st.composite
def flows(draw: st.DrawFn) -> Request:
    host = draw(st.sampled_from([*HOSTS, *["any.a.org", "any.org", "com", "q.printer.local"]]))
    resolved = ()
    if isinstance(host, str) and draw(st.booleans()):
        resolved = (parse_address(draw(st.sampled_from(ADDRESSES))),)
    return Request(
        Subject("p", draw(st.sampled_from(["a1", "a2", "a3"])), node=draw(st.sampled_from(["n1", "n2"]))),
        host,
        draw(st.sampled_from([*PORT_NUMBERS, 8443, 440])),
        draw(st.sampled_from(["tcp", "tcp", "udp"])),
        resolved,
        draw(st.sampled_from([Sni.UNSEEN, Sni.UNSEEN, Sni.ABSENT, "x.org"])),
    )


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Document, Document]:
    """A policy and a neighbour of it: one thing edited, or nothing in common."""
    tree = draw(policy_trees())
    other = dict(draw(policy_trees())) if draw(st.integers(0, 3)) == 0 else _edited(draw, tree)
    return document_of(tree), document_of(other)


def _edited(draw: st.DrawFn, tree: dict[str, Any]) -> dict[str, Any]:
    other = {key: list(value) if isinstance(value, list) else value for key, value in tree.items()}
    for _ in range(draw(st.integers(1, 2))):
        kind = draw(st.sampled_from(["allow", "ask", "deny", "ceiling", "preset", "budgets"]))
        if kind == "budgets":
            other["budgets"] = draw(_budgets())
        elif kind == "preset":
            other["preset"] = draw(st.sampled_from(["relaxed", "standard", "strict"]))
        elif kind == "ceiling":
            if "ceiling" in other:
                del other["ceiling"]
            else:
                other["ceiling"] = [draw(rule_bodies("ceiling"))]
        elif other[kind] and draw(st.booleans()):
            other[kind].pop(draw(st.integers(0, len(other[kind]) - 1)))
        else:
            other[kind].append({"id": f"{kind}-new{len(other[kind])}", **draw(rule_bodies(kind))})
    return other


@st.composite
def _budgets(draw: st.DrawFn) -> dict[str, Any]:
    """The names that rules use, with other limits, softness or windows; `default` comes and goes."""
    names = ["hard", "soft", *(["default"] if draw(st.booleans()) else [])]
    return {
        name: {
            draw(st.sampled_from(["bytes_up", "connections", "bytes"])): draw(
                st.sampled_from(["0/1h", "5/1h", "100/1h", "1000/1h", "100/1d"])
            ),
            "on_exceed": draw(st.sampled_from(["ask", "deny"])),
        }
        for name in names
    }


def spends(document: Document) -> list[Spent]:
    limits = [(budget.name, limit) for budget in document.budgets.values() for limit in budget.limits]
    return [UNSPENT, *(Spent(name, x.counter, x.window_ms, x.amount) for name, x in limits)]


def check_witness(a: Document, b: Document, witness: Witness) -> None:
    spent = witness.spent or UNSPENT
    before, was = judge(a, witness.request, witness.at_ms, spent, witness.speech)
    after, now = judge(b, witness.request, witness.at_ms, spent, witness.speech)
    assert witness.at_ms >= NOW_MS
    assert {now.rule, now.reason} & {witness.after}
    assert {was.rule, was.reason} & {witness.before}
    if "lease" in witness.what or "approvals" in witness.what or "stale" in witness.what:
        assert after.rank >= witness.level.rank > 0  # the terms differ, not the verdict
        return
    assert after is witness.level, witness
    assert before.rank < after.rank, witness


@settings(max_examples=300, suppress_health_check=SLOW)
@given(pairs(), st.data())
def test_nothing_missed_and_no_false_witness(pair: tuple[Document, Document], data: st.DataObject) -> None:
    a, b = pair
    witness = widens(a, b, now_ms=NOW_MS)
    if witness is not None:
        check_witness(a, b, witness)
        return
    for _ in range(12):
        request = data.draw(flows())
        at_ms = NOW_MS + data.draw(st.integers(0, 2 * WEEK_MS))
        speech = data.draw(st.sampled_from(Speech))
        before, _ = judge(a, request, at_ms, speech=speech)
        after, _ = judge(b, request, at_ms, speech=speech)
        assert after.rank <= before.rank, (request, before, after)
        spent = data.draw(st.sampled_from(spends(a)))
        before, _ = judge(a, request, at_ms, spent, speech)
        after, _ = judge(b, request, at_ms, spent, speech)
        assert before is Level.ALLOW or after is not Level.ALLOW, (request, spent)


@settings(max_examples=80, suppress_health_check=SLOW)
@given(pairs())
def test_every_kind_of_difference_is_one_and_the_first_is_the_widest(pair: tuple[Document, Document]) -> None:
    a, b = pair
    found, witness = differences(a, b, now_ms=NOW_MS), widens(a, b, now_ms=NOW_MS)
    assert bool(found) is (witness is not None)
    for each in found:
        check_witness(a, b, each)
    if witness is not None:
        assert found[0].level is witness.level


def test_a_looser_preset_is_wider_than_the_longer_leases_it_brings() -> None:
    rule = {"id": "one", "to": ["b.a.org"], "private": "true", "node": "n1"}
    tree = {"egress": "v1", "project": "p", "posture": "custom", "default": "ask", "allow": [rule]}
    a, b = (document_of({**tree, "preset": preset}) for preset in ("standard", "relaxed"))
    witness = widens(a, b, now_ms=NOW_MS)
    assert witness is not None
    assert (witness.level, witness.what) == (Level.ALLOW, "any server name passes")
    check_witness(a, b, witness)
