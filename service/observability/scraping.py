"""Scrapes of the metrics: rendered on a thread, at most once per interval and form; all who come meanwhile get the same.

Knows nothing of Prometheus. Is called on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple, Protocol

SCRAPE_INTERVAL_S = 1.0

Scrape = tuple[bytes, str]
"""The body of the answer and its content type."""


class RenderedMetrics(Protocol):
    """The metrics of this process, or of all workers."""

    def flush(self) -> None:
        """Bring them up to date, on the event loop."""
        ...

    def content_type(self, accept: str) -> str:
        """The form that this Accept header gets, one of a few."""
        ...

    def encode(self, accept: str) -> Scrape:
        """What is sent. With several workers and many models it takes tens of milliseconds; runs on a thread."""
        ...


class _Rendering(NamedTuple):
    began_at: float
    task: asyncio.Task[Scrape]


class ScrapeCache:
    """One rendering per form of the metrics, for `interval_s` from its begin on."""

    def __init__(self, metrics: RenderedMetrics, clock: Callable[[], float], interval_s: float = SCRAPE_INTERVAL_S) -> None:
        self._metrics = metrics
        self._clock = clock
        self._interval_s = interval_s
        self._renderings: dict[str, _Rendering] = {}

    async def render(self, accept: str) -> Scrape:
        """The metrics as they were less than `interval_s` ago, or later where rendering them takes longer than that."""
        content_type = self._metrics.content_type(accept)
        rendering = self._renderings.get(content_type)
        if rendering is None or self._is_over(rendering):
            self._metrics.flush()
            task = asyncio.create_task(asyncio.to_thread(self._metrics.encode, accept))
            rendering = self._renderings[content_type] = _Rendering(self._clock(), task)
        return await asyncio.shield(rendering.task)  # it is not of the one client that may leave

    def _is_over(self, rendering: _Rendering) -> bool:
        if not rendering.task.done():
            return False
        has_failed = rendering.task.cancelled() or rendering.task.exception() is not None
        return has_failed or self._clock() - rendering.began_at >= self._interval_s
