"""Very many requests: the compiled tables against the reference, each table asked again and again.

EXEAT_REQUESTS sets how many; the number for a release is 1,000,000.
"""

from __future__ import annotations

import os
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.policy_strategies import (
    ADDRESSES,
    HOSTS,
    NOW_MS,
    PORT_NUMBERS,
    document_of,
    lease_lists,
    policy_trees,
)
from tests.support.reference_policy import reference

from exeat.policy.addresses import parse_address
from exeat.policy.decide import compile_policy, decide
from exeat.policy.leases import Lease  # noqa: TC001 - hypothesis reads the annotations
from exeat.policy.model import Request, Sni, Subject
from exeat.policy.usage import Overlay, Usage

REQUESTS = int(os.environ.get("EXEAT_REQUESTS", "100000"))
EACH = 500
PLACES = [parse_address(text) for text in ADDRESSES]
SUBJECTS = [
    Subject(project, agent, job=job, node=node)
    for project in ("p", "p", "p", "p", "q")
    for agent in ("a1", "a2")
    for job in ("", "j1")
    for node in ("n1", "n2")
]
SNIS: list[str | Sni] = [Sni.UNSEEN, Sni.UNSEEN, Sni.UNSEEN, Sni.ABSENT, "a.org", "x.org"]


def _request(chance: random.Random) -> Request:
    host = chance.choice(HOSTS)
    resolved = chance.choices(PLACES, k=chance.choice((0, 1, 1, 2))) if isinstance(host, str) else []
    proto = chance.choice(("tcp", "tcp", "tcp", "udp", "sctp"))
    return Request(
        chance.choice(SUBJECTS),
        host,
        chance.choice(PORT_NUMBERS),
        proto,
        tuple(resolved),
        chance.choice(SNIS),
    )


@pytest.mark.slow
@settings(max_examples=max(1, REQUESTS // EACH), deadline=None, suppress_health_check=list(HealthCheck))
@given(policy_trees(), lease_lists(), st.integers(90, 110), st.integers(3, 6), st.integers(0, 2**32))
def test_compiled_equals_reference_over_many_requests(
    tree: dict[str, Any], leases: list[Lease], sent: int, opened: int, seed: int
) -> None:
    document = document_of(tree)
    used = {("hard", "bytes_up"): sent, ("soft", "connections"): opened}
    usage = Usage()
    usage.define("p", document.budgets)
    usage.charge("p", ["hard"], now_ms=NOW_MS, bytes_up=sent)
    usage.charge("p", ["soft"], now_ms=NOW_MS, connections=opened)
    policy, overlay = compile_policy(document), Overlay.of(leases, usage=usage)
    chance = random.Random(seed)
    for _ in range(EACH):
        request = _request(chance)
        got = decide(policy, request, NOW_MS, overlay)
        expected = reference(document, request, NOW_MS, leases, used)
        assert (str(got.verdict), got.reason, got.rule) == expected, request
