"""Commands that pure code asks for, one after the other, judging how each ended (pure).

`netns.run` is the one place that runs them.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final, NamedTuple, Protocol

from exeat.sandbox.names import SpecError

ENV: Final = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}  # of every child of the warden
MAX_SAID: Final = 200  # characters of what a failed command said


class Command(NamedTuple):
    """A program and its arguments, never a shell line with a value in it; it ends within `seconds`."""

    argv: tuple[str, ...]
    stdin: str = ""
    seconds: float = 10.0


class Done(Protocol):
    """How a command ended (subprocess.CompletedProcess)."""

    @property
    def returncode(self) -> int: ...
    @property
    def stdout(self) -> str: ...
    @property
    def stderr(self) -> str: ...


Steps = Generator[Command, Done, None]
Printed = Generator[Command, Done, str]


def done(*argv: str, stdin: str = "", seconds: float = 10.0) -> Printed:
    """What the command printed. Raises SpecError(failed) when it failed or took too long."""
    ended = yield Command(argv, stdin, seconds)
    if ended.returncode:
        raise SpecError(
            "failed", f"{argv[0]}: {' '.join(ended.stderr.split())[:MAX_SAID] or ended.returncode}"
        )
    return ended.stdout
