"""The kill switch as an operator throws it, while jobs run and while processes die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.running import Running, wait_for

from exeat.appliance.lab import plan

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

SLOW = "https://api.example.org/bytes/40000000?rate=400000"
QUICK = "https://api.example.org/bytes/1000"
PROJECT = ("--project", plan.PROJECT)


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    made = Running("kill")
    yield made
    made.close()


@pytest.fixture(autouse=True)
def nothing_stopped(running: Running) -> Iterator[None]:
    yield
    wait_for(running.healed)
    for row in running.json("kill"):
        running.exeat("kill", "off", *(("--project", row["project"]) if row["project"] else ("--all",)))


def try_it(running: Running) -> tuple[str, str]:
    """What a job is told by the proxy, and the exit status of its lookup."""
    done = running.run(
        "sh", "-c", f"curl -sv -o /dev/null --max-time 9 {QUICK} 2>&1; getent hosts api.example.org; echo $?"
    )
    assert ("kill switch is on" in done.stderr) == bool(running.json("kill"))
    return done.stdout, done.stdout.splitlines()[-1]


def switches(running: Running) -> list[dict[str, Any]]:
    return [r for r in running.records(1000) if r["kind"] == "policy" and r["decision"].startswith("kill.")]


@pytest.mark.parametrize("what", [("--all",), PROJECT], ids=["all", "project"])
def test_what_lives_ends_and_nothing_new_begins(running: Running, what: tuple[str, ...]) -> None:
    job = running.job("curl", "-s", "-o", "/dev/null", "--max-time", "60", SLOW)
    wait_for(lambda: [row for row in running.json("flow", "ls") if row["state"] == "live"])
    told = running.exeat("kill", "on", *what, "--network-only", "--reason", "it leaks", "--as", "ann").stdout
    assert "go on, without network" in told
    job.communicate(timeout=30)  # it would have run for a minute and a half
    assert job.returncode != 0, "the job itself is not killed, its download is"
    assert [r for r in running.records() if r["kind"] == "close"][-1]["close_reason"] == "kill"
    answer, looked_up = try_it(running)
    assert "stopped by the kill switch" in answer
    assert looked_up == "2", "getent: not found"
    reasons = {(r["kind"], r.get("reason_code")) for r in running.records()}
    assert {("deny", "kill"), ("dns", "kill")} <= reasons
    assert "by ann" in running.exeat("status").stdout
    (row,) = running.json("status")["killed"]
    assert (row["project"], row["by"], row["reason"]) == (what[1] if what[1:] else None, "ann", "it leaks")
    why = running.exeat("why", "api.example.org", *PROJECT, check=False)
    assert why.returncode == 1
    assert "exeat kill off" in why.stdout

    running.exeat("kill", "off", *what, "--as", "ben")
    answer, looked_up = try_it(running)
    assert "200 " in answer
    assert looked_up == "0"
    on, off = switches(running)[-2:]
    assert (on["decision"], on["actor"], on["detail"]) == ("kill.on", "ann", "it leaks")
    assert (off["decision"], off["actor"]) == ("kill.off", "ben")
    assert on.get("project", "") == off.get("project", "") == (what[1] if what[1:] else "")


@pytest.mark.parametrize("process", ["proxy", "guard", "control"])
def test_it_holds_when_a_process_is_killed_and_comes_back(running: Running, process: str) -> None:
    running.exeat("kill", "on", "--all", "--network-only")
    before = running.pid(process)
    running.kill(process)
    wait_for(lambda: running.pid(process) not in (0, before))
    wait_for(running.healed)
    assert [row["project"] for row in running.json("kill")] == [None]
    answer, looked_up = try_it(running)
    assert "stopped by the kill switch" in answer
    assert looked_up == "2"


def test_what_cannot_be_meant_is_refused(running: Running) -> None:
    unknown = running.exeat("kill", "on", "--project", "crawlre", check=False)
    assert (unknown.returncode, "project.unknown" in unknown.stderr) == (1, True)
    assert plan.PROJECT in unknown.stderr
    other = running.exeat("kill", "on", "--node", "other", check=False)
    assert (other.returncode, "this node is" in other.stderr) == (2, True)
    assert running.exeat("kill", "on", check=False).returncode == 2
    assert json.loads(running.exeat("kill", "--json").stdout) == []
    off = running.exeat("kill", "off", *PROJECT, check=False)
    assert (off.returncode, "kill.not_on" in off.stderr) == (1, True)
    node = running.json("status")["node"]
    running.exeat("kill", "on", "--node", node)
    assert running.exeat("kill", "off", *PROJECT, check=False).returncode == 1
    assert "EVERYTHING" in running.exeat("kill").stdout


def test_off_waits_for_the_ledger_and_on_does_not(running: Running) -> None:
    """Its record follows when the ledger is back; to let anything out again needs the ledger first."""
    before = len(switches(running))
    supervisor = running.supervisor()
    os.kill(supervisor, signal.SIGSTOP)  # what is killed stays dead
    try:
        running.kill("ledger")
        running.exeat("kill", "on", "--all", "--reason", "now")
        off = running.exeat("kill", "off", "--all", check=False)
        assert (off.returncode, "ledger.unavailable" in off.stderr) == (1, True)
        assert running.json("kill")[0]["reason"] == "now"
    finally:
        os.kill(supervisor, signal.SIGCONT)
    wait_for(lambda: len(switches(running)) == before + 1)
    assert switches(running)[-1]["detail"] == "now"


CROWD = "for n in 1 2 3 4 5 6 7 8 9 10; do setsid sleep 86395 & done; trap '' TERM INT HUP; echo up; wait"


def alive() -> list[str]:
    found = subprocess.run(["pgrep", "-xf", "sleep 86395"], capture_output=True, text=True, check=False)
    return found.stdout.split()


@pytest.mark.parametrize("what", [("--all",), PROJECT], ids=["all", "project"])
def test_jobs_end_with_all_their_processes_and_none_starts(running: Running, what: tuple[str, ...]) -> None:
    jobs = [running.job("sh", "-c", CROWD) for _ in range(3)]
    for job in jobs:
        assert job.stdout is not None
        assert job.stdout.readline() == "up\n"
    wait_for(lambda: len(alive()) == 30)
    assert "jobs ended, with all their processes: 3" in running.exeat("kill", "on", *what).stdout
    for job in jobs:
        _, said = job.communicate(timeout=30)
        assert (job.returncode, "the kill switch is on" in said) == (137, True)
    assert alive() == []
    ended = [r for r in running.records(1000) if r["kind"] == "job" and r["decision"] == "exit"]
    assert [(r["reason_code"], r["count"]) for r in ended[-3:]] == [("kill", 137)] * 3
    refused = running.run("true")
    assert (refused.returncode, "no job may run: the kill switch is on" in refused.stderr) == (1, True)
    running.exeat("kill", "off", *what)
    assert running.run("true").returncode == 0


def test_what_the_switch_could_not_end_at_once_ends_when_there_is_a_warden_again(running: Running) -> None:
    job = running.job("sh", "-c", CROWD)
    assert job.stdout is not None
    assert job.stdout.readline() == "up\n"
    supervisor = running.supervisor()
    os.kill(supervisor, signal.SIGSTOP)
    try:
        running.kill("warden")
        running.exeat("kill", "on", "--all")
        assert job.poll() is None
    finally:
        os.kill(supervisor, signal.SIGCONT)
    job.communicate(timeout=30)
    assert (job.returncode, alive()) == (137, [])
