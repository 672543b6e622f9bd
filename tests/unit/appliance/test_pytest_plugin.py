"""The pytest plug-in, used as a platform team would use it."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

pytest_plugins = ["pytester"]

TESTS = """
def test_it(egress):
    assert egress.allows("a.org")
    assert not egress.allows("a.org", port=80)
    assert egress.asks("b.org", agent="a1")
    assert egress.denies("a.org", resolved=("10.0.0.1",))
    assert egress.decide("A.ORG.", now="2026-01-05T12:00:00Z").rule == "one"
    assert egress.decide("nul\\0.org").reason == "malformed.host"
    assert egress.reach(".c.org").via == "operator"

def test_wrong(egress):
    assert egress.allows("c.org")
"""


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makepyfile(TESTS)
    return pytester


def run(project: pytest.Pytester, *args: str) -> pytest.RunResult:
    # A checkout that was not installed since the entry point came has to name the module.
    installed = any(each.name == "exeat" for each in entry_points(group="pytest11"))
    named = () if installed else ("-p", "exeat.appliance.pytest_plugin")
    return project.runpytest_subprocess(*named, *args)


def test_a_policy_is_tested_offline(project: pytest.Pytester, tmp_path: Path) -> None:
    policy = tmp_path / "p.yaml"
    policy.write_text("egress: v1\nproject: p\nallow: [{id: one, to: a.org}]\nask: [{to: b.org}]\n")
    result = run(project, "--exeat-policy", str(policy))
    result.assert_outcomes(passed=1, failed=1)


def test_a_policy_must_be_named_and_load(project: pytest.Pytester, tmp_path: Path) -> None:
    result = run(project)
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*needs --exeat-policy FILE*"])
    broken = tmp_path / "p.yaml"
    broken.write_text("egress: v1\nproject: p\nalow: []\n")
    result = run(project, "--exeat-policy", str(broken))
    result.stdout.fnmatch_lines(["*p.yaml:3:1: unknown key `alow`*"])
