"""The kill switch as control keeps it, with a real database and a real ledger."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
from tests.support import ledgers

from exeat.appliance.control.evidence import Evidence
from exeat.appliance.control.kill import KillSwitch
from exeat.appliance.control.store import Store
from exeat.appliance.control.verbs import from_root
from exeat.appliance.errors import RefusedError
from exeat.ledger.reader import read_records
from exeat.ledger.records import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

AS_CONTROL: dict[str, Any] = {"writers": {os.getuid(): "control"}}
ALL = {"all": True}
P = {"project": "p"}


class Desk:
    """`restart` is a new process on the same database; `events` what was published, in order."""

    def __init__(self, folder: Path, socket: Path) -> None:
        self.folder, self.socket = folder, socket
        self.events: list[list[str]] = []
        self.doomed: list[str | None] = []
        self.store = Store(folder / "control.sqlite")
        self.restart()

    def restart(self) -> None:
        self.store.close()
        self.store = Store(self.folder / "control.sqlite")
        self.evidence = Evidence(self.socket, "n1", self.store)
        self.kill = KillSwitch(
            self.store,
            self.evidence,
            now_ms=lambda: 5,
            projects=lambda: {"p", "q"},
            changed=lambda: self.events.append(self.kill.scopes),
            end_jobs=self.end_jobs,
        )

    async def end_jobs(self, project: str | None) -> int:
        self.doomed.append(project)
        return 3

    def do(self, verb: str, message: dict[str, Any]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = asyncio.run(self._call(verb, message))["stopped"]
        return rows

    async def _call(self, verb: str, message: dict[str, Any]) -> dict[str, Any]:
        return await self.kill.verbs()[verb](from_root(message), [])

    def refusal(self, verb: str, message: dict[str, Any]) -> str:
        with pytest.raises(RefusedError) as caught:
            self.do(verb, message)
        return caught.value.code


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with ledgers.running(tmp_path, **AS_CONTROL) as daemon:
        yield Desk(tmp_path, daemon.path)


def test_on_and_off_are_kept_told_and_recorded(desk: Desk, tmp_path: Path) -> None:
    row = {"project": "p", "by": "ann", "reason": "leak\\u000a!", "at_ms": 5, "jobs": True}
    assert desk.do("kill.on", {**P, "reason": "leak\n!", "as": "ann"}) == [row]
    assert desk.events == [["p"]]
    desk.restart()
    assert desk.do("kill.ls", {}) == [row]
    assert len(desk.do("kill.on", ALL)) == 2
    assert desk.kill.scopes == ["*", "p"]
    assert desk.do("kill.off", ALL) == [row]
    desk.restart()
    assert desk.kill.scopes == ["p"]
    assert desk.do("kill.off", P) == []
    assert desk.events == [["p"], ["*", "p"], ["p"], []]
    desk.restart()
    assert desk.kill.scopes == []
    records = [record for _, record in read_records(ledgers.settings(tmp_path).state_dir / "ledger")]
    found = [(r.decision, r.project, r.actor) for r in records if r.kind is Kind.POLICY]
    assert found == [
        ("kill.on", "p", "ann"),
        ("kill.on", "", "root"),
        ("kill.off", "", "root"),
        ("kill.off", "p", "root"),
    ]


def test_nobody_weakens_a_stop_by_stopping(desk: Desk) -> None:
    """Who may stop and not let go on must not let jobs start again by a stop of the network alone."""
    desk.do("kill.on", P)
    assert desk.do("kill.on", P | {"network_only": True})[0]["jobs"] is True
    assert desk.kill.stops_jobs("p")
    desk.do("kill.off", P)
    assert desk.do("kill.on", P | {"network_only": True})[0]["jobs"] is False


@pytest.mark.parametrize(
    "message",
    [{}, {"all": 1}, {"project": ""}, {"project": "*"}, {"project": 5}, {"all": True, "project": "p"}],
)
def test_a_request_must_say_what(desk: Desk, message: dict[str, Any]) -> None:
    assert desk.refusal("kill.on", message) == "kill.scope"
    assert desk.refusal("kill.off", message) == "kill.scope"
    assert desk.events == []


def test_what_is_not_there_is_refused(desk: Desk) -> None:
    assert desk.refusal("kill.on", {"project": "other"}) == "project.unknown"
    assert desk.refusal("kill.off", P) == "kill.not_on"
    assert desk.events == []


def test_a_database_that_fails_stops_nothing_from_being_stopped(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(desk.store, "save_kill", full)
    assert desk.refusal("kill.on", ALL) == "kill.not_kept"
    assert (desk.kill.scopes, desk.events) == (["*"], [["*"]])
    monkeypatch.setattr(desk.store, "delete_kill", full)
    assert desk.refusal("kill.off", ALL) == "kill.not_kept"
    assert (desk.kill.scopes, desk.events) == (["*"], [["*"]])


def test_on_while_off_waits_for_the_ledger_wins(desk: Desk) -> None:
    async def both() -> None:
        verbs = desk.kill.verbs()
        await verbs["kill.on"](from_root(ALL), [])
        off = asyncio.ensure_future(verbs["kill.off"](from_root(ALL), []))
        await asyncio.sleep(0)  # it has asked the ledger
        await verbs["kill.on"](from_root({**ALL, "reason": "again"}), [])
        with pytest.raises(RefusedError, match="meanwhile"):
            await off

    asyncio.run(both())
    assert desk.kill.rows()[0]["reason"] == "again"
    desk.restart()
    assert desk.kill.scopes == ["*"]


def test_without_a_ledger_it_can_be_turned_on_but_not_off(tmp_path: Path) -> None:
    desk = Desk(tmp_path, tmp_path / "nowhere.sock")
    assert desk.do("kill.on", ALL)[0]["project"] is None
    assert desk.refusal("kill.off", ALL) == "ledger.unavailable"
    assert desk.kill.scopes == ["*"]


def test_a_record_that_is_owed_outlives_control(tmp_path: Path) -> None:
    settings = ledgers.settings(tmp_path, **AS_CONTROL)
    desk = Desk(tmp_path, settings.socket_path)
    desk.do("kill.on", ALL | {"reason": "smoke"})
    desk.restart()
    desk.do("kill.on", P)
    desk.restart()
    with ledgers.running(tmp_path, **AS_CONTROL):
        asyncio.run(desk.evidence.pay())
        desk.restart()
        asyncio.run(desk.evidence.pay())  # nothing is owed any more
    records = [record for _, record in read_records(settings.state_dir / "ledger")]
    thrown = [(r.decision, r.project, r.detail) for r in records if r.kind is Kind.POLICY]
    assert thrown == [("kill.on", "", "smoke"), ("kill.on", "p", "")]


def test_jobs_end_with_it_unless_only_the_network_is_meant(desk: Desk) -> None:
    desk.do("kill.on", P | {"network_only": True})
    assert (desk.doomed, desk.kill.stops("p"), desk.kill.stops_jobs("p")) == ([], True, False)
    assert asyncio.run(desk._call("kill.on", P))["ended"] == 3
    desk.do("kill.on", ALL)
    desk.do("kill.off", ALL)
    desk.restart()
    assert desk.doomed == ["p", None]
    assert (desk.kill.stops_jobs("p"), desk.kill.stops_jobs("q")) == (True, False)
