"""Names of jails and jobs: the only text from outside that becomes part of a path or a host name."""

from __future__ import annotations

import re
from typing import Any, NewType

JailName = NewType("JailName", str)

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,30}", re.ASCII)


class SpecError(ValueError):
    """A request the warden refuses. `code` is stable, the message is for a person."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def fields(self) -> dict[str, Any]:
        """As a reply (docs/architecture.md)."""
        return {"ok": False, "error": self.code, "message": str(self)}


def parse_name(raw: object) -> JailName:
    """`[a-z0-9][a-z0-9-]{0,30}`, nothing else. Raises SpecError("argument")."""
    if not isinstance(raw, str) or not _NAME.fullmatch(raw):
        raise SpecError("argument", "a name is 1 to 31 of a-z, 0-9 and -, and does not begin with -")
    return JailName(raw)


def fields_of(error: SpecError | OSError) -> dict[str, Any]:
    """The reply to a request that failed so."""
    return (error if isinstance(error, SpecError) else SpecError("failed", str(error))).fields()
