"""Warnings for policies that load but hardly mean what they say."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.policy_strategies import NoSuffixes

from exeat.appliance.public_suffixes import bundled_suffixes
from exeat.policy.document import load_policy
from exeat.policy.lint import lint

EXAMPLES = sorted((Path(__file__).parents[3] / "examples/policies").glob("*.yaml"))


def codes(body: str) -> list[str]:
    return [
        warning.code
        for warning in lint(load_policy(f"egress: v1\nproject: p\n{body}", file="x", suffixes=NoSuffixes()))
    ]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_draw_no_warning(path: Path) -> None:
    assert not lint(load_policy(path.read_text(encoding="utf-8"), file="x", suffixes=bundled_suffixes()))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("", ["policy.empty"]),
        ("posture: custom", []),
        ("posture: custom\ndefault: deny\ndeny: [{to: a.org}]", ["policy.denies_all"]),
        ("allow: [{to: a.org, except: [.org]}]", ["policy.denies_all"]),
        ("ceiling: []\nallow: [{to: a.org}]", ["policy.denies_all"]),
        ("ceiling: [{to: .b.org}]\nallow: [{to: a.org}]", ["policy.denies_all"]),
        ("ceiling: [{to: .a.org}]\nallow: [{to: a.org}]", []),
        ("posture: public", ["policy.no_budget"]),
        ("posture: public\nbudgets: {default: {bytes_up: 1GB/1d}}", []),
        ("allow: [{to: '*', broad: true}]", ["rule.wide"]),
        ("allow: [{to: 0.0.0.0/0}]", ["rule.wide"]),
        ("allow: [{to: 10.0.0.0/16}]", []),
        ("allow: [{to: .a.org, ports: any}]", ["rule.wide"]),
        ("allow: [{to: .a.org}, {to: b.a.org}]", ["rule.shadowed"]),
        ("allow: [{to: .a.org}, {to: b.a.org, ports: 22}]", []),
        ("allow: [{to: .a.org}, {to: b.a.org, private: true}]", []),
        ("allow: [{to: .a.org}, {to: b.a.org, raw: true}, {to: c.a.org, ech: true}]", []),
        ("allow: [{to: .a.org, agent: x}, {to: b.a.org}]", []),
        ("allow: [{to: .a.org}, {to: b.a.org, agent: x}]", ["rule.shadowed"]),
        ("allow: [{to: b.a.org}]\ndeny: [{to: .a.org}]", ["rule.shadowed"]),
        ("allow: [{to: .a.org}]\ndeny: [{to: b.a.org}]", []),
        ("allow: [{to: b.a.org}]\nask: [{to: .a.org}]", ["rule.shadowed"]),
        ("ask: [{to: b.a.org}]\nallow: [{to: .a.org}]", []),
        ("allow: [{id: x, to: a.org}, {id: y, to: a.org}]", ["rule.shadowed"]),
        ("allow: [{to: 10.1.0.0/16}, {to: 10.1.2.3}]", ["rule.shadowed"]),
        ("allow: [{to: b.a.org}]\ndeny: [{to: .a.org, except: [b.a.org]}]", []),
        ("allow: [{to: .a.org, when: {daily: '01:00-02:00'}}, {to: a.org}]", []),
    ],
)
def test_warnings(body: str, expected: list[str]) -> None:
    assert codes(body) == expected


def test_off_says_so() -> None:
    body = "posture: 'off'\nacknowledge: unenforced\nexpires: 2030-01-01T00:00:00Z"
    assert codes(body) == ["policy.unenforced", "policy.no_budget"]
