"""OpenAPI 3.1 of the routes, made from the same models that check what comes in."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pydantic.json_schema import models_json_schema

from exeat.appliance.console.models import ProblemBody
from exeat.appliance.console.permissions import PERMISSIONS, PUBLIC
from exeat.appliance.console.problems import CONTENT_TYPE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pydantic import BaseModel
    from pydantic.json_schema import JsonSchemaMode

    from exeat.appliance.console.routing import Route

_REF = "#/components/schemas/{model}"
_PART = re.compile(r"\{(\w+)(?::[^}]*)?\}")
_SECURED: list[dict[str, list[str]]] = [{"token": []}, {"cookie": []}]
_WORDS = {
    200: "done",
    303: "on to another place: it is in Location",
    201: "made",
    202: "taken, and not done yet",
    304: "as you have it",
    400: "not JSON",
    401: "who calls is not known",
    403: "not theirs to do",
    404: "there is no such thing",
    408: "the body did not come in time",
    409: "not in this state",
    412: "it has changed since it was looked at",
    413: "the body is too large",
    415: "not application/json",
    428: "If-Match is needed",
    421: "called by a name that is not the console's",
    422: "not what the description says",
    429: "too often",
    503: "a process of the appliance does not answer",
}


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """The whole description."""
    schemas = _schemas(routes)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(_PART.sub(r"{\1}", route.path), {})[route.method.lower()] = _operation(
            route, schemas
        )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "exeat console",
            "version": "1",
            "description": "What people and programs may see and decide. A refusal is RFC 9457.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": schemas["components"],
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "cookie": {
                    "type": "apiKey",
                    "in": "cookie",
                    "name": "__Host-sid",
                    "description": "with X-CSRF-Token for all but GET",
                },
            },
        },
    }


def _schemas(routes: Iterable[Route]) -> dict[str, Any]:
    """`components`: every model by name; `of`: what stands for a model in one mode."""
    models: dict[tuple[type[BaseModel], JsonSchemaMode], None] = {(ProblemBody, "serialization"): None}
    for route in routes:
        for model in (route.body, route.query):
            if model is not None:
                models[model, "validation"] = None
        if route.out is not None:
            models[route.out, "serialization"] = None
    found, shared = models_json_schema(list(models), ref_template=_REF)
    return {"of": found, "components": shared.get("$defs", {})}


def _operation(route: Route, schemas: dict[str, Any]) -> dict[str, Any]:
    first, _, rest = route.summary.partition("\n")
    operation: dict[str, Any] = {
        "operationId": route.name,
        "tags": [route.tag],
        "summary": first,
        "parameters": [*_path_parameters(route), *_query_parameters(route, schemas)],
        "responses": _responses(route, schemas),
        "security": [] if route.permission == PUBLIC else _SECURED,
    }
    if rest.strip():
        operation["description"] = " ".join(rest.split())
    if route.permission != PUBLIC:
        operation["x-permission"] = route.permission
        operation["x-roles"] = sorted(PERMISSIONS[route.permission])
    if route.body is not None:
        schema = schemas["of"][route.body, "validation"]
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    if route.method == "POST" and route.permission != PUBLIC:
        operation["parameters"].append(
            {
                "name": "Idempotency-Key",
                "in": "header",
                "required": False,
                "schema": {"type": "string"},
                "description": "1 to 128 letters, digits, - and _: the same key again gets the first answer",
            }
        )
    return operation


def _path_parameters(route: Route) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string", "minLength": 1, "maxLength": 200},
        }
        for name in _PART.findall(route.path)
    ]


def _query_parameters(route: Route, schemas: dict[str, Any]) -> list[dict[str, Any]]:
    if route.query is None:
        return []
    reference = schemas["of"][route.query, "validation"]["$ref"]
    schema = schemas["components"][reference.rpartition("/")[2]]
    return [
        {"name": name, "in": "query", "required": name in schema.get("required", ()), "schema": _plain(value)}
        for name, value in schema.get("properties", {}).items()
    ]


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    """A query has no null: what may be left out is just not there."""
    choices = [choice for choice in schema.get("anyOf", ()) if choice != {"type": "null"}]
    if len(choices) != 1:
        return schema
    return {**{key: value for key, value in schema.items() if key not in ("anyOf", "default")}, **choices[0]}


def _responses(route: Route, schemas: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if route.out is not None:
        content = {"application/json": {"schema": schemas["of"][route.out, "serialization"]}}
    elif route.media:
        content = {media: {"schema": {"type": "string"}} for media in route.media.split(", ")}
    responses = {str(route.status): {"description": _WORDS[route.status], "content": content}}
    if route.etag:
        responses[str(route.status)]["headers"] = {"ETag": {"schema": {"type": "string"}}}
        responses["304"] = {"description": _WORDS[304]}
    problem = {CONTENT_TYPE: {"schema": schemas["of"][ProblemBody, "serialization"]}}
    for status in sorted(_failures(route)):
        responses[str(status)] = {"description": _WORDS[status], "content": problem}
    return responses


def _failures(route: Route) -> set[int]:
    """What any route may answer, and what this one says it may."""
    found = {421, 422, 429, *route.errors}
    if route.permission != PUBLIC:
        found |= {401, 403}
    if "{" in route.path:
        found |= {404}
    if route.method not in ("GET", "HEAD"):
        found |= {403}
    if route.method == "POST" and route.permission != PUBLIC:
        found |= {409}  # the same Idempotency-Key, still under way
    if route.body is not None:
        found |= {400, 408, 413, 415}
    return found
