"""A share of the chaos bench: processes are killed at random under load, and nothing is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from bench.chaos import unsettled
from tests.support.running import Running

REPO = Path(__file__).resolve().parents[2]


@pytest.mark.root
@pytest.mark.slow
def test_nothing_is_left_of_jobs_whatever_is_killed() -> None:
    # In a process of its own: it ends with all its threads, whatever becomes of them.
    done = subprocess.run(
        [sys.executable, "-m", "bench.chaos", "--minutes", "0.12"],
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "none  processes: 0" in done.stdout


@pytest.mark.root
def test_who_waits_for_a_job_hears_of_its_end_when_the_appliance_stops() -> None:
    """The warden, which would take the job down, is gone by then."""
    running = Running("stop")
    try:
        job = running.job("sh", "-c", "echo up; sleep 600", options=["--quiet"])
        assert job.stdout is not None
        assert job.stdout.readline() == "up\n"
        running.stop()
        job.communicate(timeout=15)
        assert job.returncode == 137
    finally:
        running.close()


def test_a_job_has_one_end() -> None:
    good = [("a", "start", "", 0), ("a", "exit", "exited", 0), ("a", "exit", "exited", 0)]
    assert unsettled(good) == []
    assert unsettled([*good, ("b", "start", "", 0)]) == ["b: []"]
    assert unsettled([*good, ("a", "exit", "lost", 125)]) == ["a: [('exited', 0), ('lost', 125)]"]
