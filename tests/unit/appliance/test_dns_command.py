"""`exeat dns tail|top|pins` through the command line, on a ledger made by the real store."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from tests.support.ledgers import record

from exeat.appliance.cli import main
from exeat.ledger.records import Dest, Kind
from exeat.ledger.store import Store

if TYPE_CHECKING:
    from pathlib import Path


def lookup(host: str, decision: str, reason: str, count: int = 1, job: str = "j1") -> bytes:
    return record(
        Kind.DNS, project="p", job=job, dest=Dest(host=host, port=53, protocol="dns"), decision=decision,
        reason_code=reason, name_source="dns", count=count,
    )  # fmt: skip


@pytest.fixture
def state(tmp_path: Path) -> Path:
    store = Store.create(tmp_path / "ledger" / "abc", "exeat/n1", 1)
    store.append(
        [
            lookup("www.example.org", "allow", "rule.allow"),
            lookup("evil.example.com", "deny", "posture.default_deny", 7),
            lookup("www.example.org", "allow", "rule.allow", 30),
            lookup("evil.com", "deny", "dns.tunnel", job="j2"),
        ],
        1,
    )
    store.close()
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, list[str]]:
    code = main(["dns", *argv])
    return code, capsys.readouterr().out.splitlines()


def test_tail_prints_a_line_for_each(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = run(capsys, "tail", "--state-dir", str(state))
    assert code == 0
    assert [line.split()[2:4] for line in lines] == [
        ["allow", "www.example.org"], ["deny", "evil.example.com"],
        ["allow", "www.example.org"], ["deny", "evil.com"],
    ]  # fmt: skip
    assert lines[1].endswith("posture.default_deny  x7  (dns)")


@pytest.mark.parametrize(
    ("options", "hosts"),
    [
        (["--denied"], ["evil.example.com", "evil.com"]),
        (["--job", "j2"], ["evil.com"]),
        (["--project", "q"], []),
        (["-n", "1"], ["evil.com"]),
        (["-n", "0"], []),
    ],
)
def test_tail_picks(
    state: Path, capsys: pytest.CaptureFixture[str], options: list[str], hosts: list[str]
) -> None:
    _, lines = run(capsys, "tail", "--json", "--state-dir", str(state), *options)
    assert [json.loads(line)["host"] for line in lines] == hosts


def test_top_adds_up(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, lines = run(capsys, "top", "--json", "--state-dir", str(state))
    rows = [json.loads(line) for line in lines]
    assert [(row["count"], row["host"], row["reason"]) for row in rows if row["by"] == "name"] == [
        (31, "www.example.org", "rule.allow"),
        (7, "evil.example.com", "posture.default_deny"),
        (1, "evil.com", "dns.tunnel"),
    ]
    assert [(row["count"], row["job"], row["decision"]) for row in rows if row["by"] == "subject"] == [
        (31, "j1", "allow"), (7, "j1", "deny"), (1, "j2", "deny"),
    ]  # fmt: skip
    assert [(row["count"], row["reason"]) for row in rows if row["by"] == "refusal"] == [
        (7, "posture.default_deny"), (1, "dns.tunnel"),
    ]  # fmt: skip


def test_top_draws(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, lines = run(capsys, "top", "--state-dir", str(state), "--by", "name", "-n", "2")
    assert lines == [
        "names                      lookups",
        "████████████████████████        31  allow  www.example.org  rule.allow  (p)",
        "█████▍                           7  deny   evil.example.com  posture.default_deny  (p)",
    ]
    _, lines = run(capsys, "top", "--state-dir", str(state))
    assert [line.split()[0] for line in lines if line.endswith("lookups")] == [
        "names",
        "subjects",
        "refusals",
    ]
    _, lines = run(capsys, "top", "--state-dir", str(state), "--project", "q")
    assert lines == ["no lookups"]


def test_without_a_ledger_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dns", "tail", "--state-dir", str(tmp_path)]) == 3
    assert "no ledger here" in capsys.readouterr().err


def test_pins_without_a_guard_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--run-dir", str(tmp_path), "dns", "pins"]) == 3
    assert "not running" in capsys.readouterr().err
