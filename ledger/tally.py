"""What a process counts, for metrics: plain integers where things happen, told to control once a second.

Nothing here is evidence, and nothing waits for it. A series is a name and its label values; the first
label is the project wherever there is one. Names without the `exeat_` before them; what they mean stands in
`appliance/metrics/table.py`. No label is ever a host, an address or a lease: those are the ledger's.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from exeat.ledger.ipc import Message

Series = tuple[str, ...]

TELL_S: Final = 1.0
OTHER: Final = "other"  # the project of those that came when there were MAX_PROJECTS
MAX_PROJECTS: Final = 100
MAX_SERIES: Final = 5000  # of one process; new ones beyond them are not counted

# Upper bounds in seconds, as Prometheus has them (`le`): of what a machine does, and of what people do.
MACHINE: Final = (
    0.00002,
    0.00005,
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
)
PEOPLE: Final = (1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 1800.0, 3600.0, 14400.0, 86400.0)


class Times:
    """A histogram: how often each stretch was seen (the last one has no upper bound), and the sum."""

    __slots__ = ("_bounds", "counts", "seconds")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.seconds = 0.0

    def add(self, seconds: float) -> None:
        """One more; a clock that was set back counts as no time."""
        if seconds < 0.0:
            seconds = 0.0
        self.counts[bisect_left(self._bounds, seconds)] += 1
        self.seconds += seconds


class Traffic:
    """What the flows of a project pass and how many live: counted so often that it is no series by itself."""

    __slots__ = ("back", "live", "out")

    def __init__(self) -> None:
        self.out = self.back = self.live = 0


class Tally:
    """The counts of one process since it started. For one thread."""

    def __init__(self) -> None:
        self._traffic: dict[str, Traffic] = {}
        self.counts: dict[Series, int] = {}
        self.gauges: dict[Series, float] = {}
        self.times: dict[Series, Times] = {}
        self._projects: set[str] = set()
        self._told: dict[Series, int] = {}
        self._by = 0  # the connection on which they were told
        self._run = time.clock_gettime_ns(time.CLOCK_BOOTTIME)  # counts begin at 0 in each process

    def count(self, *series: str, by: int = 1) -> None:
        """Add to a series whose first label is a project."""
        known = self.counts.get(series)
        if known is None:
            named = self._capped(series)
            if named not in self.counts and len(self.counts) >= MAX_SERIES:
                return
            self.counts[named] = self.counts.get(named, 0) + by
        else:
            self.counts[series] = known + by

    def add(self, *series: str, by: int = 1) -> None:
        """Add to a series that no project stands in."""
        self.counts[series] = self.counts.get(series, 0) + by

    def traffic(self, project: str) -> Traffic:
        """Of a project, to be added to."""
        known = self._traffic.get(project)
        if known is None:
            name = self._capped(("", project))[1]
            known = self._traffic.setdefault(name, Traffic())
        return known

    def _capped(self, series: Series) -> Series:
        name, project, *rest = series
        if project not in self._projects and len(self._projects) >= MAX_PROJECTS:
            return name, OTHER, *rest
        self._projects.add(project)
        return series

    def time(self, *series: str, bounds: tuple[float, ...] = MACHINE) -> Times:
        """The histogram of a series, to be kept by whoever adds to it often."""
        times = self.times.get(series)
        if times is None:
            times = self.times[series] = Times(bounds)
        return times

    def forget(self) -> None:
        """The next message says everything again."""
        self._told.clear()

    def message(self, connection: int) -> Message:
        """For control: what has changed since the last message on this connection, all of it on a new one."""
        for project, traffic in self._traffic.items():
            self.counts["bytes_total", project, "out"] = traffic.out
            self.counts["bytes_total", project, "in"] = traffic.back
            self.gauges["connections_active", project] = traffic.live
        if connection != self._by:
            self._by = connection
            self._told.clear()
        counts = [(series, value) for series, value in self.counts.items() if self._told.get(series) != value]
        self._told.update(counts)
        times = [(*split(series), times.counts, times.seconds) for series, times in self.times.items()]
        return {
            "t": "counts",
            "run": self._run,
            "counts": [(*split(series), value) for series, value in counts],
            "gauges": [(*split(series), value) for series, value in self.gauges.items()],
            "times": times,
        }


def split(series: Series) -> tuple[str, list[str]]:
    """Name and labels, as a message has them."""
    return series[0], list(series[1:])


class Teller:
    """Tells a tally every TELL_S; `about` adds to the message, and may set gauges before it is made."""

    def __init__(
        self,
        call_later: Callable[[float, Callable[[], None]], Any],
        tally: Tally,
        send: Callable[[Message], bool],
        connection: Callable[[], int],
        about: Callable[[], Mapping[str, Any]],
    ) -> None:
        self._call_later, self._tally, self._send = call_later, tally, send
        self._connection, self._about = connection, about
        call_later(TELL_S, self._tell)

    def _tell(self) -> None:
        self._call_later(TELL_S, self._tell)
        connection = self._connection()
        if connection:
            about = self._about()
            self._send({**self._tally.message(connection), **about})
