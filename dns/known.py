"""Names of public encrypted resolvers, from `rules/encrypted-resolvers.txt`."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from exeat.policy.names import parse_host


def read_names(text: str) -> frozenset[str]:
    """One canonical host name per line; `#` begins a comment line. Raises ValueError otherwise."""
    names = [line for line in text.splitlines() if line and not line.startswith("#")]
    for name in names:
        if parse_host(name) != name:
            raise ValueError(f"`{name}` is not a canonical host name")
    return frozenset(names)


@cache
def encrypted_resolvers() -> frozenset[str]:
    rules = Path(__file__).parent / "rules" / "encrypted-resolvers.txt"
    return read_names(rules.read_text(encoding="ascii"))


def is_encrypted_resolver(host: str) -> bool:
    """Whether `host` is one of them or below one."""
    names = encrypted_resolvers()
    while host not in names:
        _, dot, host = host.partition(".")
        if not dot:
            return False
    return True
