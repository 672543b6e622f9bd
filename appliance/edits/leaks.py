"""Secrets in what a job wrote: found by detect-secrets, and never said again.

Its own allow-list comments (`pragma: allowlist secret`) and its filters are not used: the one who writes
the text is the one who is not trusted. Nothing is verified at the service a secret is for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

MISSING: Final = "nothing was looked for secrets: install exeat[secrets]"
MAX_LINE: Final = 4096  # characters; a longer one is not read
_NOT_SECRETS: Final = frozenset({"IPPublicDetector"})


@dataclass(frozen=True, slots=True)
class Leak:
    """`line` counts from 1, 0 is the file's name. `value` is for taking it out, not for showing it."""

    line: int
    kind: str
    value: str


def available() -> bool:
    """Is there something to look with?"""
    return bool(_plugins())


@cache
def _plugins() -> tuple[Any, ...]:
    try:
        from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
    except ImportError:
        return ()
    classes: dict[str, Any] = get_mapping_from_secret_type_to_class()
    return tuple(each() for each in classes.values() if each.__name__ not in _NOT_SECRETS)


def leaks(name: str, lines: Sequence[str], known: frozenset[str]) -> tuple[list[Leak], bool]:
    """What looks like a secret in those lines that are not `known`, and whether all of them were read."""
    found, whole = [], available()
    for number, line in enumerate((name, *lines)):
        if len(line) > MAX_LINE:
            whole = False
        elif number == 0 or line not in known:
            found += _in_line(name, line, number)
    return found, whole


def _in_line(name: str, line: str, number: int) -> list[Leak]:
    return [
        Leak(number, str(secret.type), str(secret.secret_value))
        for plugin in _plugins()
        for secret in plugin.analyze_line(filename=name, line=line, line_number=number)
        if secret.secret_value
    ]


def redacted(text: str, found: Sequence[Leak]) -> str:
    """`text` without the secrets."""
    for leak in sorted(found, key=lambda each: -len(each.value)):
        text = text.replace(leak.value, "[redacted]")
    return text
