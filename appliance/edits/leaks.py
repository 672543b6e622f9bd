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
    """What kind of secret is in which line, counted from 1; 0 is the file's name."""

    line: int
    kind: str


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
        Leak(number, str(secret.type))
        for plugin in _plugins()
        for secret in plugin.analyze_line(filename=name, line=line, line_number=number)
        if secret.secret_value
    ]


def hidden(name: str, lines: Sequence[str]) -> frozenset[str]:
    """Those lines (and the name) that are not to be shown: all with a secret, old or new; whole private keys.

    Whole lines, because the plug-ins do not always say where in a line the secret is.
    """
    found, _ = leaks(name, lines, frozenset())
    texts = (name, *lines)
    covered = {texts[leak.line] for leak in found}
    inside = False
    for line in lines:
        inside = inside or ("-----BEGIN" in line and "PRIVATE KEY" in line)
        if inside and line.strip():
            covered.add(line)
        inside = inside and "-----END" not in line
    return frozenset(covered)
