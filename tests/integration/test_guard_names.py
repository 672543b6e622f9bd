"""guard.sock's other question: for which names was this subject answered this address?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.support.dns_servers import zone_handler
from tests.support.guard_rig import Ports, Rig, answers, ask, guard_rig, subject_of

from exeat.policy.addresses import parse_address

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

POLICY = """
egress: v1
project: p
posture: allowlist
allow: [{to: .wild.net}]
deny: [{to: secret.wild.net}]
"""
ZONE = [
    ("one.wild.net", 60, "A", "203.0.113.1"),
    ("one.wild.net", 60, "AAAA", "2001:db8::1"),
    ("two.wild.net", 60, "A", "203.0.113.1"),
    ("alias.wild.net", 60, "CNAME", "edge.wild.net."),
    ("edge.wild.net", 60, "A", "203.0.113.2"),
    ("secret.wild.net", 60, "A", "203.0.113.3"),
]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with guard_rig(tmp_path, zone_handler(ZONE)) as made:
        made.snapshot(POLICY, POLICY.replace("project: p", "project: q"))
        yield made


@pytest.fixture
def jail(rig: Rig) -> Ports:
    return rig.jail("j", "p")


def names(rig: Rig, place: str, job: str = "j", project: str = "p", **more: Any) -> Any:
    found = parse_address(place)
    asked = {"family": found.family, "value": str(found.value)}
    subject = subject_of(job, project)._asdict()
    return rig.resolve("", **{"verb": "names", "subject": subject, "address": asked, **more})


def test_the_names_of_an_address_are_those_that_were_answered(rig: Rig, jail: Ports) -> None:
    assert names(rig, "203.0.113.1")["names"] == []
    assert answers(ask(jail.udp, "ONE.wild.net")) == {"203.0.113.1"}
    ask(jail.tcp, "one.wild.net", "AAAA", tcp=True)
    assert names(rig, "203.0.113.1")["names"] == ["one.wild.net"]
    assert names(rig, "2001:db8::1")["names"] == ["one.wild.net"]
    ask(jail.udp, "two.wild.net")
    assert names(rig, "203.0.113.1")["names"] == ["one.wild.net", "two.wild.net"]


def test_an_alias_is_known_by_the_name_that_was_asked(rig: Rig, jail: Ports) -> None:
    ask(jail.udp, "alias.wild.net")
    assert names(rig, "203.0.113.2")["names"] == ["alias.wild.net"]


def test_what_was_refused_or_asked_by_the_proxy_gives_no_name(rig: Rig, jail: Ports) -> None:
    ask(jail.udp, "secret.wild.net")
    assert rig.resolve("one.wild.net")["ok"]
    assert names(rig, "203.0.113.3")["names"] == []
    assert names(rig, "203.0.113.1")["names"] == []


def test_a_jail_knows_only_its_own_until_it_is_removed(rig: Rig, jail: Ports) -> None:
    other = rig.jail("k", "q")
    ask(jail.udp, "one.wild.net")
    assert names(rig, "203.0.113.1", "k", "q")["names"] == []
    ask(other.udp, "two.wild.net")
    assert names(rig, "203.0.113.1", "k", "q")["names"] == ["two.wild.net"]
    rig.remove("k")
    assert names(rig, "203.0.113.1", "k", "q")["names"] == []
    assert names(rig, "203.0.113.1")["names"] == ["one.wild.net"]


@pytest.mark.parametrize(
    "change",
    [
        {"subject": None},
        {"address": None},
        {"address": "203.0.113.1"},
        {"address": {"family": 5, "value": "1"}},
        {"address": {"family": 4, "value": 1}},
        {"address": {"family": 4, "value": "-1"}},
        {"address": {"family": 4, "value": str(1 << 32)}},
        {"address": {"family": 6, "value": str(1 << 128)}},
        {"address": {"family": 6, "value": "9" * 4000}},
        {"address": {"family": True, "value": "1"}},
        {"address": {"family": [], "value": "1"}},
    ],
)
def test_questions_are_validated(rig: Rig, change: dict[str, Any]) -> None:
    reply = names(rig, "203.0.113.1", **change)
    assert (reply["ok"], reply["error"]) == (False, "dns.refused")
