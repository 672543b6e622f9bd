"""What is submitted to the queue, judged: a task, or why not."""

from __future__ import annotations

import re
import secrets
from typing import TYPE_CHECKING, Any, Final

from exeat.appliance.control.files import scopes_of
from exeat.appliance.control.jobs import agent_of
from exeat.appliance.control.queue import MAX_PRIORITY, Task
from exeat.appliance.control.verbs import person
from exeat.appliance.errors import RefusedError
from exeat.appliance.sections import LABEL

if TYPE_CHECKING:
    from collections.abc import Callable

    from exeat.ledger.ipc import Message

MAX_AFTER, MAX_NEEDS, MAX_RETRIES = 64, 32, 20
OUTPUT_BYTES: Final = 1 << 30  # of each file a task writes, its output included, unless it asks for less
_REQUEST = frozenset(
    {
        "argv",
        "profile",
        "mounts",
        "cwd",
        "user",
        "env",
        "limits",
        "time_ms",
        "agent",
        "network",
        "root",
        "scopes",
    }
)
# What only root may say: it is of this machine's files. Folders for others are file scopes, judged by policy.
_LOCAL = frozenset({"mounts", "cwd", "user", "root"})


class Requests:
    """`most_file`: bytes that the node lets a file of a job have, 0: as many as it likes."""

    def __init__(self, most_file: int) -> None:
        self._most_file = most_file

    def task(self, message: Message, choose: Callable[..., tuple[str, str]], now_ms: int) -> Task:
        """The task; whether what it follows is there, is not judged. `choose`: Policies.choose."""
        if message.get("local") is not True and (asked := _LOCAL & message.keys()):
            what = ", ".join(sorted(asked))
            raise RefusedError("job.local", f"{what}: for `exeat job submit` on the node itself")
        request = {name: message[name] for name in _REQUEST if name in message}
        argv = request.get("argv")
        if not isinstance(argv, list) or not argv or not all(isinstance(word, str) for word in argv):
            raise RefusedError("job.argv", "no command to run")
        # A policy of its own is for `exeat run`: who submits work for later does not bring the rules along.
        project, _ = choose(message.get("project"), None, None)
        agent_of(request)
        request["limits"] = self._limits(request.get("limits") or {})
        return Task(
            id=f"t-{secrets.token_hex(5)}",
            project=project,
            request=request,
            by=person(message),
            submitted_ms=now_ms,
            priority=number(message, "priority", -MAX_PRIORITY, MAX_PRIORITY),
            group=_group(message.get("group")),
            after=_words(message, "after", MAX_AFTER),
            needs=[*_words(message, "needs", MAX_NEEDS), *scopes_of(request.get("scopes"))],
            retries=number(message, "retries", 0, MAX_RETRIES),
        )

    def _limits(self, asked: object) -> dict[str, Any]:
        """With one on files, for output is one of them, and it is kept."""
        if not isinstance(asked, dict):
            raise RefusedError("job.limits", "limits are whole numbers by name")
        most = min(OUTPUT_BYTES, self._most_file or OUTPUT_BYTES)
        file = asked.get("file") or most
        if type(file) is not int or file > most:
            raise RefusedError("limits", f"limit file is {file}: a task gets at most {most}, output included")
        return {**asked, "file": file}


def _group(name: object) -> str:
    if name in (None, ""):
        return ""
    if not isinstance(name, str) or not re.fullmatch(LABEL, name):
        raise RefusedError("task.group", "a group is a name of small letters, digits and hyphens")
    return name


def number(message: Message, name: str, least: int, most: int) -> int:
    value = message.get(name, 0)
    if type(value) is not int or not least <= value <= most:
        raise RefusedError(f"task.{name}", f"{name} is a whole number from {least} to {most}")
    return value


def _words(message: Message, name: str, most: int) -> list[str]:
    value = message.get(name) or []
    if not isinstance(value, list) or len(value) > most or not all(isinstance(each, str) for each in value):
        raise RefusedError(f"task.{name}", f"{name} is a list of at most {most} names")
    return list(dict.fromkeys(value))
