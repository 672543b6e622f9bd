"""Another posture in the text of a policy, and nothing else changed: comments stay. Pure."""

from __future__ import annotations

import re
from typing import Final

_LINE: Final = re.compile(r"^posture:[^\n#]*", re.MULTILINE)
_PROJECT: Final = re.compile(r"^project:[^\n]*\n?", re.MULTILINE)


def with_posture(text: str, posture: str) -> str:
    """The text with its top-level `posture` replaced, or added behind `project`.

    Whether the outcome is a policy is for `load_policy` to say.
    """
    line = f"posture: {posture}"
    found = _LINE.search(text)
    if found:
        kept = found[0][len(found[0].rstrip()) :]  # blanks before a comment
        return text[: found.start()] + line + kept + text[found.end() :]
    found = _PROJECT.search(text)
    at = found.end() if found else len(text)
    before = text[:at] if text[:at].endswith("\n") else f"{text[:at]}\n"
    return f"{before}{line}\n{text[at:]}"
