"""A policy is changed while the appliance runs: narrowing by one person, widening by two."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.support.running import Running, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.root

RULE = '  - {id: extra, to: "telemetry.downloads.example.com"}\n'


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    made = Running("rel")
    yield made
    made.close()


@pytest.fixture
def policy(running: Running) -> Iterator[Path]:
    path = running.lab.policies / "crawler.yaml"
    text = path.read_text()
    yield path
    path.write_text(text)
    running.exeat("policy", "reload", "--as", "ann", "--reviewed-by", "ben")


def reached(running: Running) -> str:
    url = "https://telemetry.downloads.example.com/bytes/10"
    return running.run(
        "curl", "-s", "-o", "/dev/null", "-w", "%{http_connect}", "--max-time", "9", url
    ).stdout


def test_widening_needs_a_second_person(running: Running, policy: Path) -> None:
    policy.write_text(policy.read_text().replace("allow:\n", "allow:\n" + RULE, 1))
    for people in ((), ("--as", "ann"), ("--as", "ann", "--reviewed-by", "ann")):
        refused = running.exeat("policy", "reload", *people, check=False)
        assert refused.returncode == 1
        assert "telemetry.downloads.example.com" in refused.stderr
        assert "[meta.second_reviewer]" in refused.stderr
    assert reached(running) == "403"
    running.exeat("policy", "reload", "--as", "ann", "--reviewed-by", "ben")
    assert reached(running) != "403"
    record = [r for r in running.records() if r["kind"] == "policy"][-1]
    assert record["decision"] == "widens"
    assert record["actor"] == "ann"
    assert "telemetry.downloads.example.com" in record["detail"]


def test_narrowing_needs_nobody_and_ends_what_it_forbids(running: Running, policy: Path) -> None:
    slow = "https://api.example.org/bytes/40000000?rate=400000"
    job = running.job("curl", "-s", "-o", "/dev/null", "-w", "%{size_download}", "--max-time", "60", slow)
    wait_for(lambda: any(r["kind"] == "open" for r in running.records()))
    text = policy.read_text()
    policy.write_text(text.replace("deny:\n", "deny:\n  - {id: no-api, to: api.example.org}\n", 1))
    running.exeat("policy", "reload")
    job.communicate(timeout=30)  # it would have run for a minute
    close = [r for r in running.records() if r["kind"] == "close"][-1]
    assert close["close_reason"] == "policy.changed"
    assert [r for r in running.records() if r["kind"] == "policy"][-1]["decision"] == "narrows"


def test_reloading_what_is_in_force_records_nothing(running: Running) -> None:
    before = len(running.records())
    assert running.exeat("policy", "reload").returncode == 0
    assert len(running.records()) == before


def test_a_removed_policy_closes_its_project(running: Running, policy: Path) -> None:
    policy.unlink()
    running.exeat("policy", "reload")
    assert running.exeat("run", "--", "true", check=False).returncode == 1
