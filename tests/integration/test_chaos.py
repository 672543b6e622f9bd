"""What the chaos bench leans on. The bench itself is for people: what it kills, and when, is chance."""

from __future__ import annotations

import pytest
from bench.chaos import unsettled
from tests.support.running import Running


@pytest.mark.root
def test_who_waits_for_a_job_hears_of_its_end_when_the_appliance_stops() -> None:
    """The warden, which would take the job down, is gone by then."""
    running = Running("stop")
    try:
        job = running.job("sh", "-c", "echo up; sleep 600", options=["--quiet"])
        assert job.stdout is not None
        assert job.stdout.readline() == "up\n"
        running.stop()
        job.communicate(timeout=30)
        assert job.returncode == 137
    finally:
        running.close()


def test_a_job_has_one_end() -> None:
    good = [("a", "start", "", 0), ("a", "exit", "exited", 0), ("a", "exit", "exited", 0)]
    assert unsettled(good) == []
    assert unsettled([*good, ("b", "start", "", 0)]) == ["b: []"]
    assert unsettled([*good, ("a", "exit", "lost", 125)]) == ["a: [('exited', 0), ('lost', 125)]"]
