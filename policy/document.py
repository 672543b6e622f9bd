"""The policy document `egress: v1`: strict loader, canonical JSON, digest.

People write YAML; everything else carries canonical JSON, which is a document of the same
language with groups expanded, ids filled in and no defaults left open. The digest names that.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from exeat.policy.addresses import format_address
from exeat.policy.errors import PolicyError
from exeat.policy.files import MAX_RULES, NO_FILES, FileRules, FileScope, parse_file_scope
from exeat.policy.model import Address
from exeat.policy.postures import KNOBS, Default, Knobs, Posture, Preset
from exeat.policy.rule_loader import (
    Context,
    PublicSuffixes,
    convert,
    load_budgets,
    load_endpoint,
    load_groups,
    load_rule,
    one_of,
)
from exeat.policy.rules import Budget, Kind, Rule
from exeat.policy.tree import Node, parse_json, parse_yaml
from exeat.policy.units import format_time, parse_duration, parse_time

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Document", "Endpoint", "PolicyError", "PublicSuffixes", "Warn", "format_endpoint", "load_policy"]

DEFAULT_HOLD_MS = 2500
MAX_HOLD_MS = 55_000
_PROJECT = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_KEYS = frozenset(
    [
        "egress",
        "project",
        "posture",
        "preset",
        "default",
        "expires",
        "acknowledge",
        "hold",
        "groups",
        "allow",
        "ask",
        "deny",
        "ceiling",
        "files",
        "budgets",
        "control",
    ]
)

Endpoint = tuple[str | Address, int]


@dataclass(frozen=True, slots=True)
class Warn:
    """Something that loads but hardly means what it says."""

    code: str
    message: str
    line: int
    column: int


@dataclass(frozen=True)
class Document:
    """One policy. `ceiling` None means there is none; an empty one denies everything."""

    project: str
    posture: Posture = Posture.ALLOWLIST
    preset: Preset = Preset.STANDARD
    default: Default = Default.ASK
    expires_ms: int | None = None
    hold_ms: int = DEFAULT_HOLD_MS
    rules: tuple[Rule, ...] = ()  # allow, ask and deny
    ceiling: tuple[Rule, ...] | None = None
    budgets: Mapping[str, Budget] = field(default_factory=dict)
    control: tuple[Endpoint, ...] = ()
    files: FileRules = NO_FILES
    own_digest: str = field(default="", compare=False)  # set where a baseline was joined (`baseline.under`)
    warnings: tuple[Warn, ...] = field(default=(), compare=False)

    @property
    def knobs(self) -> Knobs:
        return KNOBS[self.preset]

    def of_kind(self, kind: Kind) -> Iterator[Rule]:
        return (rule for rule in self.rules if rule.kind is kind)

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {
            "egress": "v1",
            "project": self.project,
            "posture": str(self.posture),
            "preset": str(self.preset),
            "hold": f"{self.hold_ms}ms",
        }
        if self.posture is Posture.CUSTOM:
            out["default"] = str(self.default)
        if self.posture is Posture.OFF:
            out["acknowledge"] = "unenforced"
        if self.expires_ms is not None:
            out["expires"] = format_time(self.expires_ms)
        for kind in (Kind.ALLOW, Kind.ASK, Kind.DENY):
            if rules := [rule.to_json() for rule in self.of_kind(kind)]:
                out[str(kind)] = rules
        if self.ceiling is not None:
            out["ceiling"] = [rule.to_json() for rule in self.ceiling]
        if self.budgets:
            out["budgets"] = {name: budget.to_json() for name, budget in self.budgets.items()}
        if self.control:
            out["control"] = sorted(format_endpoint(endpoint) for endpoint in self.control)
        if files := self.files.to_json():
            out["files"] = files
        return out

    @cached_property
    def _canonical(self) -> str:
        # Rule by rule: one call for all would hold the interpreter, and so a gateway, for long.
        out = dataclasses.replace(self, rules=(), ceiling=None).to_json()
        lists = {str(kind): self.of_kind(kind) for kind in (Kind.ALLOW, Kind.ASK, Kind.DENY)}
        parts = {key: _dumps(value) for key, value in out.items()}
        for key, rules in lists.items():
            if texts := [_dumps(rule.to_json()) for rule in rules]:
                parts[key] = f"[{','.join(texts)}]"
        if self.ceiling is not None:
            parts["ceiling"] = f"[{','.join(_dumps(rule.to_json()) for rule in self.ceiling)}]"
        return "{" + ",".join(f'"{key}":{parts[key]}' for key in sorted(parts)) + "}"

    def to_canonical_json(self) -> str:
        return self._canonical

    @cached_property
    def digest(self) -> str:
        """SHA-256 in hex of the canonical JSON: of what the project's file says, without any baseline."""
        return self.own_digest or hashlib.sha256(self._canonical.encode()).hexdigest()

    @classmethod
    def from_canonical_json(cls, text: str, *, file: str = "policy.json") -> Document:
        """The document again. Raises PolicyError; `doc.canonical` if the text is not canonical."""
        document = _load(parse_json(text, file), None)
        if document.to_canonical_json() != text:
            raise PolicyError("doc.canonical", "the JSON is not in canonical form", file, 1, 1)
        return document


def _dumps(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def format_endpoint(endpoint: Endpoint) -> str:
    host, port = endpoint
    if isinstance(host, Address):
        host = f"[{format_address(host)}]" if host.family == 6 else format_address(host)
    return f"{host}:{port}"


def load_policy(text: str, *, file: str, suffixes: PublicSuffixes) -> Document:
    """A policy file. Raises PolicyError, whose text is one line `FILE:LINE:COL: message [code]`."""
    return _load(parse_yaml(text, file), suffixes)


def _load(root: Node, suffixes: PublicSuffixes | None) -> Document:
    _check_version(root, root.mapping())
    keys = root.mapping(_KEYS)
    posture, default = _posture(root, keys)
    preset = (
        Preset(one_of(keys["preset"], tuple(Preset), "preset.unknown"))
        if "preset" in keys
        else Preset.STANDARD
    )
    budgets = load_budgets(keys["budgets"]) if "budgets" in keys else {}
    groups = load_groups(keys["groups"]) if "groups" in keys else {}
    context = Context(groups, budgets, KNOBS[preset], suffixes)
    rules, warnings = _rules(keys, (Kind.ALLOW, Kind.ASK, Kind.DENY), context)
    ceiling, _ = _rules(keys, (Kind.CEILING,), context)
    return Document(
        project=_project(keys["project"]),
        posture=posture,
        preset=preset,
        default=default,
        expires_ms=convert(keys["expires"], parse_time) if "expires" in keys else None,
        hold_ms=_hold(keys["hold"]) if "hold" in keys else DEFAULT_HOLD_MS,
        rules=rules,
        ceiling=ceiling if "ceiling" in keys else None,
        budgets=budgets,
        control=_control(keys),
        files=_files(keys["files"]) if "files" in keys else NO_FILES,
        warnings=warnings,
    )


def _check_version(root: Node, keys: Mapping[str, Node]) -> None:
    if "egress" not in keys:
        raise root.error("doc.version", "a policy begins with `egress: v1`")
    if keys["egress"].text != "v1":
        raise keys["egress"].error("doc.version", "this version of exeat reads `egress: v1` only")
    if "project" not in keys:
        raise root.error("doc.missing_key", "a policy needs `project`")


def _project(node: Node) -> str:
    text = node.scalar()
    if not _PROJECT.fullmatch(text):
        raise node.error("doc.project", f"`{text}` is not a project name: a-z, 0-9 and `-`, at most 63")
    return text


def _posture(root: Node, keys: Mapping[str, Node]) -> tuple[Posture, Default]:
    node = keys.get("posture")
    posture = Posture(one_of(node, tuple(Posture), "posture.unknown")) if node else Posture.ALLOWLIST
    acknowledged = "acknowledge" in keys and keys["acknowledge"].text == "unenforced"
    if posture is Posture.OFF and not (acknowledged and "expires" in keys):
        message = "posture off lets everything out: it needs `acknowledge: unenforced` and `expires:`"
        raise (node or root).error("posture.off_unacknowledged", message)
    if posture is not Posture.OFF and "acknowledge" in keys:
        raise keys["acknowledge"].error("posture.acknowledge", "`acknowledge` belongs to posture off only")
    if "default" not in keys:
        return posture, Default.ASK
    if posture is not Posture.CUSTOM:
        raise keys["default"].error("posture.default", "`default` belongs to posture custom only")
    return posture, Default(one_of(keys["default"], tuple(Default), "posture.default"))


def _hold(node: Node) -> int:
    hold_ms = convert(node, parse_duration)
    if hold_ms > MAX_HOLD_MS:
        raise node.error("doc.hold", "`hold` is at most 55s: clients give up after a minute")
    return hold_ms


def _control(keys: Mapping[str, Node]) -> tuple[Endpoint, ...]:
    if "control" not in keys:
        return ()
    endpoints = {load_endpoint(item) for item in keys["control"].sequence()}
    return tuple(sorted(endpoints, key=format_endpoint))


def _files(node: Node) -> FileRules:
    keys = node.mapping(frozenset({"allow", "ask", "deny"}))
    return FileRules(**{name: _file_scopes(item) for name, item in keys.items()})


def _file_scopes(node: Node) -> tuple[FileScope, ...]:
    items = node.sequence()
    if len(items) > MAX_RULES:
        raise node.error("doc.files", f"at most {MAX_RULES} file scopes")
    return tuple(sorted({convert(item, parse_file_scope) for item in items}))


def _rules(
    keys: Mapping[str, Node], kinds: tuple[Kind, ...], context: Context
) -> tuple[tuple[Rule, ...], tuple[Warn, ...]]:
    rules: dict[str, Rule] = {}
    warnings: list[Warn] = []
    for kind in kinds:
        for node in keys[str(kind)].sequence() if str(kind) in keys else []:
            rule = load_rule(node, kind, len(rules), context)
            explicit = "id" in node.mapping()
            if rule.id in rules and (explicit or rules[rule.id].to_json() != rule.to_json()):
                raise node.error("doc.duplicate_id", f"another rule is already called `{rule.id}`")
            warnings += _warn(node, rule, duplicate=rule.id in rules)
            rules.setdefault(rule.id, rule)
    return tuple(rules.values()), tuple(warnings)


def _warn(node: Node, rule: Rule, *, duplicate: bool) -> Iterator[Warn]:
    if duplicate:
        yield Warn("rule.duplicate", "the same rule stands above", node.line, node.column)
    if rule.never_matches:
        yield Warn("rule.never_matches", f"rule `{rule.id}` can never match", node.line, node.column)
