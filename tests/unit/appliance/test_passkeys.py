"""What a passkey signs: every part of a decision, in one form; and what `[passkeys]` may say."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - pytest asks for it
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exeat.appliance.config import ConfigError, load
from exeat.appliance.control.passkeys import challenge_of

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)
DECISIONS = st.dictionaries(st.sampled_from(["verb", "as", "lease", "to", "ttl_ms", "why"]), VALUES)


@given(DECISIONS, st.sampled_from(["lease", "to", "as", "new"]), VALUES, st.integers(1, 9))
def test_every_change_is_another_challenge(said: dict[str, Any], key: str, value: Any, more: int) -> None:
    made = challenge_of(said, 1000, "r")
    assert challenge_of(dict(reversed(said.items())), 1000, "r") == made
    assert (
        challenge_of({**said, "id": more, "assertion": {}, "role": "admin", "local": True}, 1000, "r") == made
    )
    assert challenge_of(said, 1000 + more, "r") != made
    assert challenge_of(said, 1000, "other") != made
    changed = {**said, key: value}
    # True and 1 are equal for Python and not the same decision.
    assert (challenge_of(changed, 1000, "r") == made) == (
        repr(sorted(changed.items())) == repr(sorted(said.items()))
    )


@pytest.mark.parametrize(
    "text",
    [
        'rp_id = "console.example.org"',
        'origins = ["https://console.example.org"]',
        'rp_id = "192.0.2.1"\norigins = ["https://192.0.2.1"]',
        'rp_id = "c.example.org"\norigins = ["http://c.example.org"]',
        'rp_id = "c.example.org"\norigins = ["https://c.example.org/console"]',
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "exeat.toml"
    file.write_text(f"[passkeys]\n{text}\n")
    with pytest.raises(ConfigError, match=r"exeat\.toml:[0-9]+: "):
        load(file, environ={})


def test_a_host_behind_ssh(tmp_path: Path) -> None:
    file = tmp_path / "exeat.toml"
    file.write_text('[passkeys]\nrp_id = "localhost"\norigins = ["http://localhost:8440"]\n')
    assert load(file, environ={}).passkeys.rp_id == "localhost"
