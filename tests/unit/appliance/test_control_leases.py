"""Leases as control keeps them, with a real database and a real ledger."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from tests.support import ledgers

from exeat.appliance.config import Config
from exeat.appliance.control.evidence import Evidence
from exeat.appliance.control.lease_bounds import HOUR_MS, KEEP_ENDED_MS, KEPT_REFUSED, forgettable
from exeat.appliance.control.leases import DAY_MS, Leases
from exeat.appliance.control.policies import Policies
from exeat.appliance.control.policy_versions import Versions
from exeat.appliance.control.store import Store
from exeat.appliance.control.time import TrustedClock
from exeat.appliance.documents import Documents
from exeat.appliance.errors import RefusedError
from exeat.ledger.reader import read_records
from exeat.ledger.records import Kind
from exeat.policy.admin import Actor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

POLICY = """\
egress: v1
project: p
ask:
  - {id: gh, to: .github.com, ttl: 30m, max_ttl: 1h}
  - {id: two, to: two.example.org, approvals: 2}
  - {id: spoken, to: raw.example.org, raw: true, ech: true}
"""
AS_CONTROL: dict[str, Any] = {"writers": {os.getuid(): "control"}}
ASK = {
    "key": "p/a1/api.github.com:443/tcp",
    "subject": {"project": "p", "agent": "a1", "job": "", "episode": "", "node": "n"},
    "host": "api.github.com",
    "port": 443,
    "proto": "tcp",
    "rule": "gh",
}


class Desk:
    """Control's leases on their own; `restart` is a new process on the same files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "policies").mkdir()
        (folder / "policies" / "p.yaml").write_text(POLICY)
        self.published = 0
        self.restart()

    def restart(self) -> None:
        store = Store(self.folder / "c.sqlite")
        policies = Policies(
            self.folder / "policies", Documents(self.folder / "documents"), Versions(self.folder)
        )
        policies.apply(policies.read(0))
        self.evidence = Evidence(ledgers.settings(self.folder).socket_path, "n", store)
        clock = TrustedClock(store)
        self.over: list[str] = []
        self.leases = Leases(
            Config(),
            clock,
            store,
            policies,
            self.evidence,
            self._changed,
            self.over.append,
            submitter=lambda job: "u1" if job == "j1" else "",
        )

    def _changed(self) -> None:
        self.published += 1

    def ask(self, **changes: Any) -> str:
        return asyncio.run(self.leases.ask({**ASK, **changes}))

    def do(self, verb: str, lease: str, person: str = "u1", **more: Any) -> Any:
        return asyncio.run(getattr(self.leases, verb)({"lease": lease, **more}, Actor(person, "approver")))

    def active(self) -> list[str]:
        return [lease.id for lease in self.leases.for_gateway()]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[ledgers.Daemon]:
    with ledgers.running(tmp_path, **AS_CONTROL) as daemon:
        yield daemon


def states(folder: Path) -> list[str]:
    found = read_records(ledgers.settings(folder).state_dir / "ledger")
    return [record.decision for _, record in found if record.kind is Kind.LEASE]


@pytest.mark.usefixtures("ledger")
def test_leases_with_a_limit_are_counted_from_before_they_began(desk: Desk) -> None:
    assert desk.leases.counted_since_ms(7) == 7
    free = desk.ask()
    desk.do("approve", free)
    assert desk.leases.counted_since_ms(7) == 7  # nothing of it needs to be counted
    began = []
    for number in range(2):
        lease = desk.ask(key=str(number), host=f"h{number}.github.com")
        desk.leases._all[lease] = replace(desk.leases._all[lease], max_uses=3)
        desk.do("approve", lease)
        began.append(desk.leases._all[lease].activated_ms)
    assert desk.leases.counted_since_ms(1 << 62) == min(began) - DAY_MS
    for lease in [lease.id for lease in desk.leases.for_gateway() if lease.max_uses]:
        desk.do("revoke", lease)
    assert desk.leases.counted_since_ms(7) == 7


@pytest.mark.usefixtures("ledger")
def test_equal_asks_are_one_request_and_an_approval_opens(desk: Desk) -> None:
    first, second = desk.ask(), desk.ask()
    assert first == second
    assert desk.active() == []
    row = desk.do("approve", first)
    assert row["state"] == "active"
    assert row["to"] == ["api.github.com"]
    assert row["ports"] == ["443"]
    assert row["ttl_ms"] == 30 * 60_000
    assert desk.active() == [first]
    assert states(desk.folder) == ["requested", "active"]


@pytest.mark.usefixtures("ledger")
def test_a_restart_loses_no_approval_and_resurrects_no_revoked_lease(desk: Desk) -> None:
    kept, ended = desk.ask(), desk.ask(key="other", host="x.github.com")
    for lease in (kept, ended):
        desk.do("approve", lease)
    desk.do("revoke", ended)
    desk.restart()
    assert desk.active() == [kept]


@pytest.mark.usefixtures("ledger")
def test_two_approvals_are_two_people(desk: Desk) -> None:
    lease = desk.ask(key="two", host="two.example.org", rule="two")
    assert desk.do("approve", lease, "u1")["state"] == "requested"
    assert desk.do("approve", lease, "u1")["state"] == "requested"
    desk.restart()  # an approval that was answered is not lost
    assert desk.do("approve", lease, "u2")["state"] == "active"


@pytest.mark.usefixtures("ledger")
def test_who_asks_ahead_of_time_needs_as_many_people(desk: Desk) -> None:
    """Else asking first would be the way around a rule that wants two."""
    message = {"project": "p", "to": "two.example.org", "reason": "x"}
    row = asyncio.run(desk.leases.request(message, requester="a1"))
    assert row["approvals_needed"] == 2
    assert desk.do("approve", row["id"], "u1")["state"] == "requested"
    assert desk.do("approve", row["id"], "u2")["state"] == "active"


@pytest.mark.usefixtures("ledger")
def test_flows_that_ask_are_counted_once_each(desk: Desk) -> None:
    name = desk.ask()
    desk.ask(again=True)
    assert desk.leases.row(name)["asked"]["tries"] == 1
    desk.ask()
    assert desk.leases.row(name)["asked"]["tries"] == 2
    desk.restart()
    assert desk.leases.row(name)["asked"] is None


@pytest.mark.usefixtures("ledger")
def test_what_may_not_be_is_refused_with_its_code(desk: Desk) -> None:
    lease = desk.ask()
    for verb, more, code in (
        ("approve", {"to": [".github.com"]}, "review.widened"),
        ("approve", {"ttl_ms": 31 * 60_000}, "review.widened"),
        ("renew", {}, "state.requested"),
    ):
        with pytest.raises(RefusedError) as refused:
            desk.do(verb, lease, **more)
        assert refused.value.code == code
    with pytest.raises(RefusedError) as own:
        desk.do("approve", lease, "a1")
    assert own.value.code == "meta.sod"
    desk.do("deny", lease)
    with pytest.raises(RefusedError) as final:
        desk.do("approve", lease, "u2")
    assert final.value.code == "state.denied"
    assert desk.active() == []


@pytest.mark.usefixtures("ledger")
def test_the_gateway_is_told_of_leases_that_are_over_for_good(desk: Desk) -> None:
    first, second = desk.ask(), desk.ask(key="other", host="x.github.com")
    desk.do("approve", first)
    assert (desk.over, desk.leases.ended()) == ([], [])
    desk.do("revoke", first)
    desk.do("deny", second)
    assert desk.over == desk.leases.ended() == [first, second]
    desk.restart()
    assert desk.leases.ended() == [first, second]


@pytest.mark.usefixtures("ledger")
def test_a_prefix_revokes_all_below_it_and_nothing_else(desk: Desk) -> None:
    mine = [desk.ask(key=str(n), host=f"h{n}.github.com") for n in range(3)]
    subject = {**ASK["subject"], "agent": "a2"}  # type: ignore[dict-item]
    other = desk.ask(key="other", subject=subject)
    for lease in (*mine, other):
        desk.do("approve", lease)
    rows = desk.do("revoke", "p/a1/", prefix=True)
    assert {row["id"] for row in rows} == set(mine)
    assert desk.active() == [other]
    with pytest.raises(RefusedError, match="no live lease"):
        desk.do("revoke", "p/a1/", prefix=True)


def test_without_a_ledger_nothing_opens_but_revoking_works(desk: Desk) -> None:
    with ledgers.running(desk.folder, **AS_CONTROL):
        active, asked = desk.ask(), desk.ask(key="other", host="x.github.com")
        desk.do("approve", active)
    with pytest.raises(RefusedError) as refused:
        desk.do("approve", asked)
    assert refused.value.code == "ledger.unavailable"
    assert desk.active() == [active]
    assert desk.do("revoke", active)[0]["state"] == "revoked"
    assert desk.active() == []
    with ledgers.running(desk.folder, **AS_CONTROL):
        asyncio.run(desk.evidence.pay())  # what was owed is written now
        assert states(desk.folder)[-1] == "revoked"


def refusal(step: Callable[[], Any]) -> tuple[str, str]:
    with pytest.raises(RefusedError) as refused:
        step()
    return refused.value.code, str(refused.value)


@pytest.mark.usefixtures("ledger")
def test_the_number_of_waiting_requests_is_bounded(desk: Desk) -> None:
    most = Config().asks.max_pending
    for number in range(most // 2):
        desk.ask(key=str(number), host=f"h{number}.github.com")
    code, text = refusal(lambda: desk.ask(key="one more", host="more.github.com"))
    assert (code, "of project p" in text) == ("ask.limit", True)
    ahead = {"project": "p", "to": "a.org", "reason": "x"}  # people have the other half
    for _ in range(most - most // 2):
        asyncio.run(desk.leases.request(ahead, requester="ann"))
    code, text = refusal(lambda: asyncio.run(desk.leases.request(ahead, requester="ann")))
    assert (code, text.startswith(str(most))) == ("ask.limit", True)


@pytest.mark.usefixtures("ledger")
def test_giving_up_makes_no_room_for_asking_without_end(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    most = Config().asks.max_pending
    for number in range(most):
        desk.do("revoke", desk.ask(key=str(number), host="x.github.com"))
    code, text = refusal(desk.ask)
    assert (code, "within an hour" in text) == ("ask.limit", True)
    other = desk.ask(subject={**ASK["subject"], "agent": "a2"})
    assert desk.leases.row(other)["agents"] == ["a2"]
    now = desk.leases._now()
    monkeypatch.setattr(desk.leases, "_now", lambda: now + HOUR_MS)
    assert desk.leases.row(desk.ask())["state"] == "requested"


@pytest.mark.usefixtures("ledger")
def test_of_what_came_to_nothing_only_the_newest_are_remembered(desk: Desk) -> None:
    lease = desk.ask()
    desk.do("deny", lease)
    denied = desk.leases._all[lease]
    many = [replace(denied, id=f"p/a1/{number}") for number in range(KEPT_REFUSED + 3)]
    granted = replace(denied, id="p/a1/granted", activated_ms=denied.requested_ms)
    elsewhere = replace(denied, id="q/a1/0", project="q")
    found = forgettable([granted, *many, elsewhere], desk.leases._now())
    assert found == ["p/a1/0", "p/a1/1", "p/a1/2"]


@pytest.mark.usefixtures("ledger")
@pytest.mark.parametrize("most", [-1, -(2**70)])
def test_what_control_could_not_read_again_is_not_kept(desk: Desk, most: int) -> None:
    """A lease that cannot be loaded would keep control from starting."""
    message = {"project": "p", "to": "a.org", "reason": "x", "max_bytes": most}
    assert refusal(lambda: asyncio.run(desk.leases.request(message, requester="ann")))[0] == "lease.invalid"
    desk.restart()
    assert desk.leases.rows(None, everything=True) == []


@pytest.mark.usefixtures("ledger")
def test_who_wanted_the_job_does_not_approve_what_it_asks(desk: Desk) -> None:
    job = {**ASK["subject"], "job": "j1"}
    by_flow = desk.ask(subject=job)
    assert desk.leases.row(by_flow)["on_behalf_of"] == "u1"
    ahead = {"project": "p", "agent": "a1", "to": "x.github.com", "reason": "x"}
    at_desk = asyncio.run(desk.leases.request(ahead, requester="a1", job="j1"))["id"]
    for lease in (by_flow, at_desk):
        assert refusal(lambda lease=lease: desk.do("approve", lease, "u1"))[0] == "meta.sod"
        assert desk.do("approve", lease, "u2")["state"] == "active"


@pytest.mark.usefixtures("ledger")
@pytest.mark.parametrize("ahead", [True, False])
def test_the_baseline_says_how_many_must_approve(desk: Desk, *, ahead: bool) -> None:
    (desk.folder / "policies" / "baseline.yaml").write_text(
        "egress: v1\nproject: baseline\nask:\n  - {id: b, to: .github.com, approvals: 2, max_ttl: 10m}\n"
        "  - {id: silent, to: .example.org}\n"
    )
    desk.restart()
    message = {"project": "p", "to": "api.github.com", "reason": "x"}
    name = asyncio.run(desk.leases.request(message, requester="ann"))["id"] if ahead else desk.ask()
    row = desk.leases.row(name)
    assert (row["approvals_needed"], row["max_ttl_ms"], row["ttl_ms"]) == (2, 600_000, 600_000)
    other = asyncio.run(desk.leases.request({**message, "to": "x.example.org"}, requester="ann"))
    assert (other["approvals_needed"], other["max_ttl_ms"]) == (1, 8 * HOUR_MS)


@pytest.mark.usefixtures("ledger")
def test_a_lease_can_be_named_by_its_last_part(desk: Desk) -> None:
    lease = desk.ask()
    assert desk.leases.row(lease.rpartition("/")[2])["id"] == lease
    with pytest.raises(RefusedError, match="no lease"):
        desk.leases.row("nothing")


@pytest.mark.usefixtures("ledger")
def test_a_request_can_be_denied_whatever_the_clock_says(desk: Desk) -> None:
    lease, other = desk.ask(), desk.ask(key="other", host="x.github.com")
    store = Store(desk.folder / "c.sqlite")
    store.keep_latest_ms(time.time_ns() // 1_000_000 + 600_000)
    store.close()
    desk.restart()
    with pytest.raises(RefusedError) as refused:
        desk.do("approve", other)
    assert refused.value.code == "clock.untrusted"
    assert desk.do("deny", lease)["state"] == "denied"


@pytest.mark.usefixtures("ledger")
def test_ended_leases_are_forgotten_and_stay_on_the_ledger(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    revoked, denied, live, waiting = (desk.ask(key=str(n), host=f"h{n}.github.com") for n in range(4))
    for lease in (revoked, live):
        desk.do("approve", lease)
    desk.do("revoke", revoked)
    desk.do("deny", denied)
    asyncio.run(desk.leases.tick())
    assert len(desk.leases.rows(None, everything=True)) == 4
    now = desk.leases._now()
    monkeypatch.setattr(desk.leases, "_now", lambda: now + KEEP_ENDED_MS + 30 * 60_000 - 1000)
    asyncio.run(desk.leases.tick())  # a request would have been open for an hour
    assert {row["id"] for row in desk.leases.rows(None, everything=True)} == {revoked, denied, live, waiting}
    monkeypatch.setattr(desk.leases, "_now", lambda: now + KEEP_ENDED_MS + 2 * 3_600_000)
    asyncio.run(desk.leases.tick())
    assert desk.leases.rows(None, everything=True) == []
    desk.restart()
    assert desk.leases.rows(None, everything=True) == []
    with pytest.raises(RefusedError, match="ledger tail"):
        desk.leases.row(revoked)
    assert states(desk.folder).count("revoked") == 1


@pytest.mark.usefixtures("ledger")
def test_what_may_be_spoken_is_asked_for_shown_and_taken_away(desk: Desk) -> None:
    asked = desk.ask(key="raw", host="raw.example.org", rule="spoken")
    assert desk.leases.row(asked)["speech"] == ["raw", "ech"]
    assert desk.do("approve", asked, raw=False)["speech"] == ["ech"]
    request = asyncio.run(
        desk.leases.request({"project": "p", "to": "a.org", "raw": True, "ech": "yes"}, requester="ann")
    )
    assert request["speech"] == ["raw"]
    assert desk.do("approve", request["id"])["speech"] == ["raw"]
    with pytest.raises(RefusedError):
        desk.do("approve", desk.ask(), raw=True, to=["*.github.com"])
