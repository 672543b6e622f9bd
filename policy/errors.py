"""What can be wrong with input, each with a stable code. No other exception leaves this area."""

from __future__ import annotations


class MalformedError(ValueError):
    """A host, address or port on the wire is not in our grammar. `code` is `malformed.*`."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class UnitError(ValueError):
    """A size, duration, rate, sum or instant is not in our grammar. `code` is `unit.*`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class ScopeError(ValueError):
    """A scope or port list of a policy or lease is not in our grammar. `code` is `scope.*`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class PolicyError(Exception):
    """A document does not load. `str()` is one line: `FILE:LINE:COL: message [code]` (1-based)."""

    def __init__(self, code: str, message: str, file: str, line: int, column: int) -> None:
        super().__init__(f"{file}:{line}:{column}: {message} [{code}]")
        self.code = code
        self.message = message
        self.file = file
        self.line = line
        self.column = column
