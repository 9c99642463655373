"""The board: a registry of every metric of the table, and the three ways to write on it.

Each exporter has a board of its own, so that two of them in a process never meet.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from cluster.metrics.table import BY_NAME, COUNTER, HISTOGRAM, METRICS, SECONDS_BUCKETS, Metric


class Board:
    """Every metric, at its beginning.  Series of labels known beforehand exist and are 0."""

    def __init__(self) -> None:
        # A creation time for each series would double their number.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry(auto_describe=False)
        self._collectors = {metric.name: _collector(metric, self.registry) for metric in METRICS}
        self._series: dict[tuple[str, tuple[str, ...]], Any] = {}
        for metric in METRICS:
            if metric.values and all(metric.values):
                for values in itertools.product(*metric.values):
                    self._collectors[metric.name].labels(*values)

    def add(self, name: str, amount: float, *labels: str) -> None:
        """Raise a counter; labels in the order of the table.  0 makes the series exist."""
        self._at(name, labels).inc(amount)

    def set(self, name: str, value: float, *labels: str) -> None:
        """Set a gauge."""
        self._at(name, labels).set(value)

    def observe(self, name: str, values: Iterable[float], *labels: str) -> None:
        """Count ``values`` into a histogram."""
        histogram = self._at(name, labels)
        for value in values:
            histogram.observe(value)

    def _at(self, name: str, labels: tuple[str, ...]) -> Any:
        series = self._series.get((name, labels))
        if series is None:
            series = self._collectors[name]
            if BY_NAME[name].labels:
                series = series.labels(*labels)
            self._series[name, labels] = series
        return series


class Totals:
    """Counters of one piece of work, told as totals: what is new since last time is added.

    Two pieces of work that write the same series add up.
    """

    def __init__(self, board: Board) -> None:
        self._board = board
        self._told: dict[tuple[str, tuple[str, ...]], float] = {}

    def raise_to(self, name: str, total: float, *labels: str) -> None:
        """This work's part of a counter is ``total`` now; nothing when it is not more."""
        key = name, labels
        before = self._told.get(key)
        if before is None or total > before:
            self._board.add(name, total - (before or 0.0), *labels)
            self._told[key] = total


def _collector(metric: Metric, registry: CollectorRegistry) -> Any:
    common = {"labelnames": metric.labels, "unit": metric.unit, "registry": registry}
    if metric.kind == HISTOGRAM:
        return Histogram(metric.name, metric.help, buckets=SECONDS_BUCKETS, **common)  # type: ignore[arg-type]
    kind = Counter if metric.kind == COUNTER else Gauge
    return kind(metric.name, metric.help, **common)  # type: ignore[arg-type]
