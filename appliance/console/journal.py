"""What happened on this node, numbered, for those who watch: kept for a while, and never evidence.

Events are lines of JSON in a few files that are dropped as a whole, oldest first. What happens many
times a second (BUSY) has files of its own, so that it does not push out what people decided. Numbers
only grow, also across a restart and a lost folder: a reader that knows its last one misses nothing, or
is told that it did.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from pathlib import Path

TOPICS: Final = ("requests", "leases", "flows", "dns", "jobs", "policy", "admin", "alerts")
BUSY: Final = frozenset({"flows", "dns"})
RECENT: Final = 4096  # events at hand without reading a file
PAGE: Final = 1000  # events given at once
MAX_EVENT: Final = 16_384  # bytes of a line
FILE_BYTES: Final = 4 * 1024 * 1024
FILES: Final = {"quiet": 8, "busy": 4}  # kept of each kind


class Event(NamedTuple):
    """`id` in no two events of a node; `at_ms` since 1970; `data` as docs/monitoring.md says of the topic."""

    id: int
    at_ms: int
    topic: str
    data: Mapping[str, Any]

    def line(self) -> bytes:
        return json.dumps(self._asdict(), separators=(",", ":")).encode() + b"\n"


class Page(NamedTuple):
    """`next` is what to ask `since` with for what follows. `lost`: some before these are not kept."""

    events: Sequence[Event]
    next: int
    lost: bool


class Journal:
    """The one writer of `folder`. For a loop: nothing in here is safe for threads."""

    def __init__(
        self,
        folder: Path,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        file_bytes: int = FILE_BYTES,
    ) -> None:
        folder.mkdir(mode=0o750, exist_ok=True)
        self._now_ms = now_ms
        self._folder = folder
        self._series = {name: _Series(folder, name, file_bytes) for name in FILES}
        known = max(series.last for series in self._series.values())
        # Not `known + 1`: what a crash took from the files may have been read already.
        self.last = max(known, now_ms())
        self._recent: deque[Event] = deque(maxlen=RECENT)
        self._news = asyncio.Event()
        self._failed = False

    def append(self, topic: str, data: Mapping[str, Any]) -> int:
        """The number of the new event. Raises ValueError for an unknown topic or too much data."""
        return self.append_all([(topic, data)])

    def append_all(self, items: Sequence[tuple[str, Mapping[str, Any]]]) -> int:
        """Several at once; the number of the last. As `append`."""
        events: list[Event] = []
        lines: dict[str, list[bytes]] = {}
        for number, (topic, data) in enumerate(items, self.last + 1):
            event = Event(number, self._now_ms(), topic, data)
            line = event.line()
            if topic not in TOPICS or len(line) > MAX_EVENT:
                raise ValueError(f"no event of `{topic}` with {len(line)} bytes can be kept")
            events.append(event)
            lines.setdefault(_series_of(topic), []).append(line)
        for name, those in lines.items():
            self._write(name, self.last + 1, those)
        self.last += len(events)
        self._recent.extend(events)
        news, self._news = self._news, asyncio.Event()
        news.set()
        return self.last

    def _write(self, name: str, first: int, lines: list[bytes]) -> None:
        """A full disk takes the replay of old events, not those who watch now."""
        try:
            self._series[name].write(first, lines)
            self._failed = False
        except OSError as error:
            if not self._failed:
                print(f"exeat: events are not kept: {error}", file=sys.stderr, flush=True)
            self._failed = True

    def since(self, after: int, topics: Collection[str] = TOPICS, limit: int = PAGE) -> Page:
        """What came after event `after` (0: all that is kept), oldest first, at most `limit`."""
        if after >= (self._recent[0].id - 1 if self._recent else self.last):
            found = [event for event in self._recent if event.id > after and event.topic in topics][:limit]
            return Page(found, self._next(found, limit), False)
        kept = read(self._folder, after, topics, limit)
        return Page(kept.events, self._next(kept.events, limit), kept.lost)

    def _next(self, found: Sequence[Event], limit: int) -> int:
        return found[-1].id if len(found) == limit else self.last

    async def wait(self, after: int) -> None:
        """Until there is an event after `after`, of whatever topic."""
        while self.last <= after:
            await self._news.wait()


class Follower:
    """Reads the events of a folder that another process writes, as they come."""

    def __init__(self, folder: Path, after: int | None, topics: Collection[str] = TOPICS) -> None:
        """From behind event `after`; None: only what is still to come."""
        self._folder = folder
        self._topics = topics
        self._after = newest(folder) if after is None else after
        self._places: dict[str, tuple[int, int]] = {}  # of a series: first number of a file, bytes read of it

    def poll(self) -> list[Event]:
        """What is new, oldest first. Raises OSError."""
        found = [event for name in _wanted(self._topics) for event in self._new(name)]
        return sorted((e for e in found if e.id > self._after and e.topic in self._topics), key=_number)

    def _new(self, name: str) -> Iterator[Event]:
        files = _files(self._folder, name)
        start, offset = self._places.get(name, (_file_of(files, self._after), 0))
        for first, path in files:
            if first < start:
                continue
            at = offset if first == start else 0
            for line in _lines(path, at):
                at += len(line)
                if (event := _event(line)) is not None:
                    yield event
            self._places[name] = first, at


def read(folder: Path, after: int, topics: Collection[str] = TOPICS, limit: int = PAGE) -> Page:
    """As `Journal.since`, from the files. Raises OSError."""
    found: list[Event] = []
    lost = False
    for name in _wanted(topics):
        files = _files(folder, name)
        start = _file_of(files, after)
        # Nobody knows what a dropped file held; the one before the first that is there may have been wanted.
        lost |= bool(after and files and after + 1 < files[0][0] and len(files) >= FILES[name])
        mine: list[Event] = []
        for first, path in files:
            if first >= start and len(mine) < limit:
                events = (_event(line) for line in _lines(path, 0))
                mine += [each for each in events if each and each.id > after and each.topic in topics]
        found += mine[:limit]
    found.sort(key=_number)
    return Page(found[:limit], found[:limit][-1].id if found else after, lost)


class _Series:
    """The files of one kind: `NAME-FIRST.jsonl`, where FIRST is the number of the first event in it."""

    def __init__(self, folder: Path, name: str, file_bytes: int) -> None:
        self._folder, self._name, self._most = folder, name, file_bytes
        self._path: Path | None = None
        self._size = 0
        files = _files(folder, name)
        self.last = _last_of(files)
        if files:  # of the newest, cut what a crash left of a line
            self._path = files[-1][1]
            self._size = sum(map(len, _lines(self._path, 0)))
            os.truncate(self._path, self._size)

    def write(self, first: int, lines: list[bytes]) -> None:
        """Append whole lines; `first` is the number of the first. Raises OSError: nothing is kept of them."""
        data = b"".join(lines)
        if self._path is None or self._size + len(data) > self._most:
            self._path, self._size = self._folder / f"{self._name}-{first:020d}.jsonl", 0
            self._drop_old()
        with open(self._path, "ab", buffering=0) as file:
            written = file.write(data)
            if written != len(data):
                os.ftruncate(file.fileno(), self._size)
                raise OSError("no room")
        self._size += len(data)

    def _drop_old(self) -> None:
        for _, path in _files(self._folder, self._name)[: -(FILES[self._name] - 1)]:
            path.unlink(missing_ok=True)


def _series_of(topic: str) -> str:
    return "busy" if topic in BUSY else "quiet"


def _wanted(topics: Collection[str]) -> list[str]:
    return sorted({_series_of(topic) for topic in topics})


def _files(folder: Path, name: str) -> list[tuple[int, Path]]:
    """(number of its first event, path) of each file, oldest first."""
    return sorted((int(path.stem.rpartition("-")[2]), path) for path in folder.glob(f"{name}-*.jsonl"))


def _file_of(files: list[tuple[int, Path]], after: int) -> int:
    """The first number of the file in which what follows event `after` begins."""
    return max((first for first, _ in files if first <= after + 1), default=0)


def _lines(path: Path, offset: int) -> list[bytes]:
    """The whole lines from `offset` on; none if the file was dropped meanwhile."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return []
    return data[: data.rfind(b"\n") + 1].splitlines(keepends=True)


def _event(line: bytes) -> Event | None:
    """None for a line that is not ours: a disk may come back with anything."""
    try:
        fields = json.loads(line)
        event = Event(fields["id"], fields["at_ms"], fields["topic"], fields["data"])
    except (ValueError, LookupError, TypeError):
        return None
    return event if type(event.id) is int and event.topic in TOPICS else None


def newest(folder: Path) -> int:
    """The number of the newest event that is kept."""
    return max(_last_of(_files(folder, name)) for name in FILES)


def _last_of(files: list[tuple[int, Path]]) -> int:
    for first, path in reversed(files):
        if lines := _lines(path, 0):
            return max([first - 1, *(event.id for line in lines if (event := _event(line)))])
    return 0


def _number(event: Event) -> int:
    return event.id
