"""The normative cases, and neighbours of them that the file leaves out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.reference_policy import Surroundings, reference

from exeat.appliance.public_suffixes import bundled_suffixes
from exeat.policy.cases import CasesError, case_lease, case_request, read_cases, run_cases, run_read_cases
from exeat.policy.document import load_policy
from exeat.policy.model import Sni
from exeat.policy.names import MalformedError, canonical_host
from exeat.policy.units import parse_time

if TYPE_CHECKING:
    from collections.abc import Iterator

VECTORS = Path(__file__).parents[2] / "vectors"
CASES = (VECTORS / "policy-cases.yaml").read_text(encoding="utf-8")
DATA: dict[str, Any] = read_cases(CASES)
NEIGHBOURS: list[dict[str, Any]] = [
    case
    for name in ("neighbours", "boundaries")
    for case in read_cases((VECTORS / f"policy-{name}.yaml").read_text(encoding="utf-8"))["cases"]
]


@pytest.mark.parametrize("result", run_cases(CASES, bundled_suffixes()), ids=lambda result: result.id)
def test_normative_case(result: Any) -> None:
    assert result.status == "passed", result


def _decides(cases: list[dict[str, Any]]) -> Iterator[Any]:
    """Those that get as far as a decision: what is malformed has no meaning to compare."""
    for case in cases:
        malformed = str(case["expect"].get("reason", "")).startswith("malformed.")
        if case.get("kind", "decide") == "decide" and not malformed:
            yield pytest.param(case, id=case["id"])


@pytest.mark.parametrize("case", [*_decides([*DATA["cases"], *NEIGHBOURS])])
def test_the_reference_agrees_with_the_case(case: dict[str, Any]) -> None:
    name = case["policy"]
    document = load_policy(DATA["policies"].get(name, name), file=case["id"], suffixes=bundled_suffixes())
    leases = [DATA["leases"][item] if isinstance(item, str) else item for item in case.get("leases", ())]
    state = case.get("state", {})
    spent = state.get("budgets", {})
    around = Surroundings(
        leases=list(map(case_lease, leases)),
        used={(name, counter): n for name, by in spent.items() for counter, n in by.items()},
        lease_uses=state.get("lease_uses", {}),
        lease_bytes=state.get("lease_bytes", {}),
        revoked=frozenset(state.get("revoked", ())),
        min_epoch=state.get("min_epoch", 0),
    )
    asked = case_request(case["request"])
    asked = replace(asked, host=canonical_host(asked.host), sni=_canonical_sni(asked.sni))
    now_ms = parse_time(case.get("now", DATA["defaults"]["now"]))
    got = reference(document, asked, now_ms, around)
    shown = {"decision": got.verdict, "reason": got.reason, "rule": got.rule}
    assert shown == {**shown, **case["expect"]}


def _canonical_sni(sni: str | Sni) -> str | Sni:
    """A server name that is an address or is malformed is no host's name."""
    try:
        name = sni if isinstance(sni, Sni) else canonical_host(sni)
    except MalformedError:
        return "malformed"
    return name if isinstance(name, str) else "an address"


def test_an_unknown_kind_fails() -> None:
    [result] = run_cases("cases: [{id: A, kind: guess, expect: {}}]", bundled_suffixes())
    assert result.status == "failed"


@pytest.mark.parametrize("case", NEIGHBOURS, ids=lambda case: case["id"])
def test_neighbour(case: dict[str, Any]) -> None:
    file = {"policies": DATA["policies"], "leases": DATA["leases"], "cases": [case]}
    [result] = run_read_cases(file, bundled_suffixes())
    assert result.status == "passed", result


OWN = [
    result
    for name in ("policy-baseline.yaml", "policy-speech.yaml")
    for result in run_cases((VECTORS / name).read_text(encoding="utf-8"), bundled_suffixes())
]


@pytest.mark.parametrize("result", OWN, ids=lambda result: result.id)
def test_baselines_and_speech(result: Any) -> None:
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
