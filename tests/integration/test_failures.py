"""docs/architecture.md's failure table, row by row: each process is killed while a flow runs."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from tests.support.running import Running, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

SLOW = "https://api.example.org/bytes/40000000?rate=400000"
QUICK = "https://api.example.org/bytes/1000"
CURL = "curl -s -o /dev/null --max-time"


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    made = Running("fail")
    yield made
    made.close()


@pytest.fixture(autouse=True)
def healthy(running: Running) -> Iterator[None]:
    """Every test finds the appliance whole and leaves a ledger that verifies."""
    wait_for(running.healed)
    yield
    print(running.lab.log("appliance").read_text())  # pytest shows it when the test failed
    wait_for(running.healed)
    running.exeat("ledger", "verify", "--state-dir", str(running.lab.state_dir))


@contextmanager
def not_restarted(running: Running) -> Iterator[None]:
    """Suspend the supervisor, so that what is killed stays dead inside the block."""
    supervisor = running.supervisor()
    os.kill(supervisor, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(supervisor, signal.SIGCONT)


def flowing(running: Running) -> bytes:
    """Wait until the slow download has been opened in the ledger; its flow id."""
    seen = {record["flow"] for record in running.records() if record["kind"] in ("close", "orphan")}

    def find() -> str:
        return next(
            (
                record["flow"]
                for record in running.records()
                if record["kind"] == "open" and record["flow"] not in seen
            ),
            "",
        )

    return wait_for(find)


def kinds_of(running: Running, flow: bytes) -> list[str]:
    return [record["kind"] for record in running.records() if record.get("flow") == flow]


def test_proxy_killed_jail_reaches_nothing_and_the_flow_is_settled(running: Running) -> None:
    job = running.job("sh", "-c", f"{CURL} 30 '{SLOW}'; echo first=$?; {CURL} 2 {QUICK}; echo second=$?")
    flow = flowing(running)
    with not_restarted(running):
        running.kill("proxy")
        wait_for(lambda: "orphan" in kinds_of(running, flow))
        out = "".join(job.stdout.readline() for _ in range(2))
        assert "first=0" not in out
        assert "first=" in out
        assert "second=0" not in out
        assert "second=" in out
    job.communicate(timeout=30)
    orphan = next(r for r in running.records() if r.get("flow") == flow and r["kind"] == "orphan")
    assert orphan["bytes_in"] + orphan["bytes_out"] <= orphan["reserved"]
    wait_for(running.healed)
    assert running.run("curl", "-sf", "-o", "/dev/null", QUICK).returncode == 0


def test_guard_killed_running_flows_go_on_and_new_names_do_not_resolve(running: Running) -> None:
    job = running.job("sh", "-c", f"{CURL} 4 '{SLOW}'; echo slow=$?")
    flow = flowing(running)
    with not_restarted(running):
        running.kill("guard")
        refused = running.exeat("status", check=False)
        assert refused.returncode == 1
        out, _ = job.communicate(timeout=30)
    assert "slow=28" in out  # it ran until its own time limit, not until the guard's death
    assert kinds_of(running, flow)[-1] == "close"


def test_control_killed_running_jobs_go_on_and_keep_their_exit_code(running: Running) -> None:
    job = running.job("sh", "-c", f"{CURL} 3 '{SLOW}'; {CURL} 5 {QUICK} && echo allowed; exit 7")
    flow = flowing(running)
    with not_restarted(running):
        running.kill("control")
        # The gateway decides from its last snapshot: the second flow is opened without control.
        wait_for(lambda: "close" in kinds_of(running, flow))
        assert "allowed" in job.stdout.readline()
    job.communicate(timeout=30)
    assert job.returncode == 7


def test_control_killed_an_ask_is_refused(running: Running) -> None:
    ask = "curl -s -o /dev/null -w '%{http_connect}' --max-time 20 https://big.downloads.example.com/bytes/10"
    job = running.job("sh", "-c", f"{CURL} 3 '{SLOW}'; {ask}", options=["--hold", "1s"])
    flow = flowing(running)
    with not_restarted(running):
        running.kill("control")
        wait_for(lambda: "close" in kinds_of(running, flow))
        assert wait_for(lambda: job.stdout.read(3)) == "403"
    job.communicate(timeout=30)


def test_ledger_killed_flows_stop_at_their_reservation_and_go_on_after_it_is_back(running: Running) -> None:
    fast = "https://api.example.org/bytes/300000000?rate=20000000"
    job = running.job("sh", "-c", f"{CURL} 60 '{fast}'; echo big=$?")
    flow = flowing(running)
    ask = f"code=$(curl -s -o /dev/null -w '%{{http_connect}}' {QUICK})"
    other = running.job(
        "sh", "-c", f"for n in $(seq 900); do {ask}; [ $code = 200 ] || break; done; echo $code"
    )
    wait_for(lambda: running.json("status")["jobs"] == 2)
    with not_restarted(running):
        running.kill("ledger")
        reached, _ = other.communicate(timeout=60)
        assert reached == "503\n", "what runs gets no new flow"
        refused = running.run("true")
        assert (refused.returncode, "ledger.unavailable" in refused.stderr) == (1, True), "and no job starts"
    out, _ = job.communicate(timeout=60)
    assert "big=0" in out
    close = next(r for r in running.records() if r.get("flow") == flow and r["kind"] == "close")
    assert close["bytes_in"] >= 300_000_000
    ceilings = [
        r["reserved"] for r in running.records() if r.get("flow") == flow and r["kind"] in ("open", "reserve")
    ]
    assert close["bytes_in"] + close["bytes_out"] <= max(ceilings)


def test_warden_killed_the_job_stays_confined_and_is_adopted(running: Running) -> None:
    direct = f"{CURL} 2 -f --noproxy '*' http://203.0.113.10/ || echo confined"
    script = f"{CURL} 3 '{SLOW}'; {CURL} 5 {QUICK} && echo allowed; {direct}; exit 9"
    job = running.job("sh", "-c", script)
    flowing(running)
    with not_restarted(running):
        running.kill("warden")
        refused = running.run("true")
        assert refused.returncode == 1
        assert "warden" in refused.stderr
        assert "allowed" in job.stdout.readline()
        assert "confined" in job.stdout.readline()
    job.communicate(timeout=30)
    assert job.returncode == 9


def test_a_damaged_database_is_set_aside_and_what_confines_comes_back(running: Running) -> None:
    other = running.lab.policies / "other.yaml"
    other.write_text("egress: v1\nproject: other\n")
    running.exeat("policy", "reload")
    running.exeat("kill", "on", "--project", "other")
    lease = running.json("lease", "request", "--project", "crawler", "new.downloads.example.com:443")["id"]
    job = running.job("sh", "-c", "echo up; sleep 600")
    assert job.stdout.readline() == "up\n"
    database = running.lab.state_dir / "control" / "control.sqlite"
    with not_restarted(running):
        running.kill("control")
        for path in database.parent.glob("control.sqlite*"):
            path.write_bytes(b"\xff" * 8192)
    job.communicate(timeout=30)
    assert job.returncode == 125
    wait_for(running.healed)
    assert [stop["project"] for stop in running.json("kill")] == ["other"]
    assert running.exeat("lease", "show", lease, check=False).returncode == 1
    ended, said = (
        [record for record in running.records(200) if record["kind"] == kind][-1]
        for kind in ("job", "anomaly")
    )
    assert (ended["decision"], ended["reason_code"]) == ("exit", "lost")
    assert said["decision"] == "damaged"
    assert "leases, the queue and flows past the proxy are lost" in said["detail"]
    assert len(list(database.parent.glob("control.sqlite.damaged-*"))) >= 1
    with not_restarted(running):
        running.kill("control")
        for path in database.parent.glob("control.sqlite*"):
            path.unlink()
    wait_for(running.healed)
    assert [stop["project"] for stop in running.json("kill")] == ["other"], "deleted, and still not forgotten"
    running.exeat("kill", "off", "--project", "other")
    assert running.run("curl", "-sf", "-o", "/dev/null", QUICK).returncode == 0
    other.unlink()
    running.exeat("policy", "reload")


def test_a_broken_policy_leaves_the_old_one_in_force(running: Running) -> None:
    policy = running.lab.policies / "crawler.yaml"
    text = policy.read_text()
    try:
        policy.write_text(text + "\nalow: []\n")
        refused = running.exeat("policy", "reload", check=False)
        assert refused.returncode == 1
        assert f"{policy}:" in refused.stderr
        assert running.run("curl", "-sf", "-o", "/dev/null", QUICK).returncode == 0
    finally:
        policy.write_text(text)
        running.exeat("policy", "reload")
