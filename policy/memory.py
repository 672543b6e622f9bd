"""How long a policy needs what was spent to be remembered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from exeat.policy.document import Document

DAY_MS: Final = 86_400_000


class Memory(NamedTuple):
    """`what` of a policy looks back furthest, and how far."""

    ms: int
    what: str

    @property
    def days(self) -> int:
        """Rounded up."""
        return -(-self.ms // DAY_MS)


def memory_of(document: Document) -> Memory:
    """The longest window of its budgets, or life of a lease under it: any lease may have a limit.

    A lease is counted from a day before it began, since the clock may have been set back meanwhile.
    """
    lease = Memory(document.knobs.max_ttl_ms + DAY_MS, f"a lease under preset `{document.preset}`")
    budgets = (
        Memory(limit.window_ms, f"budget `{budget.name}`")
        for budget in document.budgets.values()
        for limit in budget.limits
    )
    return max((lease, *budgets), key=lambda memory: memory.ms)
