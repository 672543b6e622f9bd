"""The posture in a policy's text: replaced or added, everything else as it was."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exeat.policy.posture_edit import with_posture

RULES = "allow:\n  - {id: a, to: a.example.org}  # posture: none of this\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("egress: v1\nproject: p\nposture: public\n", "egress: v1\nproject: p\nposture: allowlist\n"),
        ("posture:   public  # wide\nproject: p\n", "posture: allowlist  # wide\nproject: p\n"),
        (f"egress: v1\nproject: p\n{RULES}", f"egress: v1\nproject: p\nposture: allowlist\n{RULES}"),
        ("egress: v1\nproject: p", "egress: v1\nproject: p\nposture: allowlist\n"),
    ],
)
def test_only_the_posture_changes(text: str, expected: str) -> None:
    assert with_posture(text, "allowlist") == expected


@given(st.text(alphabet="abc #\n", max_size=30), st.text(alphabet="abc #\n", max_size=30))
def test_twice_is_as_good_as_once(before: str, after: str) -> None:
    text = f"{before}\nproject: p\n{after}"
    once = with_posture(text, "public")
    assert with_posture(once, "public") == once
    assert once.replace("posture: public\n", "", 1) == text
