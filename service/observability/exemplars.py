"""Exemplars: for each bucket of a histogram the trace of the last request in it that somebody keeps the spans of.

Workers exchange theirs through files in the folder that they share. Knows nothing of Prometheus.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from service.context import RequestContext
from service.observability.worker_files import WorkerFiles

PUBLISH_INTERVAL_S = 1.0


class Bucket(NamedTuple):
    """One bucket of one series: the histogram, the values of its labels in their order, the number of the bucket."""

    histogram: str
    labels: tuple[str, ...]
    number: int


class Exemplar(NamedTuple):
    """One observed value, when it was observed (Unix time), and the span that it belongs to."""

    value: float
    time: float
    trace_id: str
    span_id: str


class ExemplarStore:
    """The exemplars of this process, and of all that share `directory`. All methods but `collect` belong to the event loop."""

    def __init__(self, bounds: Sequence[float], directory: Path | None = None, now: Callable[[], float] = time.time) -> None:
        """`bounds` are the upper ones of the buckets, without infinity."""
        self._bounds = bounds
        self._files = WorkerFiles("exemplars", directory)
        self._now = now
        self._own: dict[Bucket, Exemplar] = {}
        self._is_changed = False
        self._published_at = 0.0

    def put(self, histogram: str, labels: tuple[str, ...], value: float, context: RequestContext) -> None:
        """A value was observed for a request whose spans are kept."""
        bucket = Bucket(histogram, labels, bisect_left(self._bounds, value))
        self._own[bucket] = Exemplar(value, self._now(), context.trace_id, context.span_id)
        self._is_changed = True

    def publish(self) -> None:
        """Show the other workers what is new, at most every PUBLISH_INTERVAL_S."""
        now = self._now()
        if not self._files.is_shared or not self._is_changed or now - self._published_at < PUBLISH_INTERVAL_S:
            return
        self._is_changed, self._published_at = False, now
        self._files.write([[list(bucket), list(exemplar)] for bucket, exemplar in self._own.items()])

    def collect(self) -> dict[Bucket, Exemplar]:
        """The latest of each bucket, over all workers. May be called on a thread."""
        found = dict(self._own)
        for entries in self._files.read_others():
            for (histogram, labels, number), values in entries:
                bucket, exemplar = Bucket(histogram, tuple(labels), number), Exemplar(*values)
                if bucket not in found or found[bucket].time < exemplar.time:
                    found[bucket] = exemplar
        return found
