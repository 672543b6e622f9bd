"""guard.sock's other question: for which names was this subject answered this address?"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.dns_servers import zone_handler
from tests.support.guard_rig import Ports, Rig, answers, ask, guard_rig, subject_of

from exeat.appliance.cli import main
from exeat.ledger.ipc import Channel
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


def pins(rig: Rig, **more: Any) -> Any:
    channel = Channel.connect(rig.run_dir / "guard" / "guard.sock", timeout=30)
    reply, _ = channel.call({"id": 1, "verb": "pins", **more})
    channel.close()
    return reply


def test_the_answers_that_stand_can_be_seen(
    rig: Rig, jail: Ports, capsys: pytest.CaptureFixture[str]
) -> None:
    other = rig.jail("k", "q")
    ask(jail.udp, "one.wild.net")
    ask(jail.udp, "alias.wild.net")
    ask(other.udp, "two.wild.net")
    ask(other.udp, "secret.wild.net")
    reply = pins(rig)
    assert [(row["project"], row["job"], row["name"], row["address"]) for row in reply["rows"]] == [
        ("p", "j", "alias.wild.net", "203.0.113.2"),
        ("p", "j", "one.wild.net", "203.0.113.1"),
        ("q", "k", "two.wild.net", "203.0.113.1"),
    ]
    assert all(0 < row["left_s"] <= 60 for row in reply["rows"])
    shown = {
        "--project": ("q", ["two"]), "--job": ("j", ["alias", "one"]), "--name": ("one.wild.net", ["one"]),
        "--address": ("203.0.113.1", ["one", "two"]), "-n": ("1", ["alias"]),
    }  # fmt: skip
    for option, (value, wanted) in shown.items():
        assert main(["--run-dir", str(rig.run_dir), "dns", "pins", "--json", option, value]) == 0
        rows = json.loads(capsys.readouterr().out)
        assert [row["name"].split(".")[0] for row in rows] == wanted, option
    assert main(["--run-dir", str(rig.run_dir), "dns", "pins", "-n", "1"]) == 0
    line, more = capsys.readouterr().out.splitlines()
    assert line.split()[:3] == ["p/j", "alias.wild.net", "203.0.113.2"]
    assert more == "and 2 more"
    rig.remove("j")
    assert [row["project"] for row in pins(rig)["rows"]] == ["q"]
    assert pins(rig, name="wild.net")["total"] == 1
    assert pins(rig, name="ild.net")["total"] == 0


@pytest.mark.parametrize(
    "field",
    [
        {"limit": 0}, {"limit": 2001}, {"limit": "1"}, {"project": 1}, {"name": "not a name"},
        {"name": "192.0.2.1"}, {"address": "x"}, {"subject": {}},
    ],
)  # fmt: skip
def test_a_question_for_answers_that_makes_no_sense_is_refused(rig: Rig, field: dict[str, Any]) -> None:
    assert pins(rig, **field)["error"] == "dns.refused"
    assert pins(rig)["rows"] == []
