"""Exemplars: for each bucket of a histogram the trace of the last request in it that somebody keeps the spans of.

Workers exchange theirs through files in the folder that they share. Knows nothing of Prometheus.
"""

from __future__ import annotations

import contextlib
import os
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from service.context import RequestContext
from service.wire import read, write

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
        self._directory = directory
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
        if self._directory is None or not self._is_changed or now - self._published_at < PUBLISH_INTERVAL_S:
            return
        self._is_changed, self._published_at = False, now
        file = file_of(os.getpid(), self._directory)
        aside = file.with_suffix(".new")
        with contextlib.suppress(OSError):  # the folder goes when the server ends
            aside.write_bytes(write([[list(bucket), list(exemplar)] for bucket, exemplar in self._own.items()]))
            aside.replace(file)

    def collect(self) -> dict[Bucket, Exemplar]:
        """The latest of each bucket, over all workers. May be called on a thread."""
        found = dict(self._own)
        for bucket, exemplar in self._read_others():
            if bucket not in found or found[bucket].time < exemplar.time:
                found[bucket] = exemplar
        return found

    def _read_others(self) -> Iterator[tuple[Bucket, Exemplar]]:
        if self._directory is None:
            return
        for file in self._directory.glob("exemplars_*.json"):
            if file == file_of(os.getpid(), self._directory):
                continue
            with contextlib.suppress(OSError):  # the worker has ended
                for (histogram, labels, number), exemplar in read(file.read_bytes()):
                    yield Bucket(histogram, tuple(labels), number), Exemplar(*exemplar)


def file_of(pid: int, directory: Path) -> Path:
    """Where a worker shows its exemplars."""
    return directory / f"exemplars_{pid}.json"
