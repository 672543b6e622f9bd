"""What of the rules, policies and the program gets on the ledger, and when."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import exeat
from exeat.appliance.control.attest import AGAIN_S, JAIL_S, Attestation, bound_digest
from exeat.appliance.control.evidence import Evidence
from exeat.appliance.control.jobs import Job
from exeat.appliance.control.store import Store
from exeat.appliance.errors import RefusedError
from exeat.appliance.program import program_digest
from exeat.ledger.records import Kind, Record, decode

if TYPE_CHECKING:
    from collections.abc import Callable

AS_SHELL = (
    "find -L . -type f ! -path '*/__pycache__/*' -printf '%P\\n' | LC_ALL=C sort | xargs -d '\\n' sha256sum"
    " | sha256sum"
)
NOTHING: dict[str, Any] = {"projects": {}, "shadows": {}, "baseline": "", "shadow_baseline": ""}


class Kept(Evidence):
    def __init__(self) -> None:
        super().__init__(Path("/nowhere"), "n1", Store(Path(":memory:")))
        self.kept: list[Record] = []

    async def owe(self, record: bytes, **_: Any) -> None:
        self.kept.append(decode(record))


@dataclass
class Document:
    digest: str


@dataclass
class World:
    """Stands for warden, table, policies and jobs alike; `rules` are those of each jail."""

    host: str | None = "aa"
    rules: dict[str, str] = field(default_factory=dict)
    bound: dict[str, Any] = field(default_factory=lambda: dict(NOTHING))
    all: dict[str, Job] = field(default_factory=dict)
    asked: list[list[str]] = field(default_factory=list)
    policy: str = "bb" * 32

    def attested(self) -> str | None:
        return self.host

    def bindings(self) -> dict[str, Any]:
        return self.bound

    def document_of(self, _project: str, _job: str) -> Document:
        return Document(self.policy)

    async def call(self, _verb: str, *, jails: list[str]) -> tuple[dict[str, Any], list[int]]:
        self.asked.append(jails)
        if not self.rules:
            raise RefusedError("unavailable", "no warden")
        return {"rules": {jail: self.rules[jail] for jail in jails if jail in self.rules}}, []


def attested(*turns: Callable[[World], float]) -> tuple[World, list[Record]]:
    """What is recorded if the world is changed, and looked at, once for each turn, which says when."""
    world, evidence = World(), Kept()
    parts = cast("Any", world)
    attestation = Attestation(parts, parts, parts, parts, evidence)

    async def run() -> None:
        for turn in turns:
            now = turn(world)
            await attestation.look_at_node(now)
            await attestation.look_at_jails(now)

    asyncio.run(run())
    return world, evidence.kept


def said(records: list[Record]) -> list[tuple[str, str, str]]:
    """(kind and decision, job, rules)."""
    return [
        (f"{each.kind.label} {each.decision}", each.job, json.loads(each.data or "{}").get("rules", ""))
        for each in records
    ]


def put(world: World, now: float, **changes: Any) -> float:
    for name, value in changes.items():
        setattr(world, name, value)
    return now


def job(name: str) -> Job:
    return Job(name, "p", "a", ["true"], 0, started_s=1.0)


def test_the_node_is_attested_at_the_start_at_changes_and_hourly() -> None:
    _, records = attested(
        lambda w: put(w, 0),
        lambda w: put(w, 1),
        lambda w: put(w, 2, host="cc"),
        lambda w: put(w, 3, bound={**NOTHING, "projects": {"p": "dd"}}),
        lambda w: put(w, 3 + AGAIN_S),
    )
    assert said(records) == [
        ("attest first", "", "aa"),
        ("attest change", "", "cc"),
        ("attest change", "", "cc"),
        ("attest still", "", "cc"),
    ]
    assert records[2].policy_digest == hashlib.sha256(b"project p dd\nbaseline \nshadow_baseline \n").digest()
    assert records[0].policy_digest == bytes.fromhex(bound_digest(NOTHING)) != records[2].policy_digest


def test_a_table_that_is_not_as_it_should_be_is_not_attested() -> None:
    _, records = attested(lambda w: put(w, 0, host=None), lambda w: put(w, 1, host=""))
    assert said(records) == [("attest first", "", "")]


def test_a_jail_is_attested_once_and_its_changes_are_anomalies() -> None:
    world, records = attested(
        lambda w: put(w, 0, all={"j1": job("j1")}, rules={"j1": "11"}),
        lambda w: put(w, 1),
        lambda w: put(w, JAIL_S),
        lambda w: put(w, 2 * JAIL_S, rules={"j1": "22"}),
        lambda w: put(w, 3 * JAIL_S, policy="ee" * 32),
        lambda w: put(w, 3 * JAIL_S + 1, all={}),
    )
    assert said(records)[1:] == [
        ("attest first", "j1", "11"),
        ("anomaly rules", "", ""),
        ("attest change", "j1", "22"),
        ("attest change", "j1", "22"),
    ]
    assert [r.policy_digest.hex()[:2] for r in records if r.job] == ["bb", "bb", "ee"]
    assert world.asked == [["j1"]] * 4


def test_many_jails_are_looked_at_a_few_at_a_time_and_a_jail_that_went_is_left_out() -> None:
    names = [f"j{number}" for number in range(20)]
    world, records = attested(
        lambda w: put(w, 0, all={name: job(name) for name in names}, rules=dict.fromkeys(names[1:], "11"))
    )
    assert [len(jails) for jails in world.asked] == [8, 8, 4]
    assert [r.job for r in records if r.job] == names[1:]


def test_while_the_warden_is_away_nothing_is_said_of_jails() -> None:
    _, records = attested(lambda w: put(w, 0, all={"j1": job("j1")}), lambda w: put(w, 1, rules={"j1": "11"}))
    assert [r.job for r in records] == ["", "j1"]


def test_a_job_that_has_not_begun_or_has_ended_is_not_looked_at() -> None:
    begins, over = job("j1"), job("j2")
    begins.started_s, over.code = 0.0, 0
    world, _ = attested(lambda w: put(w, 0, all={"j1": begins, "j2": over}, rules={"j1": "1", "j2": "2"}))
    assert world.asked == []


def test_anybody_can_make_the_digest_of_the_program_again() -> None:
    root = Path(exeat.__file__).parent
    shell = subprocess.run(["sh", "-c", AS_SHELL], cwd=root, capture_output=True, text=True, check=True)
    assert program_digest() == shell.stdout.split()[0]


def test_the_digest_changes_with_each_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.py").write_text("1")
    before = program_digest(tmp_path)
    (tmp_path / "a" / "__pycache__").mkdir()
    (tmp_path / "a" / "__pycache__" / "x.pyc").write_text("compiled")
    assert program_digest(tmp_path) == before
    (tmp_path / "a" / "y.so").write_text("")
    assert program_digest(tmp_path) != before


def test_the_record_is_an_attest_record_with_all_it_promises() -> None:
    _, records = attested(lambda w: put(w, 0))
    assert records[0].kind is Kind.ATTEST
    assert records[0].detail.startswith("host: rules aa, program ")
    assert json.loads(records[0].data).keys() == {"where", "rules", "program", "version", "python", "kernel"}
