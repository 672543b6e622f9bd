"""What a relay is to its tunnel, and what may look at the bytes on their way through it."""

from __future__ import annotations

from typing import Final, Protocol

UP: Final = 0  # the way from the client
DOWN: Final = 1


class StopRelay(Exception):
    """Raised by an Intake: the tunnel ends here, with `reason`, before the bytes in hand pass."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Intake(Protocol):
    """Looks at one side's bytes before they pass: what it returns goes on, the rest does not.

    `take` and `end` raise StopRelay to cut the tunnel.
    """

    @property
    def done(self) -> bool:
        """True when nothing more needs looking at; the relay then forgets it."""
        ...

    @property
    def over(self) -> bool:
        """True while nothing more is to be read. When the upstream's is over, the tunnel ends."""
        ...

    def take(self, data: memoryview) -> bytes | memoryview: ...

    def end(self) -> None:
        """This side ended here."""
        ...


class Relaying(Protocol):
    """What moves the bytes of one tunnel: a Relay, or the compiled form of one that nobody looks into.

    `up_ended`: the client has said its last, `up_told`: and the upstream was told so.
    """

    ended: bool

    @property
    def up_ended(self) -> bool: ...

    @property
    def up_told(self) -> bool: ...

    @property
    def down_ended(self) -> bool: ...

    @property
    def down_told(self) -> bool: ...

    @property
    def activity(self) -> float: ...

    def start(self, first: bytes = b"") -> None: ...

    def counts(self) -> tuple[int, int]: ...

    def undelivered(self, way: int) -> int: ...

    def kick(self) -> None: ...

    def end(self, reason: str) -> None: ...
