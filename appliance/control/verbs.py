"""What the verbs of control.sock have in common."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exeat.ledger.ipc import Message

# Of a request and its descriptors: the fields of the reply. Raises RefusedError.
Verb = Callable[["Message", list[int]], Awaitable[dict[str, Any]]]
Verbs = Mapping[str, Verb]


def person(message: Message) -> str:
    """Who decides. Only root can connect; `as` lets it say for which person it acts."""
    name = message.get("as")
    return name if isinstance(name, str) and name else "root"
