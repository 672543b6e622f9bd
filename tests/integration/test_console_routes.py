"""Every route, by everybody: the declaration in the code is what the door does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from openapi_spec_validator import validate
from schemathesis.specs.openapi import checks
from tests.support.console import PEOPLE, ConsoleRig

from exeat.appliance.console import resources
from exeat.appliance.console.openapi import document
from exeat.appliance.console.permissions import PERMISSIONS, PUBLIC
from exeat.appliance.console.routing import PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exeat.appliance.console.routing import Route

pytestmark = pytest.mark.root

SPEC = document(resources.ALL)


def _without_headers(spec: dict[str, Any]) -> dict[str, Any]:
    """A header is text on the wire: one of a wrong type, as the generator makes them, cannot be told."""
    copy: dict[str, Any] = json.loads(json.dumps(spec))
    for verbs in copy["paths"].values():
        for operation in verbs.values():
            given = operation.get("parameters", [])
            operation["parameters"] = [each for each in given if each.get("in") != "header"]
    return copy


# Not: that all that fits the schema is accepted (what names nothing, or widens, is refused), and that wrong
# credentials are always a 401 (a few tries later they are a 429; who may what is tried above).
CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]
SCHEMA = schemathesis.openapi.from_dict(_without_headers(SPEC))
# A stream does not end; test_console_events.py reads it.
ENDLESS = [route.path for route in resources.ALL if route.media == "text/event-stream"]


@pytest.fixture(scope="module")
def rig() -> Iterator[ConsoleRig]:
    made = ConsoleRig()
    try:
        yield made
    finally:
        made.close()


def test_the_description_is_valid_and_served(rig: ConsoleRig) -> None:
    validate(SPEC)
    served = rig.nobody().get("//spec/openapi.json")
    assert json.loads(served.body) == json.loads(json.dumps(SPEC))
    described = {(path, method.upper()) for path, verbs in SPEC["paths"].items() for method in verbs}
    assert described == {(_plain(route), route.method) for route in resources.ALL}


def test_every_route_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
    lines = {
        f"| `{route.method} {_plain(route).removeprefix(PREFIX)}` | {route.permission or 'none'} |"
        for route in resources.ALL
    }
    assert sorted(line for line in lines if line not in page) == []


def _plain(route: Route) -> str:
    return re.sub(r"\{(\w+)[^}]*\}", r"{\1}", route.path)


def _path(route: Route) -> str:
    return "/" + re.sub(r"\{\w+[^}]*\}", "nothing", route.path)


@pytest.mark.parametrize("route", resources.ALL, ids=lambda route: f"{route.method} {route.path}")
def test_each_role_may_what_the_declaration_says(rig: ConsoleRig, route: Route) -> None:
    """With nothing that the route needs: who may go on is told what is missing, never done."""
    answers = {"nobody": rig.nobody().call(route.method, _path(route))}
    if route.path not in ENDLESS:
        answers |= {name: rig.person(name).call(route.method, _path(route)) for name in PEOPLE}
    for name, answer in answers.items():
        codes = {401, 403}
        if route.permission == PUBLIC:
            assert answer.status not in codes, (name, answer)
        elif name == "nobody":
            assert (answer.status, answer.json["reason_code"]) == (401, "auth.needed")
        elif PEOPLE[name][0] in PERMISSIONS[route.permission]:
            partly = answer.status == 403 and answer.json["reason_code"] == "auth.projects"
            assert answer.status not in codes or (partly and PEOPLE[name][1]), (name, answer)
        else:
            assert (answer.status, answer.json["reason_code"]) == (403, "auth.role"), (name, answer)


@pytest.fixture(scope="module")
def admin(rig: ConsoleRig) -> dict[str, str]:
    return rig.person("adam").headers


@SCHEMA.exclude(path=ENDLESS).parametrize()
@settings(
    max_examples=6,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_generated_calls_get_described_answers(
    case: schemathesis.Case, rig: ConsoleRig, admin: dict[str, str]
) -> None:
    """Well-formed or not: the status, the media type and the body are those of the description."""
    response = case.call(base_url=rig.origin, headers=admin)
    assert response.status_code < 500, response.text
    case.validate_response(response, checks=CHECKS)
