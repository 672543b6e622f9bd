"""From control's snapshot messages to snapshots in force, without stopping the loop for a large policy.

A policy of 100,000 rules takes seconds to check and compile. It is compiled on a helper thread and
swapped in when it is ready; until then the old policies stay, but what the new message takes away
(leases, bindings, revocations) is taken away at once. The first snapshot of a process is compiled
where it stands: before it, nothing is served.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from typing import TYPE_CHECKING, Final

from exeat.ledger.reactor import EPOLLIN, Reactor
from exeat.policy.snapshot import Snapshot, SnapshotError

if TYPE_CHECKING:
    from collections.abc import Callable

    from exeat.ledger.ipc import Message

LARGE: Final = 256 * 1024  # characters of policies to compile; about 80 ms
FREE_PAUSE_S: Final = 0.002
FREED: Final = 500  # pieces of an old policy that are freed in one go; about a millisecond


class SnapshotLoader:
    """Give it every message; it calls `apply(snapshot, message)` on the loop, for the newest only.

    `message` is None for a snapshot that stands in while a large policy is being compiled.
    """

    def __init__(
        self,
        reactor: Reactor,
        who: str,
        apply: Callable[[Snapshot, Message | None], None],
        large: int = LARGE,
    ) -> None:
        self._reactor = reactor
        self._who = who
        self._apply = apply
        self._large = large
        self._thread: threading.Thread | None = None
        self._result: Snapshot | SnapshotError | None = None
        self._before: Snapshot | None = None  # the one in force when the thread was started
        self._compiling: Message = {}
        self._next: Message | None = None
        self._stale = False  # a newer snapshot came into force while the thread was at work
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        reactor.add(self._wake_read, EPOLLIN, self._on_done)

    @property
    def busy(self) -> bool:
        """Whether a policy is being compiled; the one in force is older than control's."""
        return self._thread is not None

    def offer(self, message: Message, current: Snapshot | None) -> None:
        """A new message; `current` is the snapshot in force."""
        if current is None or current.to_compile(message) < self._large:
            self._load(message, current)
            return
        try:
            self._apply(current.meanwhile(message), None)
        except SnapshotError as error:
            self._refuse(error)
        if self._thread is None:
            self._start(message, current)
        else:
            self._next = None if message == self._compiling else message
            self._stale = False

    def close(self) -> None:
        """Forget what is being compiled."""
        self._stale, self._next = True, None
        self._reactor.remove(self._wake_read)

    def _load(self, message: Message, previous: Snapshot | None) -> None:
        try:
            snapshot = Snapshot.load(message, previous)
        except SnapshotError as error:
            self._refuse(error)
            return
        self._stale, self._next = True, None
        self._apply(snapshot, message)

    def _refuse(self, error: SnapshotError) -> None:
        print(f"exeat {self._who}: snapshot refused, the old one stays: {error}", file=sys.stderr)

    def _start(self, message: Message, current: Snapshot) -> None:
        self._compiling, self._next, self._stale = message, None, False
        self._before = current
        self._thread = threading.Thread(target=self._compile, args=(message, current), daemon=True)
        self._thread.start()

    def _compile(self, message: Message, current: Snapshot) -> None:
        # Millions of objects that are no garbage: looking through them again and again would double
        # the time, and looking through them later would stop the loop for it.
        gc.disable()
        try:
            self._result = Snapshot.load(message, current)
        except SnapshotError as error:
            self._result = error
        except Exception as error:
            self._result = SnapshotError(f"{type(error).__name__}: {error}")
        finally:
            gc.unfreeze()
            gc.freeze()
            gc.enable()
            os.write(self._wake_write, b"1")

    def _on_done(self, _events: int) -> None:
        os.read(self._wake_read, 64)
        result, message, later = self._result, self._compiling, self._next
        before = self._before
        self._thread = self._result = self._next = self._before = None
        if isinstance(result, SnapshotError):
            self._refuse(result)
        elif result is not None and later is not None:
            self.offer(later, result)
        elif result is not None and not self._stale:
            pieces = before.leftover(result) if before is not None else []
            self._apply(result, message)
            self._free(pieces)

    def _free(self, pieces: list[object]) -> None:
        """Let go of an old policy a little at a time: as a whole it would stop the loop for long."""
        del pieces[-FREED:]
        if pieces:
            self._reactor.call_later(FREE_PAUSE_S, lambda: self._free(pieces))
