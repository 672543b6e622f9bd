"""What the other processes counted: checked, added up over their restarts, and as rows.

Proxy and guard speak to the outside, so nothing they say is believed to be what it should: only names of
the table, labels of the right number that are short words, whole numbers, and so many series.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, Final

from exeat.appliance.metrics.table import METRICS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from exeat.appliance.metrics.table import Type

Series = tuple[str, ...]
Rows = dict[str, list[Any]]

MAX_SERIES: Final = 10_000  # of one process
_LABEL: Final = re.compile(r"[\w.*:/ -]{0,64}", re.ASCII)
_MOST: Final = 1 << 63


class Heard:
    """The counts of one process. `before` are those of its earlier lives."""

    def __init__(self) -> None:
        self.generation = 0
        self._run: object = None
        self._counts: dict[Series, int] = {}
        self._before: dict[Series, int] = {}
        self._times: dict[Series, tuple[list[int], float]] = {}
        self._times_before: dict[Series, tuple[list[int], float]] = {}
        self._gauges: dict[Series, float] = {}

    def take(self, message: Mapping[str, Any]) -> None:
        """A `counts` message (docs/architecture.md); what is not understood of it is left out."""
        if message.get("run") != self._run:
            self._run = message.get("run")
            self._turn_over()
        generation = message.get("generation")
        self.generation = generation if type(generation) is int else 0
        for series, value in _items(message.get("counts"), "counter", 1):
            if _whole(value) and self._room(self._counts, series):
                self._counts[series] = value
        gauges = _items(message.get("gauges"), "gauge", 1)
        self._gauges = {series: float(value) for series, value in gauges if _number(value)}
        for series, counts, seconds in _items(message.get("times"), "histogram", 2):
            bounds = METRICS[series[0]].bounds
            fits = isinstance(counts, list) and len(counts) == len(bounds) + 1 and all(map(_whole, counts))
            if fits and _number(seconds) and self._room(self._times, series):
                self._times[series] = counts, float(seconds)

    def _turn_over(self) -> None:
        """Another process says it now, and counts from 0."""
        for series, value in self._counts.items():
            self._before[series] = self._before.get(series, 0) + value
        for series, times in self._times.items():
            self._times_before[series] = _sum(times, self._times_before.get(series))
        self._counts, self._times, self._gauges = {}, {}, {}

    @staticmethod
    def _room(known: Mapping[Series, object], series: Series) -> bool:
        return series in known or len(known) < MAX_SERIES

    def rows(self, *, alive: bool) -> Rows:
        """As `metrics.text.exposition` takes them; what stands at a value now only of one that is `alive`."""
        found: Rows = {}
        for series in self._counts.keys() | self._before.keys():
            value = self._counts.get(series, 0) + self._before.get(series, 0)
            found.setdefault(series[0], []).append([list(series[1:]), value])
        for series in self._times.keys() | self._times_before.keys():
            now, before = self._times.get(series), self._times_before.get(series)
            counts, seconds = _sum(now, before) if now else before or ([], 0.0)
            found.setdefault(series[0], []).append([list(series[1:]), counts, seconds])
        for series, level in self._gauges.items() if alive else ():
            found.setdefault(series[0], []).append([list(series[1:]), level])
        return found


def _items(value: object, kind: Type, values: int) -> Iterator[tuple[Any, ...]]:
    """(series, values) of each item that names a metric of this kind and has its labels."""
    for item in value if isinstance(value, list) else ():
        if not isinstance(item, list | tuple) or len(item) != 2 + values:
            continue
        name, labels = item[:2]
        metric = METRICS.get(name) if isinstance(name, str) else None
        if metric is None or metric.type != kind or not isinstance(labels, list):
            continue
        if len(labels) == len(metric.labels) and all(map(_is_label, labels)):
            yield (name, *labels), *item[2:]


def _is_label(value: object) -> bool:
    return isinstance(value, str) and _LABEL.fullmatch(value) is not None


def _whole(value: object) -> bool:
    return type(value) is int and 0 <= value < _MOST


def _number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) < _MOST  # type: ignore[arg-type]


def _sum(now: tuple[list[int], float], before: tuple[list[int], float] | None) -> tuple[list[int], float]:
    if before is None:
        return now
    return [a + b for a, b in zip(now[0], before[0], strict=True)], now[1] + before[1]
