"""The examples load and mean what the text says; the reason table is complete."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from exeat.appliance.public_suffixes import bundled_suffixes
from exeat.appliance.pytest_plugin import Egress
from exeat.policy.decide import compile_policy, decide
from exeat.policy.document import load_policy
from exeat.policy.model import Request, Subject
from exeat.policy.names import parse_host
from exeat.policy.reasons import TEXTS
from exeat.policy.rule_loader import RULE_KEYS
from exeat.policy.units import parse_time
from exeat.policy.usage import Overlay

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "policy.md").read_text(encoding="utf-8")
EXAMPLES = sorted((ROOT / "examples" / "policies").glob("*.yaml"))
FENCED = re.findall(r"```yaml\n(egress:.*?)```", PAGE, re.DOTALL)
NOON = parse_time("2026-01-05T12:00:00Z")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_load_without_warnings(path: Path) -> None:
    document = load_policy(path.read_text(encoding="utf-8"), file=path.name, suffixes=bundled_suffixes())
    assert document.project == path.stem
    assert not document.warnings


@pytest.mark.parametrize("text", FENCED)
def test_fenced_policies_load(text: str) -> None:
    assert not load_policy(text, file="docs", suffixes=bundled_suffixes()).warnings


def test_the_pytest_example_holds_for_the_first_policy() -> None:
    [example] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    space: dict[str, Any] = {}
    exec(example, space)  # noqa: S102 - our own page
    space["test_the_crawler_stays_inside"](
        Egress(load_policy(FENCED[0], file="docs", suffixes=bundled_suffixes()))
    )


def test_there_is_something_to_check() -> None:
    assert {path.stem for path in EXAMPLES} >= {"baseline", "ci-builder"}
    assert FENCED


@pytest.mark.parametrize(
    ("name", "host", "port", "node", "now", "reason"),
    [
        ("ci-builder", "npm.example.com", 443, "x", NOON, "rule.allow"),
        ("ci-builder", "deb.example.com", 80, "x", NOON, "rule.allow"),
        ("ci-builder", "deb.example.com", 443, "x", NOON, "posture.default_deny"),
        ("ci-builder", "10.20.0.7", 5432, "builder-1", NOON, "rule.allow"),
        ("ci-builder", "10.20.0.7", 5432, "builder-3", NOON, "ip_literal.denied"),
        ("ci-builder", "artifacts.example.org", 443, "x", NOON, "posture.default_deny"),
        ("ci-builder", "artifacts.example.org", 443, "x", parse_time("2026-01-05T01:00:00Z"), "rule.allow"),
        ("baseline", "dns.google", 443, "x", NOON, "rule.deny"),
        ("baseline", "a.example.org", 443, "x", NOON, "posture.ask"),
        ("baseline", "a.example.org", 22, "x", NOON, "ceiling.exceeded"),
        ("baseline", "github.com", 22, "x", NOON, "posture.ask"),
        ("baseline", "10.21.0.1", 443, "x", NOON, "rule.deny"),
        ("baseline", "10.20.0.1", 443, "x", NOON, "posture.ask_ip"),
        ("baseline", "10.20.9.9", 6379, "x", NOON, "meta.control_plane"),
    ],
)
def test_examples_mean_what_they_say(
    name: str, host: str, port: int, node: str, now: int, reason: str
) -> None:
    text = (ROOT / "examples" / "policies" / f"{name}.yaml").read_text(encoding="utf-8")
    policy = compile_policy(load_policy(text, file=name, suffixes=bundled_suffixes()))
    request = Request(Subject(name, "a1", node=node), parse_host(host), port)
    assert decide(policy, request, now, Overlay()).reason == reason


def test_every_reason_is_documented_as_it_is_said() -> None:
    table = dict(
        re.findall(r"^\| `([a-z0-9_.]+)` \| (.+?) \|$", PAGE.split("## Reason codes")[1], re.MULTILINE)
    )
    assert table == TEXTS


def test_every_rule_key_is_documented() -> None:
    for key in {key for keys in RULE_KEYS.values() for key in keys}:
        assert f"`{key}`" in PAGE
