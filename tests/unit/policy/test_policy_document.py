"""The strict loader: what loads, what does not and where, and what the canonical form keeps."""

from __future__ import annotations

import json

import pytest

from exeat.appliance.public_suffixes import bundled_suffixes
from exeat.policy.document import Document, PolicyError, load_policy
from exeat.policy.rules import Kind

HEAD = "egress: v1\nproject: p\n"


def load(text: str) -> Document:
    return load_policy(text, file="x.yaml", suffixes=bundled_suffixes())


ALLOW = HEAD + "allow: [{{to: {}}}]"
BAD = [
    ("", "doc.empty", 1, 1),
    ("# nothing\n", "doc.empty", 1, 1),
    ("just words", "doc.empty", 1, 1),
    ("project: p", "doc.version", 1, 1),
    ("egress: v1", "doc.missing_key", 1, 1),
    ("egress: v2\nproject: p\nnew_key: 1", "doc.version", 1, 9),
    (HEAD + "---\n" + HEAD, "doc.yaml", 4, 1),
    ("egress: v1\nproject: Bad_Name", "doc.project", 2, 10),
    ("egress: v1\nproject:", "doc.type", 2, 9),
    (HEAD + "allow: {to: a.org}", "doc.type", 3, 8),
    (HEAD + "allow: [a.org]", "doc.type", 3, 9),
    (HEAD + "allow: [{id: x}]", "doc.missing_key", 3, 9),
    (HEAD + "allow:\n  - {to: a.org, to: b.org}", "doc.duplicate_key", 4, 17),
    (HEAD + "? [a]\n: b", "doc.type", 3, 3),
    (HEAD + "<<: {posture: off}", "doc.unknown_key", 3, 1),
    (HEAD + "allow: !x []", "doc.tag", 3, 8),
    (HEAD + "posture: nonsense", "posture.unknown", 3, 10),
    (HEAD + "posture: Public", "posture.unknown", 3, 10),
    (HEAD + "preset: lax", "preset.unknown", 3, 9),
    (HEAD + "posture: off\nacknowledge: unenforced", "posture.off_unacknowledged", 3, 10),
    (HEAD + "posture: off\nexpires: 2030-01-01T00:00:00Z", "posture.off_unacknowledged", 3, 10),
    (
        HEAD + "posture: off\nacknowledge: yes\nexpires: 2030-01-01T00:00:00Z",
        "posture.off_unacknowledged",
        3,
        10,
    ),
    (HEAD + "default: ask", "posture.default", 3, 10),
    (HEAD + "posture: custom\ndefault: allow", "posture.default", 4, 10),
    (HEAD + "expires: 2030-01-01", "unit.time", 3, 10),
    (HEAD + "hold: 56s", "doc.hold", 3, 7),
    (ALLOW.format("a.org, ports: 0"), "scope.port", 3, 28),
    (ALLOW.format("a.org, ports: 65979"), "scope.port", 3, 28),
    (ALLOW.format("a.org, ports: [443, 65536]"), "scope.port", 3, 28),
    (ALLOW.format("a.org, ports: []"), "scope.port", 3, 28),
    (ALLOW.format("a.org, ports: http"), "scope.port", 3, 28),
    (ALLOW.format("'a.org:0'"), "scope.port", 3, 14),
    (ALLOW.format("'a.org:'"), "scope.port", 3, 14),
    (ALLOW.format("'a.org:65536'"), "scope.port", 3, 14),
    (ALLOW.format("a.org, proto: sctp"), "rule.proto", 3, 28),
    (ALLOW.format('"a\\0b.org"'), "scope.syntax", 3, 14),
    (ALLOW.format("user@a.org"), "scope.syntax", 3, 14),
    (ALLOW.format("'[a.org]'"), "scope.syntax", 3, 14),
    (ALLOW.format("a.org/path"), "scope.syntax", 3, 14),
    (ALLOW.format("'2606:4700::1'"), "scope.syntax", 3, 14),
    (ALLOW.format("127.1"), "scope.syntax", 3, 14),
    (ALLOW.format("'a b.org'"), "scope.syntax", 3, 14),
    (ALLOW.format("''"), "doc.type", 3, 14),
    (ALLOW.format("'.'"), "scope.syntax", 3, 14),
    (ALLOW.format("'*.'"), "scope.syntax", 3, 14),
    (ALLOW.format("..a.org"), "scope.syntax", 3, 14),
    (ALLOW.format("'**.a.org'"), "scope.wildcard", 3, 14),
    (ALLOW.format("'*.*.a.org'"), "scope.wildcard", 3, 14),
    (ALLOW.format("'a.*'"), "scope.wildcard", 3, 14),
    (ALLOW.format("'*'"), "scope.too_broad", 3, 14),
    (ALLOW.format("'*.com'"), "scope.too_broad", 3, 14),
    (ALLOW.format(".github.io"), "scope.too_broad", 3, 14),
    (ALLOW.format(".foo.ck"), "scope.too_broad", 3, 14),
    (ALLOW.format(".internal"), "scope.too_broad", 3, 14),
    (ALLOW.format("10.0.0.0/33"), "scope.cidr", 3, 14),
    (ALLOW.format("10.0.0.0/08"), "scope.cidr", 3, 14),
    (ALLOW.format("'::/0'"), "scope.cidr", 3, 14),
    (ALLOW.format("'::ffff:10.0.0.0/104'"), "scope.cidr", 3, 14),
    (ALLOW.format("'.10.0.0.1'"), "scope.syntax", 3, 14),
    (ALLOW.format("\uff11\uff12\uff17.0.0.1"), "scope.idna", 3, 14),
    (ALLOW.format("a\u200d.org"), "scope.idna", 3, 14),
    (ALLOW.format("xn--zzzzzz.org"), "scope.idna", 3, 14),
    (ALLOW.format("$nobody"), "doc.unknown_group", 3, 14),
    (ALLOW.format("a.org, budget: none"), "doc.unknown_budget", 3, 29),
    (ALLOW.format("a.org, private: yes"), "doc.type", 3, 30),
    (ALLOW.format("a.org, ttl: 5m"), "doc.unknown_key", 3, 21),
    (ALLOW.format("a.org, agent: []"), "doc.type", 3, 28),
    (ALLOW.format('a.org, why: "two\\nlines"'), "doc.type", 3, 26),
    (ALLOW.format("a.org, when: {daily: 9-17}"), "rule.when", 3, 35),
    (ALLOW.format("a.org, when: {daily: '09:00-09:00'}"), "rule.when", 3, 35),
    (ALLOW.format("a.org, when: {daily: '09:00-24:01'}"), "rule.when", 3, 35),
    (ALLOW.format("a.org, when: {days: [monday]}"), "rule.when", 3, 35),
    (
        ALLOW.format("a.org, when: {from: '2026-01-05T12:00:00Z', until: '2026-01-05T12:00:00Z'}"),
        "rule.when",
        3,
        65,
    ),
    (HEAD + "deny: [{to: a.org, private: true}]", "doc.unknown_key", 3, 20),
    (HEAD + "ask: [{to: a.org, ttl: 9h}]", "lease.max_ttl", 3, 24),
    (HEAD + "ask: [{to: a.org, max_ttl: 9h}]", "lease.max_ttl", 3, 28),
    (HEAD + "ask: [{to: a.org, ttl: 2h, max_ttl: 1h}]", "lease.max_ttl", 3, 24),
    (HEAD + "ask: [{to: a.org, approvals: two}]", "rule.approvals", 3, 30),
    (HEAD + "ask: [{to: a.org, approvals: 10}]", "rule.approvals", 3, 30),
    (HEAD + "budgets: {x: {bytes_up: 10Mb/1d}}", "unit.size", 3, 25),
    (HEAD + "budgets: {x: {bytes_up: 10MB}}", "unit.rate", 3, 25),
    (HEAD + "budgets: {x: {on_exceed: ask}}", "doc.missing_key", 3, 14),
    (HEAD + "budgets: {x: {bytes: 1/1d, on_exceed: warn}}", "budget.on_exceed", 3, 39),
    (HEAD + "control: [a.org]", "scope.syntax", 3, 11),
    (HEAD + "control: ['.a.org:443']", "scope.syntax", 3, 11),
    (HEAD + "control: ['10.0.0.0/8:443']", "scope.syntax", 3, 11),
    (HEAD + "control: ['a.org:80-90']", "scope.syntax", 3, 11),
    (HEAD + "allow: [{id: x, to: a.org}]\ndeny: [{id: x, to: b.org}]", "doc.duplicate_id", 4, 8),
    (HEAD + "allow: " + "[" * 50 + "]" * 50, "doc.type", 3, None),
    (HEAD + "allow: [", "doc.yaml", 3, None),
    (HEAD + "\tallow: []", "doc.yaml", 3, None),
    (HEAD + "why: \x07", "doc.yaml", 1, None),
]


@pytest.mark.parametrize(("text", "code", "line", "column"), BAD)
def test_what_does_not_load(text: str, code: str, line: int, column: int | None) -> None:
    with pytest.raises(PolicyError) as caught:
        load(text)
    error = caught.value
    assert (error.code, error.line) == (code, line), str(error)
    assert column is None or error.column == column, str(error)
    assert str(error) == f"x.yaml:{error.line}:{error.column}: {error.message} [{code}]"
    assert "\n" not in str(error)


GOOD = [
    "deny: [{to: [.ngrok.io, .github.io, '*', .zip]}]",
    "allow: [{to: .github.io, broad: true}]",
    "allow: [{to: intranet}]",
    "allow: [{to: '*.foo.github.io'}]",
    "allow: [{to: '[2606:4700::1]:443'}, {to: '[::ffff:1.2.3.4]'}, {to: '2606:4700::/32:443'}]",
    "allow: [{to: '10.0.0.0/8:443'}, {to: 10.0.0.1}, {to: 0.0.0.0/0}]",
    "allow: [{to: a.org, when: {daily: '00:00-24:00'}}]",
    "allow: [{to: a.org, proto: [udp, tcp]}]",
    "allow: [{to: a.org, proto: any, ports: any}]",
    "posture: off\nacknowledge: unenforced\nexpires: 2030-01-01T00:00:00Z",
    "posture: 'off'\nacknowledge: unenforced\nexpires: 2030-01-01T00:00:00Z",
    "posture: custom\ndefault: deny\nhold: 55s",
    "preset: strict\nask: [{to: a.org, ttl: 1h, max_ttl: 1h, approvals: 2}]",
    "ceiling: []",
    "budgets: {default: {bytes_up: 1GiB/1d, connections: 600/m, on_exceed: deny}, x: {usd: 0.5/1d}}",
    "groups: {g: [a.org, .b.org]}\nallow: [{to: $g, except: [$g]}]",
    "control: ['a.org:443', '10.0.0.1:1', '[::2]:2']",
    "allow: [{to: BÜCHER.example.org}, {to: A.org.}]",
]


@pytest.mark.parametrize("body", GOOD)
def test_what_loads_survives_the_canonical_form(body: str) -> None:
    document = load(HEAD + body)
    text = document.to_canonical_json()
    assert Document.from_canonical_json(text) == document
    assert load(text).digest == document.digest  # canonical JSON is itself a policy


def test_ids_come_from_the_content() -> None:
    one = load(HEAD + "allow: [{to: [b.org, a.org]}, {to: c.org, ports: 80}]")
    two = load(HEAD + "allow: [{ports: 80, to: c.org}, {to: [a.org, b.org, a.org], ports: 443, proto: tcp}]")
    assert {rule.id for rule in one.rules} == {rule.id for rule in two.rules}
    assert all(rule.id.startswith("allow-") for rule in one.rules)


def test_defaults_are_narrow_for_grants_and_wide_for_refusals() -> None:
    document = load(HEAD + "allow: [{to: a.org}]\nask: [{to: b.org}]\ndeny: [{to: c.org}]")
    ports = {rule.kind: (rule.ports, rule.protocols) for rule in document.rules}
    assert ports[Kind.ALLOW] == ports[Kind.ASK] == (((443, 443),), ("tcp",))
    assert ports[Kind.DENY] == (((1, 65535),), ("tcp", "udp"))


def test_warnings() -> None:
    def codes(body: str) -> list[str]:
        return [warning.code for warning in load(HEAD + body).warnings]

    assert codes("allow: [{to: a.org, except: .a.org}]") == ["rule.never_matches"]
    assert codes("allow: [{to: a.org, except: 'a.org:22'}]") == []
    assert codes("allow: [{to: .a.org, except: '*.a.org'}]") == []
    assert codes("allow: [{to: a.org}, {to: a.org}]") == ["rule.duplicate"]
    assert codes("allow: [{to: a.org}]\nask: [{to: a.org}]") == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"egress":"v1","egress":"v1","project":"p"}',
        '{"egress":"v1","project":1.5}',
        "[" * 10_000,
    ],
)
def test_json_that_is_not_a_policy(text: str) -> None:
    with pytest.raises(PolicyError):
        Document.from_canonical_json(text)


def test_json_that_is_not_canonical() -> None:
    document = load(HEAD + "allow: [{to: a.org}]")
    loose = json.dumps(document.to_json(), indent=1)
    with pytest.raises(PolicyError) as caught:
        Document.from_canonical_json(loose)
    assert caught.value.code == "doc.canonical"
