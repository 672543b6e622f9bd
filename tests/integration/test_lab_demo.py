"""The main job of the product, as a command: what `exeat lab demo --json` says and leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support.running import own_tag

from exeat.appliance.lab import demo_job, manage, network, plan
from exeat.appliance.lab.demo_report import Report
from exeat.appliance.lab.running import Running, command

STEPS = ["up", "tour", "lease", "kill", "verify", "reconcile", "hostile", "names", "down"]


@pytest.mark.root
@pytest.mark.slow
def test_the_demonstration_passes_and_leaves_nothing() -> None:
    # Short paths outside pytest's own folder: Unix sockets and the service users must reach them.
    tag = own_tag("demo")
    prefix, run_dir, state_dir = f"exl{tag}-", f"/run/exeat-lab-{tag}", f"/var/lib/exeat-lab-{tag}"
    where = ["--prefix", prefix, "--lab-dir", run_dir, "--lab-state-dir", state_dir]
    done = subprocess.run(
        [sys.executable, "-I", "-m", "exeat", "lab", "demo", "--json", *where],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    report = json.loads(done.stdout)
    failed = {step["step"]: step.get("problem") for step in report["steps"] if not step["ok"]}
    assert (done.returncode, failed) == (0, {}), done.stderr
    assert [step["step"] for step in report["steps"]] == STEPS
    found = {step["step"]: step["result"] for step in report["steps"]}
    assert len(report["attempts"]) == len(demo_job.ATTEMPTS)
    assert found["kill"]["tries_during_outage"] > 10
    assert found["reconcile"]["ledger_and_kernel"]["bytes_in"] > 8_000_000
    assert found["reconcile"]["ledger_and_far_side"]["equal"] > 8
    lab = plan.Lab.named(prefix, Path(run_dir), Path(state_dir))
    assert manage.leftovers(lab) == []


@pytest.mark.root
@pytest.mark.slow
def test_down_removes_a_running_job_after_all_of_the_appliance_was_killed() -> None:
    tag = own_tag("killed")
    lab = plan.Lab.named(f"exl{tag}-", Path(f"/run/exeat-lab-{tag}"), Path(f"/var/lib/exeat-lab-{tag}"))
    manage.up(lab)
    job = Running(command(lab, "run", "--project", "crawler", "--", "sh", "-c", "echo '{}'; exec sleep 120"))
    try:
        job.line(20)
        inside = [pid for jail in manage._mounts_below(lab.run_dir) for pid in network.processes(Path(jail))]
        assert inside
        ours = [pid for pid in manage._processes_of(lab) if _words(pid)[-1:] in (["up"], *SERVED)]
        assert len({tuple(_words(pid)) for pid in ours}) == 6  # the ledger forks to publish
        for pid in ours:
            os.kill(pid, signal.SIGKILL)
    finally:
        manage.down(lab)
        job.stop()
    assert manage.leftovers(lab) == []
    assert not [pid for pid in inside if Path(f"/proc/{pid}").exists()]


SERVED = [[name] for name in ("warden", "proxy", "guard", "ledger", "control")]


def _words(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().rstrip("\0").split("\0")


@pytest.mark.root
def test_a_missing_client_is_named_and_nothing_is_started(tmp_path: Path) -> None:
    """With a PATH that has no curl: the step fails with the package's name, the exit code is 1."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("ip", "nsenter", "git"):
        (tools / tool).symlink_to(f"/usr/bin/{tool}")
    where = [
        "--prefix",
        "exlw-",
        "--lab-dir",
        f"{tmp_path}/exeat-lab-r",
        "--lab-state-dir",
        f"{tmp_path}/exeat-lab-s",
    ]
    done = subprocess.run(
        [sys.executable, "-I", "-m", "exeat", "lab", "demo", "--json", *where],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": str(tools)},
    )
    report = json.loads(done.stdout)
    assert done.returncode == 1
    assert "apt-get install curl" in report["steps"][0]["problem"]
    assert [step["step"] for step in report["steps"]] == ["up", "down"]


def row(**changes: Any) -> dict[str, Any]:
    plain = {
        "client": "curl", "what": "https://a.example/", "want": "refused", "reached": False,
        "reason": "rule.deny", "why": "a deny rule matches [rule.deny]",
        "recorded": ["rule.deny"], "said": "curl: (56)", "ms": 3, "ok": True,
    }  # fmt: skip
    return plain | changes


def test_a_report_with_a_failed_step_says_so_and_ends_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(as_json=False)
    report.begin("tour", "run a job")
    report.table([row(), row(ok=False, reached=True, recorded=[])])
    report.end(1.5, {"attempts": 2, "took_ms": 1500}, "not as the policy says")
    assert report.finish() == 1
    shown = capsys.readouterr().out
    assert "FAIL run a job" in shown
    assert "took 1,500 ms" in shown
    assert "reached  curl" in shown
    assert "NOT SO" in shown
    assert "0 of 1 steps passed" in shown


def test_a_report_for_machines_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(as_json=True)
    report.begin("up", "make it")
    report.end(0.25, {"namespaces": 5}, "")
    assert report.finish() == 0
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is True
    assert document["steps"] == [
        {"step": "up", "title": "make it", "ok": True, "ms": 250, "result": {"namespaces": 5}}
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="root is what this takes away")
@pytest.mark.parametrize("action", ["up", "down", "demo"])
def test_without_root_it_says_so_in_one_line(action: str) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-m", "exeat", "lab", action],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        user=65534,
        cwd="/",
    )
    assert done.returncode == 2
    assert done.stderr == "exeat: the lab makes network namespaces and needs root: run it with sudo\n"
