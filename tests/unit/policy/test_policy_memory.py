"""How far back a policy needs the ledger to reach."""

from __future__ import annotations

import pytest

from exeat.appliance.public_suffixes import bundled_suffixes
from exeat.policy.document import load_policy
from exeat.policy.memory import DAY_MS, Memory, memory_of

HEAD = "egress: v1\nproject: p\n"
BUDGETS = "budgets: {default: {bytes: 1GB/1d}, month: {connections: 9/30d, usd: 5/10d}}\n"


@pytest.mark.parametrize(
    ("text", "memory", "days"),
    [
        ("", Memory(DAY_MS * 4 // 3, "a lease under preset `standard`"), 2),
        ("preset: relaxed\n", Memory(2 * DAY_MS, "a lease under preset `relaxed`"), 2),
        (
            "budgets: {default: {bytes: 1GB/1d}}\n",
            Memory(DAY_MS * 4 // 3, "a lease under preset `standard`"),
            2,
        ),
        (BUDGETS, Memory(30 * DAY_MS, "budget `month`"), 30),
    ],
)
def test_the_longest_window_or_life(text: str, memory: Memory, days: int) -> None:
    found = memory_of(load_policy(HEAD + text, file="p.yaml", suffixes=bundled_suffixes()))
    assert (found, found.days) == (memory, days)
