"""The notify process: from the ledger's records into the outbox, and out of it.

It reads finished records, by group, like the streams do: it needs no word of control or the console, holds
no key, and nobody waits for it. Two threads for each `[[notify]]`: one reads, one sends.
"""

from __future__ import annotations

import sqlite3
import sys
import threading
import time
from typing import TYPE_CHECKING, Final

from exeat.appliance.notify.notices import notices
from exeat.appliance.notify.outbox import Outbox
from exeat.appliance.notify.senders import sender_of
from exeat.appliance.stream.follow import Tap
from exeat.appliance.stream.post import SinkError
from exeat.appliance.threads import run_all, stop_on_signals
from exeat.ledger.filters import Filter
from exeat.ledger.reader import ReaderError, find_ledgers
from exeat.ledger.records import Kind, RecordError, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from exeat.appliance.config import Config
    from exeat.appliance.notify.senders import Sender
    from exeat.appliance.notify_config import Notify
    from exeat.appliance.stream.events import Event

_POLL_S: Final = 0.2
_PAUSE_S: Final = 5.0
_KINDS: Final = frozenset({Kind.LEASE, Kind.POLICY, Kind.JOB, Kind.ANOMALY, Kind.RECONCILE, Kind.DNS})


class _Into:
    """The sink that a tap fills: the outbox."""

    def __init__(self, outbox: Outbox, notify: Notify) -> None:
        self._outbox, self._notify = outbox, notify

    def send(self, events: Sequence[Event]) -> None:
        found = [
            notice
            for event in events
            for notice in notices(event.ledger, event.seq, event.record, self._notify)
        ]
        if found:
            self._outbox.put(self._notify.name, found, _now_ms())

    def close(self) -> None: ...


class Notifying:
    """One `[[notify]]`."""

    def __init__(self, config: Config, notify: Notify, stop: threading.Event) -> None:
        self._config, self._notify, self._stop = config, notify, stop
        self._folder = folder_of(config)

    def read(self) -> None:
        """From the ledger into the outbox, for as long as the process lives."""
        outbox = Outbox(outbox_of(self._config))
        taps: dict[Path, Tap] = {}
        wanted = Filter(_KINDS)
        while not self._stop.is_set():
            more, pause = False, _POLL_S
            try:
                for directory in find_ledgers(self._config.state_dir):
                    if directory not in taps:
                        path = self._folder / f"{self._notify.name}.{directory.name}"
                        taps[directory] = Tap(directory, path, from_start=False)
                    more |= taps[directory].pump(wanted, _Into(outbox, self._notify))
            except (OSError, ReaderError, RecordError, sqlite3.Error, ValueError) as error:
                self._say(f"cannot go on reading: {printable(str(error), 300)}")
                taps.clear()
                pause = _PAUSE_S
            self._stop.wait(0 if more else pause)
        outbox.close()

    def send(self) -> None:
        """Out of the outbox, oldest first, for as long as the process lives."""
        outbox = Outbox(outbox_of(self._config))
        sender: Sender | None = None
        failing = False
        while not self._stop.is_set():
            waiting = outbox.first(self._notify.name, _now_ms())
            if waiting is None:
                self._stop.wait(_POLL_S)
                continue
            try:
                sender = sender or sender_of(self._notify)
                sender.send(waiting.notice)
            except SinkError as error:
                sender = None
                kept = outbox.failed(self._notify.name, waiting, str(error), _now_ms())
                if not failing or not kept:
                    self._say(f"{error}{'' if kept else ': given up'}")
                failing = True
                continue
            outbox.sent(self._notify.name, waiting)
            if failing:
                self._say("goes on")
            failing = False
        outbox.close()

    def _say(self, what: str) -> None:
        print(f"exeat: notify {self._notify.name}: {what}", file=sys.stderr, flush=True)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def folder_of(config: Config) -> Path:
    """Where positions and the outbox are kept."""
    return config.state_dir / "notify"


def outbox_of(config: Config) -> Path:
    return folder_of(config) / "outbox.sqlite"


def serve(config: Config, ready: Callable[[], None]) -> int:
    """Run until SIGTERM. Returns the exit code."""
    stop = stop_on_signals()
    folder_of(config).mkdir(mode=0o750, parents=True, exist_ok=True)
    Outbox(outbox_of(config)).close()  # made by one, before there are two
    each = [Notifying(config, notify, stop) for notify in config.notify]
    return run_all([threading.Thread(target=work) for one in each for work in (one.read, one.send)], ready)
