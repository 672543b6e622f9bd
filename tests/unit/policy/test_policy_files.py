"""Folders of the node: what a scope covers, what a policy and leases say of it, and what widens."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exeat.appliance.public_suffixes import bundled_suffixes
from exeat.policy import leases
from exeat.policy.admin import Actor
from exeat.policy.baseline import under
from exeat.policy.document import Document, PolicyError, load_policy
from exeat.policy.errors import ScopeError
from exeat.policy.files import Access, FileRules, FileScope, decide_file, files_widened, parse_file_scope
from exeat.policy.leases import Lease, Narrowing
from exeat.policy.model import Subject, Verdict
from exeat.policy.postures import Default, Posture
from exeat.policy.scopes import parse_scope

NOW = 1_767_614_400_000
WHO = Subject("site", "run", "site-1")
PATHS = ("/srv", "/srv/a", "/srv/a/b", "/srv/ab", "/home")
SCOPES = tuple(FileScope(path, access) for path, access in itertools.product(PATHS, Access))
RANK = {Verdict.DENY: 0, Verdict.ASK: 1, Verdict.ALLOW: 2}


def rules(*, allow: str = "", ask: str = "", deny: str = "") -> FileRules:
    return FileRules(*(tuple(map(parse_file_scope, text.split())) for text in (allow, ask, deny)))


def verdict(files: FileRules, scope: str, *held: Lease, **changes: object) -> tuple[str, str]:
    document = replace(Document("site", files=files), **changes)  # type: ignore[arg-type]
    found = decide_file(document, held, WHO, parse_file_scope(scope), NOW)
    return str(found.verdict), found.reason


def lease(scope: str, **changes: object) -> Lease:
    base = Lease(
        id="site/run/1", project="site", to=(), file=scope, exp_ms=NOW + 1, agents=frozenset({"run"})
    )
    return replace(base, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("project:///srv", "project:///srv:ro"),
        ("project:///srv/a b:rw", "project:///srv/a b:rw"),
        ("project:///srv/x:y", "project:///srv/x:y:ro"),
        ("project:///srv/x:ro:edit", "project:///srv/x:ro:edit"),
    ],
)
def test_scopes_are_read_as_they_are_written(text: str, canonical: str) -> None:
    assert str(parse_file_scope(text)) == canonical
    assert str(parse_file_scope(canonical)) == canonical


@pytest.mark.parametrize(
    "text",
    [
        *(
            "/srv",
            "project://srv",
            "project:////srv",
            "project:///srv/",
            "project:///srv/../etc",
            "file:///srv",
        ),
        *(
            "project:///srv/./a",
            "project:///a\nb",
            "project:///a\0b",
            "project:///a\u202eb",
            "project:///a\udcff",
        ),
        *("project:///" + "a" * 4096, "project:///" + "é" * 2100),
    ],
)
def test_what_is_no_scope(text: str) -> None:
    with pytest.raises(ScopeError) as caught:
        parse_file_scope(text)
    assert caught.value.code == "file.scope"


@pytest.mark.parametrize(
    ("scope", "answer"),
    [
        ("project:///srv/a/x:edit", ("allow", "rule.allow")),
        ("project:///srv/a/x:rw", ("ask", "file.ask")),
        ("project:///srv/ab", ("ask", "file.ask")),
        ("project:///srv/a/prod", ("ask", "rule.ask")),
        ("project:///srv/a/key", ("deny", "rule.deny")),
        ("project:///srv/a/key/x", ("deny", "rule.deny")),
        ("project:///srv/a", ("deny", "rule.deny")),  # what is denied is in it
        ("project:///srv", ("deny", "rule.deny")),
    ],
)
def test_what_a_policy_says(scope: str, answer: tuple[str, str]) -> None:
    files = rules(allow="project:///srv/a:edit", ask="project:///srv/a/prod", deny="project:///srv/a/key")
    assert verdict(files, scope) == answer


def test_a_denial_is_about_its_access_and_more() -> None:
    files = rules(allow="project:///srv:rw", deny="project:///srv/a:edit")
    answers = [verdict(files, f"project:///srv/a/b:{access}")[0] for access in Access]
    assert answers == ["allow", "deny", "deny"]


def test_a_lease_goes_before_ask_and_after_deny() -> None:
    held = lease("project:///srv/a:edit")
    assert verdict(rules(ask="project:///srv"), "project:///srv/a/b", held) == ("allow", "lease.active")
    assert verdict(rules(), "project:///srv/a:rw", held) == ("ask", "file.ask")
    assert verdict(rules(), "project:///srv", held) == ("ask", "file.ask")
    assert verdict(rules(deny="project:///srv/a"), "project:///srv/a/b", held) == ("deny", "rule.deny")
    for other in ({"project": "x"}, {"agents": frozenset({"x"})}, {"exp_ms": NOW}, {"job": "x"}):
        assert verdict(rules(), "project:///srv/a", replace(held, **other))[0] == "ask"  # type: ignore[arg-type]
    assert not held.serves(WHO, "tcp", NOW), "it opens no network"


def test_where_no_rule_speaks() -> None:
    for posture in (Posture.PUBLIC, Posture.OFF, Posture.ALLOWLIST):
        assert verdict(rules(), "project:///srv", posture=posture) == ("ask", "file.ask")
    answer = verdict(rules(), "project:///srv", posture=Posture.CUSTOM, default=Default.DENY)
    assert answer == ("deny", "file.default_deny")
    allowed = rules(allow="project:///srv")
    assert verdict(allowed, "project:///srv", expires_ms=NOW) == ("deny", "policy.expired")


def test_the_document_keeps_them_and_the_baseline_denies() -> None:
    text = "egress: v1\nproject: site\nfiles:\n  allow: ['project:///srv/b:rw', 'project:///srv/a']\n"
    document = load_policy(text, file="p", suffixes=bundled_suffixes())
    assert document.files == rules(allow="project:///srv/a:ro project:///srv/b:rw")
    assert Document.from_canonical_json(document.to_canonical_json()) == document
    assert "files" not in Document("site").to_json()
    both = under(document, Document("baseline", files=rules(allow="project:///x", deny="project:///srv/b")))
    assert both.files == FileRules(document.files.allow, (), rules(deny="project:///srv/b").deny)
    for wrong in ("files: {grant: []}", "files: {allow: ['/srv']}", "files: []"):
        with pytest.raises(PolicyError):
            load_policy(f"egress: v1\nproject: site\n{wrong}\n", file="p", suffixes=bundled_suffixes())


def test_a_lease_of_a_folder_is_asked_for_approved_and_never_made_one_of_a_network() -> None:
    draft = replace(lease("project:///srv/a:rw"), requester="alice", ttl_ms=60_000)
    asked = leases.request(draft, NOW)
    assert asked.ok
    bob = Actor("bob", "approver")
    narrowed = leases.approve(asked.lease, bob, NOW, Narrowing(to=(parse_scope("example.org"),)))
    assert (narrowed.ok, narrowed.reason) == (False, "review.widened")
    active = leases.approve(asked.lease, bob, NOW).lease
    assert verdict(rules(), "project:///srv/a:rw", active)[0] == "allow"
    assert Lease.from_json(json.loads(json.dumps(active.to_json()))) == active


_lists = st.lists(st.sampled_from(SCOPES), max_size=3).map(lambda found: tuple(sorted(set(found))))
_rules = st.builds(FileRules, _lists, _lists, _lists)


@given(_rules, _rules)
def test_whatever_is_given_anew_is_said(a: FileRules, b: FileRules) -> None:
    before, after = Document("site", files=a), Document("site", files=b)
    given_anew = [
        scope
        for scope in SCOPES
        if RANK[decide_file(after, (), WHO, scope, NOW).verdict]
        > RANK[decide_file(before, (), WHO, scope, NOW).verdict]
    ]
    assert not given_anew or files_widened(before, after)
    assert not files_widened(before, before)


def test_what_widens_is_named() -> None:
    was = Document("site", files=rules(allow="project:///srv/a", deny="project:///srv/key"))
    for now, said in (
        (rules(allow="project:///srv/a:rw", deny="project:///srv/key"), "project:///srv/a:rw"),
        (rules(allow="project:///srv/a"), "project:///srv/key"),
        (rules(allow="project:///srv/a", deny="project:///srv/key:rw"), "project:///srv/key"),
        (rules(deny="project:///srv"), ""),
    ):
        found = files_widened(was, Document("site", files=now))
        assert found.startswith(said)
        assert bool(found) == bool(said)
