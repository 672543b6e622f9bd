"""The shape of a policy file as a JSON Schema, for editors. The loader is stricter and has the last word:
names, units, groups and budgets that must exist, and public suffixes are its business."""

from __future__ import annotations

from typing import Any

from exeat.policy.files import SCHEME
from exeat.policy.postures import Default, Posture, Preset
from exeat.policy.rule_loader import RULE_KEYS, VIA
from exeat.policy.rules import COUNTERS, DAYS, PROTOCOLS, Kind

_TEXT = {"type": "string", "minLength": 1}
_NUMBER_OR_TEXT = {"type": ["string", "integer"]}


def _one_or_more(item: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [item, {"type": "array", "items": item}]}


def _words(*words: str) -> dict[str, Any]:
    return {"enum": list(words)}


_PORTS = {
    "anyOf": [
        {"type": "integer", "minimum": 1, "maximum": 65535},
        {"type": "string", "pattern": "^(any|[1-9][0-9]{0,4}(-[1-9][0-9]{0,4})?)$"},
    ]
}
_DURATION = {"type": "string", "pattern": "^([0-9]+(ms|s|m|h|d))+$"}
# A YAML reader may make a date of an unquoted instant; the loader takes the text.
_INSTANT = {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+Z$"}
_BOOLEAN = {"anyOf": [{"type": "boolean"}, _words("true", "false")]}
_PROPERTIES: dict[str, dict[str, Any]] = {
    "id": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"},
    "to": {"$ref": "#/$defs/scopes", "description": "What is covered."},
    "ports": _one_or_more(_PORTS),
    "proto": _one_or_more(_words(*PROTOCOLS, "any")),
    "except": {"$ref": "#/$defs/scopes", "description": "Where this one rule abstains."},
    "agent": _one_or_more(_TEXT),
    "node": _one_or_more(_TEXT),
    "when": {"$ref": "#/$defs/when"},
    "budget": _TEXT,
    "private": _BOOLEAN,
    "raw": {**_BOOLEAN, "description": "Any bytes may be spoken: the first ones are not judged."},
    "ech": {**_BOOLEAN, "description": "A ClientHello with ECH is accepted."},
    "via": {**_words(*VIA), "description": "`direct`: a lease for it goes past the proxy."},
    "records": {**_BOOLEAN, "description": "Records other than addresses may be looked up."},
    "why": {"type": "string", "maxLength": 500},
    "broad": _BOOLEAN,
    "ttl": _DURATION,
    "max_ttl": _DURATION,
    "approvals": {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 9}, {"pattern": "^[1-9]$"}]},
}


def _rule(kind: Kind) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {name: _PROPERTIES[name] for name in sorted(RULE_KEYS[kind])},
        "required": ["to"],
        "additionalProperties": False,
    }


def _rules(kind: Kind) -> dict[str, Any]:
    return {"type": "array", "items": {"$ref": f"#/$defs/{kind}"}}


SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "exeat policy, egress: v1",
    "type": "object",
    "required": ["egress", "project"],
    "additionalProperties": False,
    "properties": {
        "egress": {"const": "v1"},
        "project": {"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"},
        # YAML 1.1 readers make false of an unquoted `off`; the loader reads the word.
        "posture": {"enum": [*map(str, Posture), False], "default": str(Posture.ALLOWLIST)},
        "preset": {"enum": [*map(str, Preset)], "default": str(Preset.STANDARD)},
        "default": {"enum": [*map(str, Default)]},
        "expires": _INSTANT,
        "acknowledge": {"const": "unenforced"},
        "hold": _DURATION,
        "groups": {"type": "object", "additionalProperties": {"$ref": "#/$defs/scopes"}},
        "allow": _rules(Kind.ALLOW),
        "ask": _rules(Kind.ASK),
        "deny": _rules(Kind.DENY),
        "ceiling": _rules(Kind.CEILING),
        "budgets": {"type": "object", "additionalProperties": {"$ref": "#/$defs/budget"}},
        "control": {"type": "array", "items": _TEXT},
        "files": {
            "type": "object",
            "description": "Folders of the node that jobs may have: project:///FOLDER[:ro|rw|edit].",
            "properties": {
                name: {"type": "array", "items": {"type": "string", "pattern": f"^{SCHEME}/"}}
                for name in ("allow", "ask", "deny")
            },
            "additionalProperties": False,
        },
    },
    "$defs": {
        "scopes": {
            **_one_or_more(_TEXT),
            "description": "host, *.host (below), .host (it and below), *, address or network; [:PORTS]",
        },
        "when": {
            "type": "object",
            "properties": {
                "from": _INSTANT,
                "until": _INSTANT,
                "daily": {"type": "string", "pattern": "^[0-2][0-9]:[0-5][0-9]-[0-2][0-9]:[0-5][0-9]$"},
                "days": _one_or_more(_words(*DAYS)),
            },
            "additionalProperties": False,
        },
        "budget": {
            "type": "object",
            "properties": {
                **dict.fromkeys(COUNTERS, _NUMBER_OR_TEXT),
                "on_exceed": _words("deny", "ask"),
            },
            "minProperties": 1,
            "additionalProperties": False,
        },
        **{str(kind): _rule(kind) for kind in Kind},
    },
}
