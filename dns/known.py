"""Names of public encrypted resolvers: `rules/encrypted-resolvers.txt`, or a newer list in its form."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

from exeat.policy.names import MalformedError, parse_host

MAX_NAMES: Final = 50_000


def read_names(text: str, file: str = "list") -> frozenset[str]:
    """One canonical host name of two labels or more per line; `#` begins a comment line.

    Raises ValueError, whose text begins with `FILE:LINE: `.
    """
    names: set[str] = set()
    for number, line in enumerate(text.splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        try:
            fine = parse_host(line) == line and "." in line
        except MalformedError:
            fine = False
        if not fine:
            what = "is not a host name in lower case, of two labels or more"
            raise ValueError(f"{file}:{number}: `{line[:80]}` {what}")
        names.add(line)
        if len(names) > MAX_NAMES:
            raise ValueError(f"{file}:{number}: more than {MAX_NAMES} names")
    if not names:
        raise ValueError(f"{file}:1: no name in it")
    return frozenset(names)


@cache
def encrypted_resolvers() -> frozenset[str]:
    """The list that comes with exeat."""
    rules = Path(__file__).parent / "rules" / "encrypted-resolvers.txt"
    return read_names(rules.read_text(encoding="ascii"), rules.name)


def on_list(host: str, names: frozenset[str]) -> bool:
    """Whether `host` is one of `names` or below one."""
    while host not in names:
        _, dot, host = host.partition(".")
        if not dot:
            return False
    return True
