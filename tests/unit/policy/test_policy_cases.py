"""The normative cases, and neighbours of them that the file leaves out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from exeat.appliance.public_suffixes import bundled_suffixes
from exeat.policy.cases import CasesError, run_cases

VECTORS = Path(__file__).parents[2] / "vectors"
CASES = (VECTORS / "policy-cases.yaml").read_text(encoding="utf-8")
DATA: dict[str, Any] = yaml.safe_load(CASES)


@pytest.mark.parametrize("result", run_cases(CASES, bundled_suffixes()), ids=lambda result: result.id)
def test_normative_case(result: Any) -> None:
    assert result.status == "passed", result


def test_an_unknown_kind_fails() -> None:
    [result] = run_cases("cases: [{id: A, kind: guess, expect: {}}]", bundled_suffixes())
    assert result.status == "failed"


NEIGHBOURS = yaml.safe_load((VECTORS / "policy-neighbours.yaml").read_text(encoding="utf-8"))["cases"]


@pytest.mark.parametrize("case", NEIGHBOURS, ids=lambda case: case["id"])
def test_neighbour(case: dict[str, Any]) -> None:
    file = {"policies": DATA["policies"], "leases": DATA["leases"], "cases": [case]}
    [result] = run_cases(yaml.safe_dump(file), bundled_suffixes())
    assert result.status == "passed", result


BASELINES = (VECTORS / "policy-baseline.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("result", run_cases(BASELINES, bundled_suffixes()), ids=lambda result: result.id)
def test_under_a_baseline(result: Any) -> None:
    assert result.status == "passed", result


@pytest.mark.parametrize("text", ["", "[]", "cases: 3", "cases: [1]", "a: &x\nb: *y", "cases: [{id: a}]"])
def test_an_unusable_file_is_one_error(text: str) -> None:
    with pytest.raises(CasesError):
        run_cases(text, bundled_suffixes())


def test_a_broken_case_fails_alone() -> None:
    text = """
cases:
- {id: A, kind: unit, fn: nothing, in: "1", expect: {value: 1}}
- {id: B, kind: unit, fn: size, in: "1", expect: {value: 1}}
- {id: C, kind: unit, fn: size, in: "1", expect: {value: 2}}
"""
    assert [result.status for result in run_cases(text, bundled_suffixes())] == ["failed", "passed", "failed"]
