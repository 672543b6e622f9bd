"""Containment of scopes against the targets themselves, and the text form."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exeat.policy.addresses import parse_address
from exeat.policy.scopes import Scope, merge_ports, parse_ports, parse_scope, port_in, ports_cover, ports_text

if TYPE_CHECKING:
    from exeat.policy.model import Address

LABELS = ("a", "b", "org")
NAMES = [".".join(labels) for n in (1, 2, 3, 4) for labels in itertools.product(LABELS, repeat=n)]
TARGETS: list[str | Address] = [
    *NAMES,
    *map(parse_address, ("10.0.0.0", "10.0.0.1", "10.1.0.0", "11.0.0.0", "fd00::1")),
]
NETS = ["10.0.0.0/8", "10.0.0.0/16", "10.0.0.0/31", "10.0.0.1", "0.0.0.0/0", "fd00::/8", "[fd00::1]"]
TEXTS = ["*", *NETS, *[prefix + name for name in NAMES[:39] for prefix in ("", ".", "*.")]]
scopes = st.sampled_from(TEXTS).map(parse_scope)


@given(scopes, scopes)
def test_what_is_covered_is_reached(outer: Scope, inner: Scope) -> None:
    covered = all(outer.reaches(t) for t in TARGETS if inner.reaches(t))
    if outer.covers(inner):
        assert covered
    assert outer.covers(outer)


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [
        ("a.org", ".b.a.org", False),
        ("a.org", "*.a.org", False),
        ("a.org", ".a.org", False),
        ("a.org", "a.org", True),
        (".a.org", "*.a.org", True),
        ("*.a.org", ".a.org", False),
        ("*.a.org", ".b.a.org", True),
        ("*.a.org", "a.org", False),
        (".a.org", ".ba.org", False),
        (".a.org", "ba.org", False),
        ("*", ".a.org", True),
        (".a.org", "*", False),
        ("*", "10.0.0.1", False),
        ("10.0.0.0/8", "10.1.0.0/16", True),
        ("10.1.0.0/16", "10.0.0.0/8", False),
        ("0.0.0.0/0", "fd00::/8", False),
    ],
)
def test_containment(outer: str, inner: str, expected: bool) -> None:
    assert parse_scope(outer).covers(parse_scope(inner)) is expected


@given(st.sampled_from(TEXTS), st.sampled_from(["", ":443", ":1-9", ":any"]))
def test_text_round_trip(text: str, ports: str) -> None:
    scope = parse_scope(text + ports)
    assert parse_scope(str(scope)) == scope


ranges = st.lists(
    st.tuples(st.integers(1, 65535), st.integers(0, 40)).map(lambda r: (r[0], min(65535, r[0] + r[1]))),
    max_size=5,
)


@given(ranges, ranges, st.integers(1, 65535))
def test_ports(one: list[tuple[int, int]], two: list[tuple[int, int]], port: int) -> None:
    merged, other = merge_ports(one), merge_ports(two)
    probes = {port, *itertools.chain(*one), *itertools.chain(*two)}
    for probe in probes:
        assert port_in(merged, probe) == any(low <= probe <= high for low, high in one)
    members = set(itertools.chain(*(range(low, high + 1) for low, high in other)))
    assert ports_cover(merged, other) == all(port_in(merged, member) for member in members)
    if merged:
        assert parse_ports(ports_text(merged)) == merged
