"""The rules of conftest.py, on a small suite in a pytest of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SUITE = """
import pytest
def test_runs(): pass
def test_skips_itself(): pytest.skip("not today")
@pytest.mark.skip(reason="not ever")
def test_marked(): pass
@pytest.mark.xfail(strict=True)
def test_expected(): assert False
@pytest.mark.root
def test_rooted(): pass
"""
MODULE = 'import pytest\npytest.skip("wrong machine", allow_module_level=True)\n'


def run_suite(folder: Path, *, ci: bool) -> str:
    """The last line pytest prints for SUITE, run under our conftest."""
    shutil.copy(Path(__file__).with_name("conftest.py"), folder)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n  root: x\n  network: x\n")
    (folder / "test_suite.py").write_text(SUITE)
    (folder / "test_module.py").write_text(MODULE)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)]
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    if ci:
        environment["CI"] = "true"
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.root
def test_outside_ci_a_skip_is_a_skip(tmp_path: Path) -> None:
    last = run_suite(tmp_path, ci=False)
    assert last.startswith("2 passed, 3 skipped, 1 xfailed")


@pytest.mark.root
def test_in_ci_a_skip_is_a_failure(tmp_path: Path) -> None:
    last = run_suite(tmp_path, ci=True)
    assert "error" in last
    assert "skipped" not in last
    assert "passed" not in last  # a module that skips itself stops the run
