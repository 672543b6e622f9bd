"""`widens` and Z3 agree on random pairs of policies at the level of `allow`."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import yaml
from tests.support.policy_strategies import NOW_MS, NoSuffixes
from tests.support.z3_policies import more_allowed

from exeat.policy.document import load_policy
from exeat.policy.widens import Level, differences, widens

NAMES = ["a.org", "b.a.org", "c.b.a.org", "x.org", "a.x.org", "d.a.x.org", "net", "y.net"]
SCOPES = [
    *NAMES,
    *[f".{name}" for name in NAMES],
    *[f"*.{name}" for name in NAMES],
    *["*", "a.org:22", ".a.org:440-450", "*.x.org:443-500"],
    *[
        "10.0.0.0/8",
        "10.1.0.0/16",
        "10.1.0.0/17",
        "10.1.128.0/17",
        "10.1.2.3",
        "93.184.0.0/16",
        "8.8.8.8:53-99",
    ],
]
PORTS = ["443", "80", "any", "440-450", "1-1023", "53"]


def policy(dice: random.Random, most: int) -> dict[str, Any]:
    tree: dict[str, Any] = {"egress": "v1", "project": "p"}
    for kind, share in (("allow", 0.6), ("ask", 0.1), ("deny", 0.3)):
        count = dice.randrange(int(most * share) + 1)
        tree[kind] = [{"id": f"{kind}{n}", **rule(dice)} for n in range(count)]
    if dice.random() < 0.3:
        tree["ceiling"] = [rule(dice) for _ in range(dice.randrange(1, 5))]
    return tree


def rule(dice: random.Random) -> dict[str, Any]:
    out: dict[str, Any] = {"to": dice.sample(SCOPES, dice.randrange(1, 4)), "broad": "true"}
    if dice.random() < 0.5:
        out["ports"] = dice.sample(PORTS, dice.randrange(1, 3))
    if dice.random() < 0.3:
        out["except"] = dice.sample(SCOPES, dice.randrange(1, 3))
    if dice.random() < 0.1:
        out["proto"] = dice.choice(["udp", "any"])
    return out


def neighbour(dice: random.Random, tree: dict[str, Any], most: int) -> dict[str, Any]:
    """Another policy, or the same with a rule more or less and the rest in another order."""
    if dice.random() < 0.2:
        return policy(dice, most)
    other = {key: list(value) if isinstance(value, list) else value for key, value in tree.items()}
    kind = dice.choice(["allow", "ask", "deny"])
    if other[kind] and dice.random() < 0.5:
        other[kind].pop(dice.randrange(len(other[kind])))
    else:
        other[kind].append({"id": "new", **rule(dice)})
    for each in ("allow", "ask", "deny"):
        dice.shuffle(other[each])
    return other


def disagreement(seed: int, most: int) -> str:
    """What the two say, if not the same; tcp only, so a wider udp rule is not Z3's matter. Nor is what a
    name resolves to: a deny of that which is gone can be the widest difference of all."""
    dice = random.Random(seed)
    tree = policy(dice, most)
    a, b = (
        load_policy(yaml.safe_dump(each), file="random", suffixes=NoSuffixes())
        for each in (tree, neighbour(dice, tree, most))
    )
    found = differences(_tcp(a), _tcp(b), now_ms=NOW_MS)
    witness = widens(_tcp(a), _tcp(b), now_ms=NOW_MS)
    assert (witness.level if witness else None) is (found[0].level if found else None)
    ours = [each for each in found if each.level is Level.ALLOW and not each.request.resolved]
    theirs = more_allowed(a, b)
    return "" if bool(ours) is theirs else f"seed {seed}: Z3 says {theirs}, we say {found}"


def _tcp(document: Any) -> Any:
    def kept(rules: Any) -> Any:
        return tuple(replace(rule, protocols=("tcp",)) for rule in rules if "tcp" in rule.protocols)

    ceiling = None if document.ceiling is None else kept(document.ceiling)
    return replace(document, rules=kept(document.rules), ceiling=ceiling)


@pytest.mark.parametrize("most", [5, 15, 50])
def test_z3_agrees(most: int) -> None:
    assert [found for seed in range(40) if (found := disagreement(seed * 100 + most, most))] == []
