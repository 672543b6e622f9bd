"""docs/profiles.md says what the profiles are: its table is made from them."""

from __future__ import annotations

import itertools
from pathlib import Path

from tests.support.escapes import EXPECTED, NARROWER
from tests.support.syscalls import ALLOWED, BY_ARGUMENTS, REFUSED, UNKNOWN, verdicts

from exeat.sandbox.spec import Profile

PAGE = Path(__file__).parents[3] / "docs" / "profiles.md"
HEAD = f"| calls | {' | '.join(Profile)} |\n|---|{'---|' * len(Profile)}\n"
SAID = {ALLOWED: "yes", BY_ARGUMENTS: "by arguments", REFUSED: "EPERM", UNKNOWN: "ENOSYS"}


def table() -> str:
    """A row for each way in which the profiles treat calls, the widest first."""
    by_kind = [verdicts(kind) for kind in Profile]

    def ways(name: str) -> tuple[str, ...]:
        return tuple(SAID[said.get(name, UNKNOWN)] for said in by_kind)

    names = sorted({name for said in by_kind for name in said}, key=lambda name: (ways(name)[::-1], name))
    rows = [
        f"| {' '.join(f'`{name}`' for name in group)} | {' | '.join(how)} |\n"
        for how, group in itertools.groupby(names, ways)
    ]
    return HEAD + "".join(reversed(rows))


def test_the_page_has_the_table_of_the_profiles() -> None:
    assert table() in PAGE.read_text(), f"put this into docs/profiles.md:\n{table()}"


def attempts() -> str:
    """A row for each set of answers: what is tried, and in which profiles the call is not there."""

    def answers(name: str) -> tuple[str, str]:
        absent = [str(profile) for profile in Profile if name in NARROWER[profile]]
        return ", ".join(sorted(EXPECTED[name])), ", ".join(absent)

    names = sorted(EXPECTED, key=lambda name: (answers(name), name))
    rows = [
        f"| {' '.join(f'`{name}`' for name in group)} | {said} | {absent} |\n"
        for (said, absent), group in itertools.groupby(names, answers)
    ]
    return "| attempt | answered | ENOSYS under |\n|---|---|---|\n" + "".join(rows)


def test_the_page_has_the_table_of_the_ways_out() -> None:
    assert attempts() in PAGE.read_text(), f"put this into docs/profiles.md:\n{attempts()}"


def test_every_profile_is_explained() -> None:
    text = PAGE.read_text()
    assert all(f"`{kind}`" in text for kind in Profile)
