"""Policies set through the console, as control keeps them: what fails changes nothing."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

from exeat.appliance.control.policies import Policies
from exeat.appliance.control.policy_desk import PolicyDesk
from exeat.appliance.control.policy_versions import Versions
from exeat.appliance.control.resolvers import ResolverList
from exeat.appliance.documents import Documents
from exeat.appliance.errors import RefusedError
from exeat.ledger.records import Kind, Record, encode

if TYPE_CHECKING:
    from pathlib import Path

    from exeat.appliance.control.evidence import Evidence

NOW = 1_767_614_400_000
P = "egress: v1\nproject: p\nallow: [{id: a, to: a.example.org}]\n"
LESS = "egress: v1\nproject: p\nposture: allowlist\n"
BASE = "egress: v1\nproject: baseline\n"


class Book:
    """The ledger, which can be away."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str, str]] = []
        self.away = False

    def policy(self, **about: str) -> bytes:
        self._next = about["project"], about["verdict"], about["actor"]
        return encode(Record(Kind.POLICY))

    async def write(self, *_records: bytes) -> None:
        if self.away:
            raise RefusedError("ledger.unavailable", "away")
        self.said.append(self._next)


class Desk:
    def __init__(self, folder: Path) -> None:
        self.folder, self.versions = folder / "live", Versions(folder / "versions")
        self.folder.mkdir(exist_ok=True)
        self.policies = Policies(self.folder, Documents(folder / "documents"), self.versions)
        self.policies.apply(self.policies.read(NOW))
        self.book, self.published = Book(), 0
        self.refusals: list[str] = []
        desk = PolicyDesk(
            self.policies,
            ResolverList(None),
            cast("Evidence", self.book),
            now_ms=lambda: NOW,
            publish=self._publish,
            publish_resolvers=lambda: None,
            refused=self.refusals.append,
        )
        self._verbs = desk.verbs()

    def _publish(self) -> None:
        self.published += 1

    def say(self, verb: str, who: str = "ann", role: str = "admin", **more: Any) -> dict[str, Any]:
        message = {"verb": verb, "as": who, "role": role, "project": "p", **more}
        return asyncio.run(self._verbs[verb](message, []))  # type: ignore[arg-type]

    def refused(self, verb: str, **more: Any) -> str:
        with pytest.raises(RefusedError) as refused:
            self.say(verb, **more)
        return refused.value.code

    def digest(self) -> str:
        return self.policies.projects.get("p", "")


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    made = Desk(tmp_path)
    assert made.say("policy.set", text=LESS, base="")["state"] == "in_force"
    return made


def test_what_was_set_is_there_after_a_restart(desk: Desk, tmp_path: Path) -> None:
    again = Desk(tmp_path)
    assert (again.digest(), again.policies.file_of("p")) == (desk.digest(), None)
    assert again.say("policy.show")["policy"]["text"] == LESS
    assert desk.book.said == [("p", "narrows", "ann")]


def test_without_the_ledger_nothing_changes(desk: Desk, tmp_path: Path) -> None:
    before, published = desk.digest(), desk.published
    desk.book.away = True
    wider = desk.say("policy.set", text=P, base=before)["version"]["digest"]
    assert desk.refused("policy.agree", who="ben", digest=wider) == "ledger.unavailable"
    assert desk.refused("policy.remove", base=before) == "ledger.unavailable"
    assert (desk.digest(), desk.published, Desk(tmp_path).digest()) == (before, published, before)
    desk.book.away = False
    desk.say("policy.agree", who="ben", digest=wider)  # the proposal outlived that
    assert (desk.digest(), Desk(tmp_path).digest()) == (wider, wider)


def test_agreed_is_what_was_proposed_and_nothing_else(desk: Desk) -> None:
    base = desk.digest()
    wider = desk.say("policy.set", text=P, base=base)["version"]["digest"]
    assert desk.refused("policy.agree", digest=wider) == "meta.second_reviewer"
    assert desk.refused("policy.agree", who="ben", role="approver", digest=wider) == "meta.role"
    assert desk.refused("policy.agree", who="ben", digest="0" * 64) == "policy.no_proposal"
    # Another text came into force meanwhile: the proposal was made from a policy that is none any more.
    other = LESS.replace("posture", "hold: 3s\nposture")
    desk.versions.propose(desk.versions.proposal("p") or pytest.fail("no proposal"))
    kept = desk.versions.proposal("p")
    desk.say("policy.set", text=other, base=base)
    assert kept is not None
    desk.versions.propose(kept)
    assert desk.refused("policy.agree", who="ben", digest=wider) == "review.stale"


def test_who_may_not_is_refused(desk: Desk) -> None:
    for role in ("viewer", "approver", "auditor", ""):
        assert desk.refused(
            "policy.set", role=role, text=LESS, base=desk.digest()
        ) == "meta.role" or role == ("driver")
    assert desk.refused("policy.set", role="driver", text=LESS, base=desk.digest()) == "meta.self_grant"
    assert desk.refused("policy.set", text=BASE, base=desk.digest()) == "project.mismatch"
    assert desk.refused("policy.set", text="?", base=desk.digest()) == "policy.invalid"
    assert desk.refused("policy.set", project="../p", text=LESS, base="") == "project.unknown"


def test_a_project_in_both_places_is_an_error_that_names_both(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "live" / "mine.yaml").write_text(P)
    with pytest.raises(RefusedError, match=r"mine\.yaml.*version 1 of p.*console"):
        Desk(tmp_path)
    assert desk.refused("policy.reload") == "policy.duplicate"
    assert desk.digest() != ""  # what is in force stays


def test_a_version_that_cannot_be_read_is_named(desk: Desk, tmp_path: Path) -> None:
    path = tmp_path / "versions" / "p" / "000001.json"
    path.write_text(path.read_text()[:40])
    with pytest.raises(RefusedError, match=r"000001\.json"):
        Desk(tmp_path)


def test_a_removed_policy_binds_nobody_and_can_come_back(desk: Desk, tmp_path: Path) -> None:
    digest = desk.digest()
    assert desk.refused("policy.remove", base="0" * 64) == "review.stale"
    desk.say("policy.remove", base=digest)
    assert (desk.digest(), Desk(tmp_path).digest()) == ("", "")
    assert desk.say("policy.revert", digest=digest, base="")["state"] == "in_force"
    assert [version["number"] for version in desk.say("policy.versions")["versions"]] == [3, 2, 1]


def test_a_change_that_is_refused_is_counted(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    assert desk.refused("policy.set", text="egress: v1\nproject: p\nrule: 7\n") == "policy.invalid"
    assert desk.say("policy.ls")["policies"] == []
    assert desk.refused("policy.show") == "project.unknown"  # looking is no change
    (tmp_path / "live" / "p.yaml").write_text("egress: v2\n")
    assert desk.refused("policy.reload") == "policy.invalid"
    (tmp_path / "live" / "p.yaml").write_text(P)
    desk.policies.apply(desk.policies.read(NOW))
    assert desk.refused("policy.set", text=LESS) == "policy.elsewhere"
    assert desk.refusals == ["", "", "p"]
