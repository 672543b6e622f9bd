"""Counts as Prometheus reads them: text exposition format 0.0.4, through prometheus-client."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from exeat.appliance.metrics.table import METRICS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client.metrics_core import Metric as Family

    from exeat.appliance.metrics.table import Metric

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
PREFIX: Final = "exeat_"


class _Once(Collector):
    """What was counted up to one moment."""

    def __init__(self, rows: Mapping[str, list[Any]]) -> None:
        self._rows = rows

    def collect(self) -> Iterator[Family]:
        for name, metric in METRICS.items():
            if rows := self._rows.get(name):
                yield _family(name, metric, rows)


def exposition(*sources: Mapping[str, list[Any]]) -> bytes:
    """`sources` map names of `table.METRICS` to rows.

    A row is [labels, value], and of a histogram [labels, counts, seconds].
    """
    joined: dict[str, list[Any]] = {}
    for source in sources:
        for name, rows in source.items():
            joined.setdefault(name, []).extend(rows)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once(joined))
    return generate_latest(registry)


def _family(name: str, metric: Metric, rows: list[Any]) -> Family:
    if metric.type == "histogram":
        times = HistogramMetricFamily(PREFIX + name, metric.help, labels=metric.labels)
        for labels, counts, seconds in rows:
            above = zip([*map(str, metric.bounds), "+Inf"], accumulate(counts), strict=True)
            times.add_metric(labels, [(bound, float(count)) for bound, count in above], seconds)
        return times
    kind = CounterMetricFamily if metric.type == "counter" else GaugeMetricFamily
    family = kind(PREFIX + name, metric.help, labels=metric.labels)
    for labels, value in rows:
        family.add_metric(labels, value)
    return family
