"""Who may do what: the whole table of roles and actions."""

from __future__ import annotations

import pytest

from exeat.policy.admin import Actor, authorize
from exeat.policy.model import Verdict

ROLES = ("agent", "worker", "driver", "viewer", "approver", "operator", "admin", "stranger", "")
YES = "ok"
REQUEST = {"requester": "a1"}
NARROW = {"widens": False}
TABLE = {
    "lease.request": [YES, YES, YES, YES, YES, YES, YES, "role", "role"],
    "lease.approve": ["self_grant", "self_grant", "self_grant", "role", YES, YES, YES, "role", "role"],
    "lease.deny": ["role", "role", "role", "role", YES, YES, YES, "role", "role"],
    "lease.revoke": ["role", "role", "role", "role", YES, YES, YES, "role", "role"],
    "lease.renew": ["role", "role", "role", "role", YES, YES, YES, "role", "role"],
    "policy.update": ["self_grant", "self_grant", "self_grant", "role", "role", YES, YES, "role", "role"],
    "kill.off": ["self_grant", "self_grant", "self_grant", "role", "role", YES, YES, "role", "role"],
    "ledger.read": ["ledger", "ledger", "ledger", YES, YES, YES, YES, "role", "role"],
    "ledger.delete": ["ledger"] * 9,
    "lease.clone": ["unknown_action"] * 9,
    "": ["unknown_action"] * 9,
}


@pytest.mark.parametrize("action", TABLE)
def test_roles(action: str) -> None:
    for role, expected in zip(ROLES, TABLE[action], strict=True):
        got = authorize(Actor("u1", role), action, REQUEST | NARROW)
        assert got.reason == (YES if expected == YES else f"meta.{expected}"), role
        assert (got.verdict is Verdict.ALLOW) == (expected == YES)


def test_what_is_not_said_counts_as_the_worse_answer() -> None:
    operator = Actor("u1", "operator")
    assert authorize(operator, "policy.update").reason == "meta.second_reviewer"
    assert authorize(operator, "policy.update", {"widens": True, "reviewers": []}).verdict is Verdict.ASK
    assert authorize(operator, "policy.update", {"widens": True, "reviewers": ["u1", "u2"]}).allowed
    assert authorize(operator, "lease.approve").reason == "meta.sod"
    assert authorize(Actor("", "admin"), "lease.request").reason == "meta.attribution"


def test_the_requester_may_let_go() -> None:
    assert authorize(Actor("a1", "agent"), "lease.revoke", REQUEST).allowed
    assert authorize(Actor("u1", "viewer"), "lease.renew", {"requester": "a1", "on_behalf_of": "u1"}).allowed


@pytest.mark.parametrize(
    ("role", "stops", "lets"),
    [
        *((role, False, False) for role in ("viewer", "driver", "agent", "auditor")),
        ("approver", True, False),
        ("admin", True, True),
    ],
)
def test_whoever_may_refuse_may_stop_and_fewer_let_go_on(role: str, stops: bool, lets: bool) -> None:
    who = Actor("u1", role)
    assert [authorize(who, action).allowed for action in ("kill.on", "flow.cut", "kill.off")] == [
        stops,
        stops,
        lets,
    ]
