"""Events since the last flush, in plain numbers, handed to prometheus_client all at once.

One request touches some fifteen series; at 1.3 µs per observed value, 2.6 with several workers, prometheus_client's own would
cost as much as parsing the request; an append costs 0.03, and 0.06 more at the flush. Series are arguments: nothing of it is
imported here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np


class CounterSeries(Protocol):
    """A counter of prometheus_client with its labels."""

    def inc(self, amount: float) -> None: ...


class GaugeSeries(Protocol):
    """A gauge of prometheus_client with its labels."""

    def set(self, value: float) -> None: ...


class PendingCounter:
    """A counter's events since the last flush."""

    __slots__ = ("child", "pending")

    def __init__(self, child: CounterSeries) -> None:
        self.child = child
        self.pending = 0.0

    def flush(self) -> None:
        if self.pending:
            self.child.inc(self.pending)
            self.pending = 0.0


AddCounts = Callable[[Any, Sequence[float], float], None]
"""Adds to a histogram of prometheus_client so many values in each of its buckets, and their sum."""


class PendingHistogram:
    """A histogram's values since the last flush: to observe is to append; they are sorted into buckets all at once.

    Its series begin with the first value: of a thousand models that nobody uses they would be the most of every scrape.
    """

    __slots__ = ("_add_counts", "_histogram", "_labels", "bounds", "child", "observe", "pending")

    def __init__(self, histogram: Any, labels: Sequence[str], bounds: Sequence[float], add_counts: AddCounts | None) -> None:
        """Without `add_counts` each value is observed by itself."""
        self._add_counts = add_counts
        self._histogram = histogram
        self._labels = labels
        self.child: Any = None
        self.bounds = np.array(bounds, np.float64)
        self.pending: list[float] = []
        self.observe: Callable[[float], None] = self.pending.append

    def flush(self) -> None:
        if not self.pending:
            return
        if self.child is None:
            self.child = self._histogram.labels(*self._labels) if self._labels else self._histogram
        if self._add_counts is None:
            for value in self.pending:
                self.child.observe(value)
            self.pending.clear()
            return
        values = np.array(self.pending, np.float64)
        self.pending.clear()
        counts = np.bincount(np.searchsorted(self.bounds, values), minlength=len(self.bounds) + 1).tolist()
        self._add_counts(self.child, counts, float(values.sum()))


class PendingGauge:
    """A gauge's value, handed on when it changed."""

    __slots__ = ("child", "flushed", "value")

    def __init__(self, child: GaugeSeries, value: float = 0.0) -> None:
        self.child = child
        self.value = value
        self.flushed: float | None = None

    def flush(self) -> None:
        if self.value != self.flushed:
            self.flushed = self.value
            self.child.set(self.value)


class OldestItemGauge:
    """The arrival of the item that waits longest, read from the queue at each flush."""

    __slots__ = ("child", "wait_s")

    def __init__(self, child: GaugeSeries, wait_s: Callable[[], float | None]) -> None:
        self.child = child
        self.wait_s = wait_s

    def flush(self) -> None:
        wait_s = self.wait_s()
        self.child.set(0.0 if wait_s is None else time.time() - wait_s)


Pending = PendingCounter | PendingHistogram | PendingGauge | OldestItemGauge


class PendingSeries:
    """Every series that collects events, flushed together."""

    def __init__(self, bounds: Sequence[float], add_counts: AddCounts | None = None) -> None:
        """`bounds` are those of a histogram that names no others, `add_counts` as of PendingHistogram."""
        self._bounds = bounds
        self._add_counts = add_counts
        self._series: list[Pending] = []

    def flush(self) -> None:
        """Hand what was collected to prometheus_client."""
        for series in self._series:
            series.flush()

    def remove(self, ended: Sequence[object]) -> None:
        """Flush these no more."""
        numbers = set(map(id, ended))
        self._series = [series for series in self._series if id(series) not in numbers]

    def add_counter(self, child: CounterSeries) -> PendingCounter:
        counter = PendingCounter(child)
        self._series.append(counter)
        return counter

    def add_histogram(self, histogram: Any, labels: Sequence[str] = (), bounds: Sequence[float] = ()) -> PendingHistogram:
        pending = PendingHistogram(histogram, labels, bounds or self._bounds, self._add_counts)
        self._series.append(pending)
        return pending

    def add_gauge(self, child: GaugeSeries, value: float = 0.0) -> PendingGauge:
        gauge = PendingGauge(child, value)
        self._series.append(gauge)
        return gauge

    def add_oldest_item_gauge(self, child: GaugeSeries, wait_s: Callable[[], float | None]) -> OldestItemGauge:
        gauge = OldestItemGauge(child, wait_s)
        self._series.append(gauge)
        return gauge
