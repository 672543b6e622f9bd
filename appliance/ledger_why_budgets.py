"""What a budget had used by the records before a decision: for `exeat ledger why`.

Not what the gateway had counted: bytes of flows that were open count as all that they had reserved, and
what the records say up to a minute before and after a decision may be on either side of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from exeat.appliance.control.spent import replay
from exeat.ledger.since import gists
from exeat.policy.usage import Usage

if TYPE_CHECKING:
    from pathlib import Path

    from exeat.policy.again import Recorded
    from exeat.policy.snapshot import Snapshot


class BudgetUse(NamedTuple):
    """`used` of `limit` in a window, as budgets count (money in micro-USD)."""

    counter: str
    used: int
    limit: int
    window_ms: int


def used_before(directory: Path, seq: int, recorded: Recorded, snapshot: Snapshot) -> list[BudgetUse]:
    """Of the budget that decided record `seq`; nothing where none did.

    Raises OSError; ReaderError or ValueError on damage.
    """
    document = snapshot.document_for(recorded.request.subject)
    budget = document.budgets.get(recorded.rule) if document is not None else None
    if document is None or budget is None or not recorded.reason.startswith("budget."):
        return []
    since_ms = recorded.at_ms - max((limit.window_ms for limit in budget.limits), default=0)
    spent = replay(gists(directory, since_ms * 1_000_000, seq), snapshot, since_ms)
    counters = Usage()
    for role in ("proxy", "guard"):
        snapshot.restore(counters, spent.message(role))
    return [
        BudgetUse(
            limit.counter,
            counters.used(document.project, budget.name, limit.counter, limit.window_ms, recorded.at_ms),
            limit.amount,
            limit.window_ms,
        )
        for limit in budget.limits
    ]
