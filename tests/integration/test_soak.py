"""The short soak: idle tunnels stay while others come and go, and nothing is kept or lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]


@pytest.mark.root
@pytest.mark.slow
def test_a_short_soak_leaks_nothing() -> None:
    # In a process of its own: it pins itself to a core and raises its limits.
    done = subprocess.run(
        [sys.executable, "-m", "bench.soak", "--short"],
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "flows opened" in done.stdout
    assert "LEAK" not in done.stdout
