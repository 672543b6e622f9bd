"""Whatever comes in, one kind of error comes out, and what is accepted is stable."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.policy_strategies import NoSuffixes

from exeat.policy.addresses import parse_address
from exeat.policy.document import Document, PolicyError, load_policy
from exeat.policy.errors import MalformedError, ScopeError
from exeat.policy.leases import Lease
from exeat.policy.model import Address
from exeat.policy.names import canonical_host, parse_authority, parse_host
from exeat.policy.scopes import parse_scope
from exeat.policy.snapshot import Snapshot, SnapshotError

EXAMPLE = (Path(__file__).parents[3] / "examples" / "policies" / "ci-builder.yaml").read_text(
    encoding="utf-8"
)
ALPHABET = st.sampled_from("aZ09.-_:[]%*/@ \t\n\0\u00df\uff11") | st.characters()
hostish = st.text(ALPHABET, max_size=20)


@given(hostish | st.binary(max_size=20))
def test_hosts(raw: str | bytes) -> None:
    with contextlib.suppress(MalformedError):
        host = parse_host(raw)
        assert canonical_host(host) == host
        if isinstance(host, str):
            assert parse_host(host.upper() + ".") == host
            assert host.isascii()
            assert host == host.lower()
        else:
            assert isinstance(host, Address)


@given(st.binary(max_size=24))
def test_authorities(raw: bytes) -> None:
    with contextlib.suppress(MalformedError):
        _, port = parse_authority(raw)
        assert 1 <= port <= 65535


@given(hostish)
def test_addresses(raw: str) -> None:
    with contextlib.suppress(MalformedError):
        parse_address(raw)


@given(hostish)
def test_scopes(raw: str) -> None:
    with contextlib.suppress(ScopeError):
        scope = parse_scope(raw)
        assert parse_scope(str(scope)) == scope


@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(st.integers(0, len(EXAMPLE)), st.integers(0, 3), st.text(ALPHABET, max_size=3)), max_size=3
    )
)
def test_damaged_policies(edits: list[tuple[int, int, str]]) -> None:
    text = EXAMPLE
    for at, cut, insert in edits:
        text = text[:at] + insert + text[at + cut :]
    refused: list[PolicyError] = []
    document = None
    try:
        document = load_policy(text, file="x", suffixes=NoSuffixes())
    except PolicyError as error:
        refused.append(error)
    for error in refused:
        assert "\n" not in str(error)
        assert min(error.line, error.column) >= 1
    if document is not None:
        assert Document.from_canonical_json(document.to_canonical_json()) == document


values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = ["egress", "project", "allow", "to", "ports", "id", "posture", "budgets", "default", "when", "groups"]
trees = st.dictionaries(st.sampled_from(KEYS), values, max_size=5)


@given(trees | values)
def test_json_documents(value: Any) -> None:
    with contextlib.suppress(PolicyError):
        Document.from_canonical_json(json.dumps(value))


@given(st.sampled_from(sorted(Lease(id="L", project="p", to=()).to_json())), values)
def test_leases(key: str, value: Any) -> None:
    body = Lease(id="L", project="p", to=(parse_scope("a.org"),)).to_json()
    with contextlib.suppress(ValueError):
        lease = Lease.from_json(body | {key: value})
        assert Lease.from_json(lease.to_json()) == lease


@given(
    st.dictionaries(
        st.sampled_from(["generation", "policies", "projects", "jobs", "leases", "control"]), values
    )
)
def test_snapshots(change: dict[str, Any]) -> None:
    body = Snapshot.message(generation=1, fresh_ms=1, documents=[], projects={})
    with contextlib.suppress(SnapshotError):
        Snapshot.load(body | change)
