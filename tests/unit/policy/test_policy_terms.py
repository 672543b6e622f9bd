"""What is asked for ahead of time falls under the same rules as what a flow asks for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.support.policy_strategies import NoSuffixes

from exeat.policy.document import load_policy
from exeat.policy.leases import Lease
from exeat.policy.postures import Preset
from exeat.policy.scopes import parse_scope
from exeat.policy.terms import Terms, terms

HOUR = 3_600_000
POLICY = load_policy(
    """\
egress: v1
project: p
ask:
  - {id: tree, to: .example.org, max_ttl: 2h, except: [free.example.org]}
  - {id: two, to: two.example.org, approvals: 2}
  - {id: ssh, to: ssh.example.net, ports: 22, approvals: 3, max_ttl: 1h, agent: a9}
  - {id: net, to: 192.0.2.0/24, approvals: 2, max_ttl: 1h}
""",
    file="p.yaml",
    suffixes=NoSuffixes(),
)
OWN = Terms(POLICY.knobs.approvals, POLICY.knobs.max_ttl_ms)


@pytest.mark.parametrize(
    ("to", "wanted"),
    [
        ("elsewhere.com", OWN),
        ("one.example.org", Terms(1, 2 * HOUR)),
        ("two.example.org", Terms(2, 2 * HOUR)),
        (".two.example.org", Terms(2, 2 * HOUR)),
        ("*.two.example.org", Terms(1, 2 * HOUR)),
        (".org", Terms(2, 2 * HOUR)),
        ("ssh.example.net:22", Terms(3, HOUR)),
        ("ssh.example.net:443", OWN),
        ("ssh.example.net:any", Terms(3, HOUR)),
        ("192.0.2.7", Terms(2, HOUR)),
        ("192.0.0.0/16", Terms(2, HOUR)),
        ("198.51.100.1", OWN),
    ],
)
def test_the_strictest_rule_that_shares_a_destination_counts(to: str, wanted: Terms) -> None:
    assert terms(POLICY, Lease(id="p/a/1", project="p", to=(parse_scope(to),))) == wanted


@pytest.mark.parametrize(
    ("to", "people"),
    [("one.example.net", 1), (".example.net", 2), ("*.two.example.org", 2), ("10.0.0.0/8", 2)],
)
def test_a_wide_lease_takes_as_many_people_as_the_preset_says(to: str, people: int) -> None:
    strict = replace(POLICY, preset=Preset.STRICT)
    assert terms(strict, Lease(id="p/a/1", project="p", to=(parse_scope(to),))).approvals == people
