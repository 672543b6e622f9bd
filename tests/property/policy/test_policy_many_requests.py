"""Very many requests: the compiled tables against the reference, each table asked again and again.

EXEAT_REQUESTS sets how many; the number for a release is 1,000,000, and CI never asks fewer than
100,000. EXEAT_SEED moves on to other policies.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest
from tests.support.policy_answers import answer, compiled, lookup
from tests.support.policy_questions import setting_of

LEAST = 100_000
REQUESTS = max(LEAST, int(os.environ.get("EXEAT_REQUESTS", LEAST)))
FIRST = int(os.environ.get("EXEAT_SEED", "0"))
EACH = 250
# Of 100,000 answers so many at least, so that the comparison is one of rules and not of refusals.
OFTEN = {
    "rule.deny": 5000,
    "ceiling.exceeded": 3000,
    "budget.exceeded": 1000,
    "budget.state": 500,
    "budget.ask": 100,
    "lease.active": 500,
    "rule.ask": 1000,
    "rule.allow": 1000,
    "address.not_public": 500,
    "posture.default_deny": 3000,
    "posture.public": 300,
    "posture.ask": 500,
}


@pytest.mark.slow
def test_compiled_equals_reference_over_many_requests() -> None:
    reasons: Counter[str] = Counter()
    for seed in range(FIRST, FIRST + -(-REQUESTS // EACH)):
        setting = setting_of(seed)
        made = compiled(setting)
        for request, now_ms, expected in setting.questions(EACH):
            got = answer(*made, request, now_ms)
            assert got == expected, (seed, request, now_ms)
            reasons[got.reason] += 1
    assert reasons.total() >= REQUESTS
    assert {reason: reasons[reason] for reason, least in OFTEN.items() if reasons[reason] < least} == {}


@pytest.mark.slow
def test_lookups_equal_the_best_answer_of_the_reference() -> None:
    for seed in range(FIRST, FIRST + 300):
        setting = setting_of(seed)
        made = compiled(setting)
        for request, now_ms, right in setting.lookups(3):
            assert lookup(*made, request, now_ms) in right, (seed, request, now_ms)
