"""`exeat flow ls|tail|cut` beside jobs that download."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.running import Running, wait_for

from exeat.appliance.lab import plan

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

SLOW = "https://api.example.org/bytes/40000000?rate=400000"
ASKED = "https://files.downloads.example.com/bytes/40000000?rate=400000"


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    made = Running("flow")
    yield made
    made.close()


def rows(running: Running, state: str = "live") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = running.json("flow", "ls")
    return [row for row in found if row["state"] == state]


@contextmanager
def download(running: Running, url: str = SLOW) -> Iterator[subprocess.Popen[str]]:
    """A job that would download for a minute and a half; the block must end it."""
    job = running.job("curl", "-s", "-o", "/dev/null", "--max-time", "60", url, options=("--hold", "50s"))
    yield job
    job.communicate(timeout=30)
    assert job.returncode != 0


def last(running: Running, kind: str) -> dict[str, Any]:
    return [record for record in running.records(200) if record["kind"] == kind][-1]


def test_one_is_listed_with_moving_counts_and_cut_by_its_id(running: Running) -> None:
    with download(running):
        [row] = wait_for(lambda: rows(running))
        assert (row["project"], row["dest"], row["verdict"]) == (plan.PROJECT, "api.example.org:443", "allow")
        assert abs(time.time() - row["since_ms"] / 1000) < 60
        wait_for(lambda: rows(running)[0]["bytes_in"] > row["bytes_in"])
        assert row["flow"][:12] in running.exeat("flow", "ls", "--project", plan.PROJECT).stdout
        assert running.exeat("flow", "ls", "--project", "other").stdout == "no flows\n"
        unknown = running.exeat("flow", "cut", "zz", check=False)
        assert (unknown.returncode, "flow.unknown" in unknown.stderr) == (1, True)
        cut = running.exeat("flow", "cut", row["flow"][:8], "--as", "ann", "--reason", "too much").stdout
        assert row["flow"][:12] in cut
    closed = last(running, "close")
    assert (closed["close_reason"], closed["flow"]) == ("cut", row["flow"])
    record = last(running, "policy")
    assert (record["decision"], record["actor"], record["project"]) == ("cut", "ann", plan.PROJECT)
    assert record["detail"] == f"flow {row['flow']} flows 1 too much"
    assert rows(running) == []


@pytest.mark.parametrize("what", ["project", "job"])
def test_all_of_one_project_or_job(running: Running, what: str) -> None:
    with download(running), download(running):
        wait_for(lambda: len(rows(running)) == 2)
        both = rows(running)
        if what == "job":
            assert len(running.json("flow", "cut", "--job", both[0]["job"])) == 1
            assert [row["flow"] for row in rows(running)] == [both[1]["flow"]]
        assert len(running.json("flow", "cut", "--project", plan.PROJECT)) == (2 if what == "project" else 1)
    assert last(running, "close")["close_reason"] == "cut"
    assert running.exeat("flow", "cut", "--project", plan.PROJECT).stdout == "nothing to cut\n"


def test_one_that_waits_is_listed_approved_and_cut_by_its_lease(running: Running) -> None:
    with download(running, ASKED):
        [waiting] = wait_for(lambda: rows(running, "waiting"))
        assert (waiting["verdict"], waiting["reason"]) == ("ask", "rule.ask")
        [lease] = wait_for(lambda: running.json("lease", "ls"))
        running.exeat("lease", "approve", lease["id"], "--as", "ann")
        [row] = wait_for(lambda: rows(running))
        assert row["lease"] == lease["id"]
        assert running.exeat("flow", "cut", "--lease", "p/nobody/1", check=False).returncode == 1
        assert len(running.json("flow", "cut", "--lease", lease["id"].rpartition("/")[2])) == 1
    assert last(running, "close")["close_reason"] == "cut"
    assert [row["state"] for row in running.json("lease", "ls")] == ["active"], "only its flows end"


def test_tail_says_what_happens_when_it_happens(running: Running) -> None:
    tail = subprocess.Popen(
        running.command("flow", "tail", "--json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert tail.stdout is not None
    assert tail.stderr is not None
    try:
        assert "watching" in tail.stderr.readline()
        running.run("curl", "-s", "-o", "/dev/null", "https://api.example.org/bytes/1000")
        running.run("curl", "-s", "-o", "/dev/null", "https://paste.example.net/")
        opened, closed, denied = (json.loads(tail.stdout.readline()) for _ in range(3))
        assert [event["ev"] for event in (opened, closed, denied)] == ["open", "close", "deny"]
        assert opened["flow"] == closed["flow"]
        assert closed["bytes_in"] > 1000
        assert (denied["dest"], denied["reason"]) == ("paste.example.net:443", "rule.deny")
    finally:
        tail.send_signal(signal.SIGINT)
        assert tail.wait(30) == 130
        tail.stdout.close()
        tail.stderr.close()


def test_without_a_proxy_nothing_is_claimed(running: Running) -> None:
    running.kill("proxy")
    wait_for(running.healed)
    assert rows(running) == [], "a new proxy has no flows of the old one"
