"""What the verbs of control.sock have in common, and what of them the console may ask for.

Root is its own witness: `as` is for the record. The console has signed people in and says who they are, so
it must say so each time; what their role allows is judged here again.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from exeat.appliance.errors import RefusedError
from exeat.policy.admin import ACCOUNTS, Actor, authorize
from exeat.policy.reasons import short_text

if TYPE_CHECKING:
    from exeat.ledger.ipc import Message

# Of a request and its descriptors: the fields of the reply. Raises RefusedError.
Verb = Callable[["Message", list[int]], Awaitable[dict[str, Any]]]
Verbs = Mapping[str, Verb]

ADMIN: Final = "admin"
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,62}", re.ASCII)  # of an account
ROOT_NAME: Final = "root"  # who decides where root names nobody
# What the console may ask for, and nothing else.
CONSOLE: Final = frozenset(
    {
        "status",
        "why",
        "lease.ls",
        "lease.show",
        "lease.request",
        "lease.approve",
        "lease.deny",
        "lease.renew",
        "lease.revoke",
        "kill.ls",
        "kill.on",
        "kill.off",
        "flow.ls",
        "flow.tail",
        "flow.cut",
        "events.tail",
        "passkey.begin",
        "passkey.register",
        "passkey.challenge",
        "passkey.ls",
        "passkey.remove",
        "policy.ls",
        "policy.show",
        "policy.versions",
        "policy.set",
        "policy.posture",
        "policy.revert",
        "policy.remove",
        "policy.agree",
        "policy.withdraw",
        "device.ls",
        "device.grant",
        "task.ls",
        "task.show",
        "task.submit",
        "task.cancel",
        "task.output",
        "metrics",
    }
)


def from_root(message: Message) -> Message:
    """Root may do what an admin may; `local` tells it from an admin of the console."""
    return {**message, "role": ADMIN, "local": True}


def from_console(message: Message) -> Message:
    """The request with the role that the policy knows. Raises RefusedError."""
    verb, name, role = (message.get(key) for key in ("verb", "as", "role"))
    if verb not in CONSOLE:
        raise RefusedError("verb.forbidden", f"the console may not ask for `{verb}`")
    known = ACCOUNTS.get(str(role))
    if not isinstance(name, str) or not _NAME.fullmatch(name) or known is None:
        raise RefusedError("meta.attribution", "say for whom, and in which role")
    return {**message, "role": known, "local": False}


def person(message: Message) -> str:
    """Who decides."""
    name = message.get("as")
    return name if isinstance(name, str) and name else ROOT_NAME


def may(message: Message, action: str, context: Mapping[str, Any] | None = None) -> str:
    """Who asks for `action`. Raises RefusedError if they may not."""
    who = actor(message)
    decision = authorize(who, action, context)
    if not decision.allowed:
        raise RefusedError(decision.reason, short_text(decision.reason))
    return who.id


def actor(message: Message) -> Actor:
    """Who decides, in which role; none where the message did not come through `from_root` or the like."""
    return Actor(person(message), str(message.get("role", "")))
