"""The JSON Schema for editors: printed, current, and in step with the loader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from exeat.appliance.cli import main
from exeat.policy.schema import SCHEMA

ROOT = Path(__file__).parents[3]
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
CASES: dict[str, Any] = yaml.load(
    (ROOT / "tests/vectors/policy-cases.yaml").read_text(encoding="utf-8"),
    Loader=yaml.BaseLoader,  # noqa: S506 - text only
)
SHAPE = {"doc.unknown_key", "doc.empty", "doc.version", "posture.unknown", "preset.unknown"}


def tree(text: str) -> Any:
    return yaml.load(text, Loader=yaml.BaseLoader)  # noqa: S506 - text only


def test_the_page_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert main(["policy", "schema"]) == 0
    assert capsys.readouterr().out == (ROOT / "docs/policy.schema.json").read_text(encoding="utf-8")
    assert main(["policy", "schema", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == SCHEMA


@pytest.mark.parametrize(
    "text",
    [
        *(path.read_text(encoding="utf-8") for path in sorted((ROOT / "examples/policies").glob("*.yaml"))),
        *CASES["policies"].values(),
    ],
)
def test_what_loads_is_valid(text: str) -> None:
    VALIDATOR.validate(tree(text))


@pytest.mark.parametrize(
    "case",
    [c for c in CASES["cases"] if c.get("kind") == "load" and c["expect"].get("error") in SHAPE],
    ids=lambda case: case["id"],
)
def test_what_has_the_wrong_shape_is_not(case: dict[str, Any]) -> None:
    assert not VALIDATOR.is_valid(tree(case["doc"]))
