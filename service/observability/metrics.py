"""The metrics of a process as the rest of the server sees them: events in, a scrape and the statistics out.

Implements the observers that the other folders call. Decides nothing, and is called on the event loop only. Names and help
texts are in `prometheus.py`, the series of each route and model in `meters.py`. What was collected is handed on every
`FLUSH_INTERVAL_S` and at each scrape.
"""

from __future__ import annotations

import asyncio
import platform
from pathlib import Path
from typing import Any, get_args

from service.context import CURRENT
from service.errors import ConnectionReason, InvalidReason, Outcome, RateScope
from service.observability.meters import DEFAULT_API, UNKNOWN, HttpMeter, LoadedModel, ModelMeter, Recorders, RequestMeter
from service.observability.pending import PendingCounter, PendingSeries
from service.observability.prometheus import LOOP_LAG_SECONDS, REQUEST_DURATION, SECONDS, Exposition, ReadDrift, find_add_counts
from service.observability.statistics import sum_statistics

FLUSH_INTERVAL_S = 0.25
CONNECTION_REASONS: tuple[ConnectionReason, ...] = get_args(ConnectionReason)
# Keys that were ever limited, by name; those that come later share a name.
MAX_KEY_SERIES = 1000
OTHER_KEYS = "_other"


class Metrics:
    """The registry of one process, or of one worker among several that share `directory`."""

    def __init__(self, *, version: str, onnxruntime: str, directory: Path | None = None, read_drift: ReadDrift = dict) -> None:
        """`read_drift` gives the drift of each version of a model that is watched, over all workers."""
        self.has_workers = directory is not None
        self._http: dict[str, HttpMeter] = {}
        self._requests: dict[tuple[str, str, str], RequestMeter] = {}
        self._models: dict[tuple[str, str], ModelMeter] = {}
        self._exposition = Exposition(directory, self._is_served, read_drift)
        self.sequences = self._exposition.sequences
        """Those whose states are kept."""
        self._families = families = self._exposition.families
        self._pending = pending = PendingSeries(SECONDS, find_add_counts())
        self._recorders = Recorders(families, pending, self._exposition.exemplars)
        self._connections_closed = {
            reason: pending.add_counter(families.connections_closed.labels(reason)) for reason in CONNECTION_REASONS
        }
        self._loop_lag = pending.add_histogram(families.loop_lag, bounds=LOOP_LAG_SECONDS)
        self._access_log_drops = pending.add_counter(families.access_log_drops)
        self._rate_limited: dict[tuple[str, str], PendingCounter] = {}
        self.rate_limited("address", "", 0)
        families.build_info.labels(version, onnxruntime, platform.python_version()).set(1)
        self.request_meter(UNKNOWN, UNKNOWN)
        self.flush()

    def http(self, route: str) -> HttpMeter:
        """The meter of one route template."""
        if route not in self._http:
            self._http[route] = HttpMeter(self._recorders, route)
        return self._http[route]

    def model(self, name: str, version: str) -> ModelMeter:
        """The meter of one model version; its series start at 0."""
        if (name, version) not in self._models:
            self.request_meter(name, version)
            self._models[name, version] = ModelMeter(self._recorders, name, version)
        return self._models[name, version]

    def request_meter(self, name: str, version: str, api: str = DEFAULT_API) -> RequestMeter:
        """The meter of the requests to one model version, or to none (`_unknown`), through one API."""
        key = name, version, api
        if key not in self._requests:
            self._requests[key] = RequestMeter(self._recorders, *key)
        return self._requests[key]

    def request_finished(
        self, api: str, model: str, version: str, outcome: Outcome, duration_s: float, reason: InvalidReason | None
    ) -> None:
        """One request to predict is over; `reason` says what was wrong with an invalid one."""
        meter = self.request_meter(model, version, api)
        meter.outcomes[outcome].pending += 1
        if meter.duration is not None:
            meter.duration.observe(duration_s)
            context = CURRENT.get()
            if context is not None and context.is_sampled:
                self._exposition.exemplars.put(REQUEST_DURATION, (model, version), duration_s, context)
        if reason is not None:
            meter.reasons[reason].pending += 1

    def rate_limited(self, scope: RateScope, key: str, count: int = 1) -> None:
        """So many requests were beyond the rate of the key of this name, or of an address (`key` is then empty)."""
        labels = scope, key
        if labels not in self._rate_limited:
            if len(self._rate_limited) >= MAX_KEY_SERIES:
                labels = scope, OTHER_KEYS
            self._rate_limited.setdefault(labels, self._pending.add_counter(self._families.rate_limited_requests.labels(*labels)))
        self._rate_limited[labels].pending += count

    def connection_closed(self, reason: ConnectionReason) -> None:
        """The server refused or closed a connection."""
        self._connections_closed[reason].pending += 1

    def access_log_dropped(self, num_lines: int) -> None:
        """So many lines of the access log were not written."""
        self._access_log_drops.pending += num_lines

    def observe_loop_lag(self, lag_s: float) -> None:
        """A timer of the event loop was so much late."""
        self._loop_lag.observe(lag_s)

    def observer_of(self, name: str, version: str) -> ModelMeter:
        """The observer of a model that is about to be loaded."""
        return self.model(name, version)

    def loaded(self, model: LoadedModel, duration_s: float) -> None:
        """The model is READY. Counts too whether its graph runs on another provider than requested."""
        self.model(model.name, model.version).loaded(model, duration_s)
        if model.can_stream:
            self.sequences.add_model(model.name, model.version)
        if model.runtime.fallback is not None:
            self._families.fallbacks.labels(model.runtime.requested, model.runtime.provider).inc()

    def unavailable(self, name: str, version: str, reason: str, duration_s: float) -> None:
        """The folder cannot be served; the reason is in the log and in `GET /models`, a label could not be bounded."""
        self.model(name, version).unavailable(duration_s)

    def update_failed(self, name: str, version: str) -> None:
        """Changed files of a version cannot be served; what they were before goes on being served."""
        self._families.loads.labels(name, version, "error").inc()

    def unloaded(self, name: str, version: str) -> None:
        """The version is served no more: its series end, also those that other workers wrote."""
        meter = self._models.pop((name, version), None)
        if meter is None:
            return
        ended = list(meter.series)
        for key in [key for key in self._requests if key[:2] == (name, version)]:
            ended += self._requests.pop(key).series
        self._pending.remove(ended)
        meter.end()
        self._families.forget_model(name, version)

    def _is_served(self, name: str, version: str) -> bool:
        return name == UNKNOWN or (name, version) in self._models

    def flush(self) -> None:
        """Hand what was collected to prometheus_client."""
        self._pending.flush()
        self._exposition.flush()

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The body of a scrape and its content type: OpenMetrics where the scraper accepts it."""
        self.flush()
        return self.encode(accept)

    async def read_statistics(self) -> dict[tuple[str, str], dict[str, Any]]:
        """(model, version) → counts and times since the start, of all workers."""
        self.flush()
        return await asyncio.to_thread(lambda: sum_statistics(self._exposition.collect()))

    def content_type(self, accept: str) -> str:
        """The content type of a scrape with this Accept header."""
        return self._exposition.content_type(accept)

    def encode(self, accept: str) -> tuple[bytes, str]:
        """A scrape without what has been collected since the last flush; may be called on a thread."""
        return self._exposition.encode(accept)
