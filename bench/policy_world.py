"""Policies, leases and requests for the policy benchmark: one seed, one world.

Of a policy's rules about two thirds are exact hosts, a quarter suffixes, and a tenth networks; one
in ten has a condition (agent, node, time, except), one in five a budget, one in ten is a deny and
one in twenty an ask. Requests: 60 % hit a rule's host or suffix, 10 % are literals, 30 % hit nothing;
half of those for names carry a resolved address, as they do after the guard has answered.
"""

from __future__ import annotations

import random
from typing import Any

from exeat.policy.document import Document
from exeat.policy.leases import Lease
from exeat.policy.model import Address, Request, Subject
from exeat.policy.postures import Posture
from exeat.policy.rules import Budget, Kind, Limit, Rule, When
from exeat.policy.scopes import ANY_PORT, HTTPS, Scope, parse_scope

NOW_MS = 1_767_614_400_000  # 2026-01-05T12:00:00Z
HOUR_MS = 3_600_000
PROJECT = "bench"
AGENTS = tuple(f"agent-{n}" for n in range(20))
TLDS = ("com", "org", "net", "io", "dev", "co.uk", "example")
WEB = ((80, 80), (443, 443))
OFFICE = When(daily=(8 * 60, 10 * 60), days=frozenset(range(5)))
BUDGETS = {
    "default": Budget("default", (Limit("bytes_up", 1 << 40, HOUR_MS), Limit("connections", 10**9, 60_000))),
    "llm": Budget("llm", (Limit("usd", 5_000_000, 24 * HOUR_MS),)),
    "bulk": Budget("bulk", (Limit("bytes", 1 << 40, 24 * HOUR_MS),), soft=True),
}


def host_name(number: int) -> str:
    return f"h{number}.site{number % 5003}.{TLDS[number % len(TLDS)]}"


def _scope(number: int, chance: random.Random) -> Scope:
    draw = chance.random()
    if draw < 0.65:
        return parse_scope(host_name(number))
    if draw < 0.90:
        return parse_scope(f"{chance.choice(('.', '*.'))}zone{number}.{TLDS[number % len(TLDS)]}")
    length = chance.choice((16, 20, 24, 24, 28, 32))
    value = chance.randrange(1 << 24, 223 << 24) >> (32 - length) << (32 - length)
    text = ".".join(str(value >> shift & 255) for shift in (24, 16, 8, 0))
    return parse_scope(text if length == 32 else f"{text}/{length}")


def _rule(number: int, chance: random.Random) -> Rule:
    draw = chance.random()
    kind = Kind.DENY if draw < 0.10 else Kind.ASK if draw < 0.15 else Kind.ALLOW
    extra: dict[str, Any] = {}
    if chance.random() < 0.10:
        extra = chance.choice(
            (
                {"agents": frozenset(chance.sample(AGENTS, 3))},
                {"nodes": frozenset({"node-1"})},
                {"when": OFFICE},
                {"except_": (parse_scope(f"not.site{number % 5003}.com"),)},
            )
        )
    if kind is not Kind.DENY and chance.random() < 0.20:
        extra["budget"] = chance.choice(("llm", "bulk"))
    return Rule(
        id=f"rule-{number}",
        kind=kind,
        to=(_scope(number, chance),),
        ports=ANY_PORT if kind is Kind.DENY else chance.choice((HTTPS, HTTPS, WEB)),
        protocols=("tcp", "udp") if kind is Kind.DENY else ("tcp",),
        order=number,
        **extra,
    )


_GROUPS = {Kind.ALLOW: 0, Kind.ASK: 1, Kind.DENY: 2}


def document(rules: int, seed: int = 1) -> Document:
    """A policy of that many rules, budgets included; loads from its own canonical JSON."""
    chance = random.Random(seed)
    made = sorted((_rule(number, chance) for number in range(rules)), key=lambda rule: _GROUPS[rule.kind])
    return Document(project=PROJECT, posture=Posture.ALLOWLIST, rules=tuple(made), budgets=BUDGETS)


def leases(count: int, rules: int, seed: int = 2) -> list[Lease]:
    """Active leases, half of them bound to a job, with byte and use limits."""
    chance = random.Random(seed)
    return [
        Lease(
            id=f"{PROJECT}/lease-{number}",
            project=PROJECT,
            to=(parse_scope(host_name(chance.randrange(2 * rules))),),
            agents=frozenset({chance.choice(AGENTS)}),
            job=f"job-{number % 50}" if number % 2 else "",
            exp_ms=NOW_MS + HOUR_MS,
            max_bytes=1 << 40,
            max_uses=10**9,
        )
        for number in range(count)
    ]


def _host(document: Document, chance: random.Random) -> str | Address:
    draw = chance.random()
    if draw < 0.30:
        return f"nobody{chance.randrange(10**6)}.elsewhere.{chance.choice(TLDS)}"
    scope = chance.choice(document.rules).to[0]
    if draw < 0.40 or scope.net is not None:
        if scope.net is None:
            return Address(4, chance.randrange(1 << 24, 223 << 24))
        return Address(4, scope.net.value + chance.randrange(1 << (32 - scope.net.length)))
    return scope.name if scope.name.startswith("h") else f"www.{scope.name}"


def requests(document: Document, count: int, seed: int = 3) -> list[Request]:
    chance = random.Random(seed)
    made = []
    for _ in range(count):
        host = _host(document, chance)
        resolved = ()
        if isinstance(host, str) and chance.random() < 0.5:
            resolved = (Address(4, chance.randrange(11 << 24, 99 << 24)),)
        subject = Subject(PROJECT, chance.choice(AGENTS), f"job-{chance.randrange(50)}", node="node-1")
        made.append(Request(subject, host, chance.choice((443, 443, 443, 80, 22)), "tcp", resolved))
    return made
