"""Batches to the buckets of `[[ledger.archive]]` while `exeat up` runs: `exeat ledger archive run`, repeated.

Units have a timer for it. A run is a process of its own, as root, that does all its work under two users
(`ledger_archive`); the next one begins some time after it has ended, so that there are never two.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Final

from exeat.ledger.reactor import EPOLLIN

if TYPE_CHECKING:
    from exeat.ledger.reactor import Reactor, Timer

_FIRST_S: Final = 2.0  # the ledger has signed what it found by then
_MOST_S: Final = 4 * 3600.0  # a server that answers byte by byte must not keep the next run from starting
_STOP_S: Final = 5.0  # what was sent is not sent again by the next run


class ArchiveRuns:
    """A run every `every_s` seconds; `arguments` say which configuration."""

    def __init__(self, reactor: Reactor, arguments: list[str], every_s: float) -> None:
        self._reactor, self._arguments, self._every_s = reactor, arguments, every_s
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._timer: Timer = reactor.call_later(_FIRST_S, self._begin)

    def _begin(self) -> None:
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-m", "exeat", *self._arguments, "ledger", "archive", "run"],
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
                stdin=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            print(f"exeat: archive: no run: {error}", file=sys.stderr, flush=True)
            self._timer = self._reactor.call_later(self._every_s, self._begin)
            return
        self._process, self._pidfd = process, os.pidfd_open(process.pid)
        self._reactor.add(self._pidfd, EPOLLIN, lambda _: self._ended())
        self._timer = self._reactor.call_later(_MOST_S, lambda: self._signal(signal.SIGKILL))

    def _ended(self) -> None:
        self._reap()
        self._timer.cancel()
        self._timer = self._reactor.call_later(self._every_s, self._begin)

    def _reap(self) -> None:
        if self._process is not None:
            self._reactor.remove(self._pidfd)
            os.close(self._pidfd)
            self._process.wait()
            self._process = None

    def _signal(self, number: int) -> None:
        """To the run and those that do its work."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def stop(self) -> None:
        """No run any more."""
        self._timer.cancel()
        if self._process is None:
            return
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_S)
        self._signal(signal.SIGKILL)
        self._reap()
