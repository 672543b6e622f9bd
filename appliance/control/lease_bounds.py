"""How much one may ask for, and how many leases control remembers. What a job can do in a loop has an end."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

from exeat.policy.leases import TERMINAL, State

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from exeat.policy.leases import Lease

HOUR_MS: Final = 3_600_000
KEEP_ENDED_MS: Final = 7 * 24 * HOUR_MS  # `exeat lease ls --all` shows ended leases for so long
KEPT_REFUSED: Final = 500  # of a project: requests that came to nothing


def crowded(leases: Collection[Lease], project: str, agent: str, most: int, now_ms: int) -> str:
    """Why one more request is too many, "" if it is not. `agent`: who asks for itself, "" for a person.

    No project's jobs take the places of all others, and giving up does not make room without end.
    """
    waiting = [lease for lease in leases if lease.state is State.REQUESTED]
    if len(waiting) >= most:
        return f"{most} requests are waiting already"
    share = max(1, most // 2)
    if agent and sum(lease.project == project for lease in waiting) >= share:
        return f"{share} requests of project {project} are waiting already"
    asked = (lease for lease in leases if (lease.project, lease.requester) == (project, agent))
    if agent and sum(now_ms - lease.requested_ms < HOUR_MS for lease in asked) >= most:
        return f"agent {agent} has asked {most} times within an hour"
    return ""


def forgettable(leases: Iterable[Lease], now_ms: int) -> list[str]:
    """The ids of those that ended long ago, and of requests that came to nothing, beyond the newest of each
    project. The ledger keeps all of them."""
    found, refused = [], defaultdict(list)
    for lease in leases:
        if lease.state not in TERMINAL:
            continue
        # Its own time must be over, too: until then it is known to have ended, whatever the clock does.
        over_ms = max(lease.exp_ms, lease.requested_ms + lease.request_ttl_ms)
        if now_ms >= over_ms + KEEP_ENDED_MS:
            found.append(lease.id)
        elif not lease.activated_ms:
            refused[lease.project].append(lease.id)  # in the order they were asked for
    for names in refused.values():
        found += names[:-KEPT_REFUSED]
    return found
