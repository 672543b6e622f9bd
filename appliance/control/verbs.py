"""What the verbs of control.sock have in common."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from exeat.appliance.errors import RefusedError
from exeat.policy.admin import Actor, authorize
from exeat.policy.reasons import short_text

if TYPE_CHECKING:
    from exeat.ledger.ipc import Message

# Of a request and its descriptors: the fields of the reply. Raises RefusedError.
Verb = Callable[["Message", list[int]], Awaitable[dict[str, Any]]]
Verbs = Mapping[str, Verb]

ROLE = "admin"  # only root reaches control.sock; roles come with the API


def person(message: Message) -> str:
    """Who decides. Only root can connect; `as` lets it say for which person it acts."""
    name = message.get("as")
    return name if isinstance(name, str) and name else "root"


def may(message: Message, action: str) -> str:
    """Who asks for `action`. Raises RefusedError if they may not."""
    who = person(message)
    decision = authorize(Actor(who, ROLE), action)
    if not decision.allowed:
        raise RefusedError(decision.reason, short_text(decision.reason))
    return who
