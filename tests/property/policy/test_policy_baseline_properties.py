"""A policy under a baseline is their conjunction: as the reference says it, and never wider."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.policy_answers import in_words
from tests.support.policy_strategies import NOW_MS, document_of, lease_lists, policy_trees, requests
from tests.support.reference_policy import Surroundings, reference

from exeat.policy.baseline import under
from exeat.policy.decide import compile_policy, decide
from exeat.policy.model import Decision, Request, Sni, Speech, Verdict
from exeat.policy.usage import Overlay, Usage
from exeat.policy.widens import widens
from exeat.policy.witness import UNSPENT, Spent, judge

if TYPE_CHECKING:
    from exeat.policy.document import Document
    from exeat.policy.leases import Lease

OPENNESS = {Verdict.DENY: 0, Verdict.ASK: 1, Verdict.ALLOW: 2}
SLOW = [HealthCheck.data_too_large]
USED = st.fixed_dictionaries(
    {
        ("hard", "bytes_up"): st.integers(90, 110),
        ("default", "bytes"): st.integers(900, 1100),
        ("baseline/default", "bytes"): st.integers(900, 1100),
    }
)


def answer(document: Document, request: Request, leases: list[Lease], used: dict[Any, int]) -> Decision:
    usage = Usage()
    usage.define("p", document.budgets)
    for (budget, counter), amount in used.items():
        up = "bytes_up" if counter == "bytes" else counter
        usage.charge("p", [budget], now_ms=NOW_MS, **{up: amount})
    return decide(compile_policy(document), request, NOW_MS, Overlay.of(leases, usage=usage))


@settings(max_examples=250, suppress_health_check=SLOW)
@given(
    policy_trees(), policy_trees(), st.lists(requests(), min_size=5, max_size=10), lease_lists(), USED,
    st.booleans(),
)  # fmt: skip
def test_it_is_what_the_reference_says_and_no_more_than_the_policy_alone(
    tree: dict[str, Any],
    over: dict[str, Any],
    asked: list[Request],
    leases: list[Lease],
    used: dict[Any, int],
    spend: bool,
) -> None:
    document, baseline = document_of(tree), document_of(over)
    both, spent = under(document, baseline), used if spend else {}
    assert both.digest == document.digest
    for request in asked:
        got = answer(both, request, leases, spent)
        around = Surroundings(leases=leases, used=spent, baseline=baseline)
        assert in_words(got) == reference(document, request, NOW_MS, around), request
        assert OPENNESS[got.verdict] <= OPENNESS[answer(document, request, leases, spent).verdict] or (
            got.reason == "budget.ask"
        )


@settings(max_examples=60, suppress_health_check=SLOW)
@given(policy_trees(), policy_trees(), st.lists(requests(), min_size=6, max_size=6))
def test_a_baseline_never_widens_and_dropping_it_is_seen(
    tree: dict[str, Any], over: dict[str, Any], asked: list[Request]
) -> None:
    document, baseline = document_of(tree), document_of(over)
    both = under(document, baseline)
    if not any(budget.soft for budget in both.budgets.values()):
        assert widens(document, both, now_ms=NOW_MS) is None
    witness = widens(both, document, now_ms=NOW_MS)
    if witness is not None:
        spent = witness.spent or UNSPENT
        before, after = (
            judge(each, witness.request, witness.at_ms, spent, witness.speech)[0] for each in (both, document)
        )
        assert before.rank < after.rank
        return
    for request in asked:
        if request.subject.project == "p" and request.sni is Sni.UNSEEN:
            for spent, speech in product(spends(both), Speech):
                before, after = (judge(each, request, NOW_MS, spent, speech)[0] for each in (both, document))
                assert after.rank <= before.rank, (request, spent)


def spends(document: Document) -> list[Spent]:
    limits = [(budget.name, limit) for budget in document.budgets.values() for limit in budget.limits]
    return [UNSPENT, *(Spent(name, x.counter, x.window_ms, x.amount) for name, x in limits)]
