"""Which role may use which part of the API.

A first gate, beside the one in control (`policy.admin.authorize`): both must say yes. An `operator` drives
jobs and asks; for leases control takes them for a `driver`, who never grants (`policy.admin.acts_as`).
"""

from __future__ import annotations

from typing import Final

from exeat.policy.admin import ACCOUNTS

ROLES: Final = tuple(ACCOUNTS)
_ALL: Final = frozenset(ROLES)
_DRIVE: Final = frozenset({"operator", "approver", "admin"})
_DECIDE: Final = frozenset({"approver", "admin"})
_ADMIN: Final = frozenset({"admin"})

PUBLIC: Final = ""  # of a route: no sign-in is needed

PERMISSIONS: Final = {
    "session": _ALL,
    "status.read": _ALL,
    "metrics.read": _ALL,
    "events.read": _ALL,
    "requests.read": _ALL,
    "requests.ask": _DRIVE,
    "requests.decide": _DECIDE,
    "leases.read": _ALL,
    "leases.keep": _DRIVE,  # whose lease it is, control judges
    "flows.read": _ALL,
    "flows.cut": _DECIDE,
    "kill.read": _ALL,
    "kill.write": _DECIDE,  # stopping: letting it go on is
    "kill.off": _ADMIN,
    "ledger.read": _ALL,
    "dns.read": _ALL,
    "charts.read": _ALL,
    "reviews.read": _ALL,
    "nodes.read": _ALL,
    "audit.read": frozenset({"auditor", "admin"}),
    "policies.read": _ALL,
    "policies.write": _ADMIN,
    "jobs.read": _ALL,
    "jobs.write": frozenset({"operator", "admin"}),
    "devices.read": _ALL,
    "passkeys": _ALL,  # one's own
}
READS: Final = frozenset(name for name in PERMISSIONS if name.endswith(".read"))


def scope_of(words: tuple[str, ...]) -> frozenset[str]:
    """The permissions that a token's scopes stand for: names of them, or `read`. Raises ValueError."""
    found: set[str] = set()
    for word in words:
        if word == "read":
            found |= READS
        elif word in PERMISSIONS:
            found.add(word)
        else:
            raise ValueError(f"`{word}` is no scope: read, {', '.join(sorted(PERMISSIONS))}")
    return frozenset(found)
