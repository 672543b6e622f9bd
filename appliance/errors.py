"""The expected failures of a command; each message is one line, each class an exit code."""

from __future__ import annotations


class UsageError(Exception):
    """The input cannot be used (exit 2)."""


class NotReachableError(Exception):
    """The appliance does not answer or cannot start (exit 3); the message says what to do."""


class RefusedError(Exception):
    """The appliance answered no (exit 1); `code` is the stable error code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
