"""Events to each `[[ledger.stream]]`, at least once, in order, from a position that survives.

A stream reads the segments behind the writer: no append waits for it, and what a sink does not take
stays where it is, on the disk. So there is no queue to overflow; a stream that is behind says so.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from exeat.appliance.stream.events import Event
from exeat.appliance.stream.marks import Marks
from exeat.appliance.stream.missed import mark
from exeat.appliance.stream.sinks import open_sink
from exeat.appliance.threads import run_all, stop_on_signals
from exeat.ledger.archive import put
from exeat.ledger.merkle import leaf_hash
from exeat.ledger.reader import Follower, dropped_before, find_ledgers, segment_of, tail
from exeat.ledger.records import printable
from exeat.ledger.small_files import read_said, read_small

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from exeat.appliance.config import Config
    from exeat.appliance.ledger_config import Stream
    from exeat.appliance.stream.sinks import Sink
    from exeat.ledger.filters import Filter
    from exeat.ledger.reader import Entry

BATCH: Final = 500  # events in one sending
_READ: Final = 50_000  # records read before the position is kept, however few of them fit
_POLL_S: Final = 0.2
_POSITION: Final = 65536  # bytes; 64 marks are 6 KB
_LOOK_S: Final = 60.0  # between looks whether the ledger is still the one that was sent
_PAUSE_S: Final = (1.0, 2.0, 5.0, 15.0, 60.0)


class Tap:
    """One ledger's records for one sink. `path` keeps how far it is."""

    def __init__(self, directory: Path, path: Path, *, from_start: bool) -> None:
        self.directory, self._path = directory, path
        self._marks = Marks()
        if (kept := _position(path)) is not None:
            self.next_seq, self._marks = kept
            self._go_back()
        else:
            last = [] if from_start else tail(directory, 1)[0]
            self._keep(last[-1][0] + 1 if last else 0, last[-1][1] if last else None)
        self._follower = Follower(directory, index=segment_of(directory, self.next_seq))
        self._entries: Iterator[Entry] = iter(())

    def _go_back(self) -> None:
        """To where this ledger is the one that was sent.

        A power cut may take what nobody was promised yet, and an old copy may have been put back: then
        numbers are given again, to other records.
        """
        sure = self._marks.newest(lambda seq, leaf: _holds(self.directory, seq, leaf))
        if sure == self.next_seq:
            return
        what = f"record {self.next_seq - 1} is not the one that was sent: cut off, or an older copy"
        print(f"exeat: stream {self._path.name}: {what}; goes on from {sure}", file=sys.stderr, flush=True)
        self._marks = self._marks.until(sure)
        self._keep(sure, None)

    def pump(self, wanted: Filter, sink: Sink) -> bool:
        """Send the next batch; whether there may be more at once.

        Raises SinkError, RecordError, OSError: then a new tap begins where the position is.
        """
        events, end, read, data = list[Event](), self.next_seq, 0, b""
        for seq, data in self._read():
            if seq < self.next_seq:
                continue
            if seq > end:  # whatever is wanted: who is told of nothing would take it that there was nothing
                events.append(mark(self.directory, end, seq))
            record, end, read = wanted.decoded(data), seq + 1, read + 1
            if record is not None:
                events.append(Event(self.directory.name, seq, record))
            if len(events) >= BATCH or read == _READ:
                break
        if events:
            sink.send(events)
        if end != self.next_seq:
            self._keep(end, data)
        return read == _READ or len(events) >= BATCH

    def _read(self) -> Iterator[Entry]:
        # Not `yield from`: when the batch is full this generator is closed, and the follower must not be.
        for entry in self._entries:
            yield entry
        self._entries = self._follower.poll()
        for entry in self._entries:
            yield entry

    def _keep(self, seq: int, last: bytes | None) -> None:
        """`last` is the record before `seq`, where that is new."""
        if last is not None:
            self._marks = self._marks.add(seq, leaf_hash(last).hex())
        put(self._path, json.dumps({"next": seq, "marks": self._marks}).encode())
        self.next_seq = seq


def _position(path: Path) -> tuple[int, Marks] | None:
    """The first record not sent yet, and marks of those before it; None if nothing was begun."""
    try:
        kept = json.loads(read_small(path, _POSITION))
    except FileNotFoundError:
        return None
    return int(kept["next"]), Marks((int(seq), str(leaf)) for seq, leaf in kept["marks"])


def _holds(directory: Path, end: int, leaf: str) -> bool:
    """Whether the record before `end` is the one of this leaf hash; taken for granted if it was dropped."""
    if end <= dropped_before(directory):
        return True
    for seq, data in Follower(directory, index=segment_of(directory, end - 1)).poll():
        if seq == end - 1:
            return leaf_hash(data).hex() == leaf
    return False


def _end(directory: Path) -> int:
    entries, _ = tail(directory, 1)
    return entries[-1][0] + 1 if entries else 0


class Streaming:
    """One `[[ledger.stream]]` over all ledgers of a state directory, for a thread of its own."""

    def __init__(self, config: Config, stream: Stream, stop: threading.Event) -> None:
        self._config, self._stream, self._stop = config, stream, stop
        self._folder = folder_of(config)
        self._taps: dict[Path, Tap] = {}
        self._sink: Sink | None = None
        self._failures = 0
        self._noted = True  # that it fails; at the start perhaps, by the one before us
        self._looked = time.monotonic()

    def run(self) -> None:
        while not self._stop.is_set():
            try:
                pause = 0.0 if self.turn() else _POLL_S
            except Exception as error:  # whatever a peer or a file came up with, the stream does not end
                pause = self._failed(error)
            self._stop.wait(pause)
        if self._sink is not None:
            self._sink.close()

    def turn(self) -> bool:
        """Send what there is, up to a batch of each ledger; whether there may be more at once."""
        if self._sink is None:
            self._sink = open_sink(self._stream, self._config.node.name)
        if time.monotonic() - self._looked >= _LOOK_S:
            self._looked = time.monotonic()
            self._taps.clear()
        more = False
        for directory in find_ledgers(self._config.state_dir):
            if directory not in self._taps:
                path = self._folder / f"{self._stream.name}.{directory.name}"
                self._taps[directory] = Tap(directory, path, from_start=self._stream.begin == "start")
            more |= self._taps[directory].pump(self._stream.filter(), self._sink)
        if self._noted:
            self._note.unlink(missing_ok=True)
        if self._failures:
            print(f"exeat: stream {self._stream.name}: goes on", file=sys.stderr, flush=True)
        self._failures, self._noted = 0, False
        return more

    def _failed(self, error: Exception) -> float:
        pause = _PAUSE_S[min(self._failures, len(_PAUSE_S) - 1)]
        self._failures += 1
        self._noted = True
        said = printable(str(error) or type(error).__name__)
        if self._failures == 1:
            print(f"exeat: stream {self._stream.name}: {said}", file=sys.stderr, flush=True)
        self._taps.clear()
        try:
            self._note.write_text(f"{said}\n", encoding="utf-8")
        except OSError as full:
            print(f"exeat: stream {self._stream.name}: {full}", file=sys.stderr, flush=True)
        return pause

    @property
    def _note(self) -> Path:
        return self._folder / f"{self._stream.name}.failed"


def folder_of(config: Config) -> Path:
    """Where positions are kept."""
    return config.state_dir / "stream"


def serve(config: Config, ready: Callable[[], None]) -> int:
    """Run all streams until SIGTERM. Returns the exit code."""
    stop = stop_on_signals()
    folder_of(config).mkdir(mode=0o750, parents=True, exist_ok=True)
    threads = [
        threading.Thread(target=Streaming(config, stream, stop).run, name=stream.name)
        for stream in config.ledger.stream
    ]
    return run_all(threads, ready)


def status(config: Config) -> list[dict[str, Any]]:
    """Of each stream and ledger: the next record to be sent, how many wait, and the last failure."""
    rows: list[dict[str, Any]] = []
    for stream in config.ledger.stream:
        said = read_said(folder_of(config) / f"{stream.name}.failed")
        for directory in find_ledgers(config.state_dir):
            kept, end = _position(folder_of(config) / f"{stream.name}.{directory.name}"), _end(directory)
            at = kept[0] if kept is not None else 0
            waiting = max(end - at, 0) if kept is not None else 0
            row = {"stream": stream.name, "ledger": directory.name, "next": at}
            rows.append({**row, "waiting": waiting, "begun": kept is not None, "failed": said})
    return rows
