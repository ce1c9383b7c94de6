"""Every Prometheus name, once: what is counted, in which unit, and how it adds up over several worker processes.

Implements the observers that the other folders call. Decides nothing, and is called on the event loop only.

Events are collected in plain numbers and handed to prometheus_client every `FLUSH_INTERVAL_S` and at each scrape. One request
touches some fifteen series; at 1.3 µs per observed value, 2.6 with several workers, prometheus_client's own would cost as much
as parsing the request; an append costs 0.03, and 0.06 more at the flush.
"""

from __future__ import annotations

import asyncio
import platform
import time
import weakref
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    multiprocess,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar as SampleExemplar
from prometheus_client.samples import Sample

from service.context import CURRENT
from service.errors import ConnectionReason, InvalidReason, Outcome, RateScope, ReloadOutcome, RestartReason, SequenceEnd
from service.manifest import Graph
from service.observability.exemplars import Bucket, Exemplar, ExemplarStore, file_of
from service.observability.statistics import sum_statistics

FLUSH_INTERVAL_S = 0.25
UNKNOWN = "_unknown"
DEFAULT_API = "predict"

# The measure itself is off by half a millisecond; from 10 ms on a stall shows in the latency of requests.
LOOP_LAG_SECONDS = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
BYTES = tuple(256 * 4**n for n in range(10))
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
RATIOS = (0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
TIMESTEPS = tuple(2**n for n in range(13))

OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
INVALID_REASONS: tuple[InvalidReason, ...] = get_args(InvalidReason)
CONNECTION_REASONS: tuple[ConnectionReason, ...] = get_args(ConnectionReason)
# Keys that were ever limited, by name; those that come later share a name.
MAX_KEY_SERIES = 1000
OTHER_KEYS = "_other"
RELOADS = ("model_reloads_total", "Changes of what is served while the server runs.", "outcome")
RELOAD_OUTCOMES: tuple[ReloadOutcome, ...] = get_args(ReloadOutcome)
RESTARTS = ("worker_restarts_total", "Worker processes that were replaced.", "reason")
SEQUENCE_ENDS: tuple[SequenceEnd, ...] = get_args(SequenceEnd)
RESTART_REASONS: tuple[RestartReason, ...] = get_args(RestartReason)
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))

COSTS = {
    "overhead": "per run",
    "row": "per row",
    "step": "per time step, however many rows",
    "row_step": "per time step of each row",
}

MODEL = ("model", "version")
HTTP_DURATION, REQUEST_DURATION = "sluice_http_request_duration_seconds", "sluice_inference_request_duration_seconds"
# Histograms that have exemplars, and their labels; all have the buckets of SECONDS.
EXEMPLAR_LABELS = {HTTP_DURATION: ("method", "route"), REQUEST_DURATION: MODEL}

disable_created_metrics()  # type: ignore[no-untyped-call]  # `_created` doubles the number of series and nothing reads it


class RuntimeFacts(Protocol):
    """What runs a graph, and what was requested."""

    @property
    def provider(self) -> str: ...

    @property
    def requested(self) -> str: ...

    @property
    def fallback(self) -> str | None: ...


class CostFacts(Protocol):
    """The cost of a run, in milliseconds."""

    @property
    def overhead_ms(self) -> float: ...

    @property
    def row_ms(self) -> float: ...

    @property
    def step_ms(self) -> float: ...

    @property
    def row_step_ms(self) -> float: ...


class LimitFacts(Protocol):
    """How large batches and the queue may grow."""

    @property
    def max_batch_size(self) -> int: ...

    @property
    def max_padded_steps(self) -> int: ...

    @property
    def max_queue_size(self) -> int: ...

    @property
    def cost(self) -> CostFacts: ...


class LoadedModel(Protocol):
    """A model that is READY, as the metrics see it."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def task(self) -> str: ...

    @property
    def horizon(self) -> int | None: ...

    @property
    def graph(self) -> Graph: ...

    @property
    def runtime(self) -> RuntimeFacts: ...

    @property
    def limits(self) -> LimitFacts: ...

    @property
    def can_stream(self) -> bool: ...

    @property
    def oldest_wait_s(self) -> float | None: ...


class PendingCounter:
    """A counter's events since the last flush."""

    __slots__ = ("child", "pending")

    def __init__(self, child: Counter) -> None:
        self.child = child
        self.pending = 0.0

    def flush(self) -> None:
        if self.pending:
            self.child.inc(self.pending)
            self.pending = 0.0


class PendingHistogram:
    """A histogram's values since the last flush: to observe is to append; they are sorted into buckets all at once.

    Its series begin with the first value: of a thousand models that nobody uses they would be the most of every scrape.
    """

    __slots__ = ("_histogram", "_labels", "bounds", "child", "observe", "pending")

    def __init__(self, histogram: Histogram, labels: Sequence[str], bounds: Sequence[float]) -> None:
        self._histogram = histogram
        self._labels = labels
        self.child: Histogram | None = None
        self.bounds = np.array(bounds, np.float64)
        self.pending: list[float] = []
        self.observe: Callable[[float], None] = self.pending.append

    def flush(self) -> None:
        if not self.pending:
            return
        if self.child is None:
            self.child = self._histogram.labels(*self._labels) if self._labels else self._histogram
        values = np.array(self.pending, np.float64)
        self.pending.clear()
        counts = np.bincount(np.searchsorted(self.bounds, values), minlength=len(self.bounds) + 1).tolist()
        # prometheus_client has no call for many values at once. Its buckets are not cumulative inside.
        for bucket, count in zip(self.child._buckets, counts, strict=True):
            if count:
                bucket.inc(count)
        self.child._sum.inc(float(values.sum()))


class PendingGauge:
    """A gauge's value, handed on when it changed."""

    __slots__ = ("child", "flushed", "value")

    def __init__(self, child: Gauge, value: float = 0.0) -> None:
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

    def __init__(self, child: Gauge, wait_s: Callable[[], float | None]) -> None:
        self.child = child
        self.wait_s = wait_s

    def flush(self) -> None:
        wait_s = self.wait_s()
        self.child.set(0.0 if wait_s is None else time.time() - wait_s)


class Metrics:
    """The registry of one process, or of one worker among several that share `directory`."""

    def __init__(self, *, version: str, onnxruntime: str, directory: Path | None = None) -> None:
        self.has_workers = directory is not None
        self._flushables: list[PendingCounter | PendingHistogram | PendingGauge | OldestItemGauge] = []
        self._registry = CollectorRegistry()
        self._http: dict[str, HttpMeter] = {}
        self._requests: dict[tuple[str, str, str], RequestMeter] = {}
        self._models: dict[tuple[str, str], ModelMeter] = {}
        registry = self._registry

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"sluice_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str, mode: Any = "livesum") -> Gauge:
            return Gauge(f"sluice_{name}", text, labels, registry=registry, multiprocess_mode=mode)

        def histogram(name: str, text: str, *labels: str, buckets: Sequence[float] = SECONDS) -> Histogram:
            return Histogram(f"sluice_{name}", text, labels, registry=registry, buckets=buckets)

        self.http_requests = counter("http_requests_total", "HTTP requests answered.", "method", "route", "status")
        self.http_duration = histogram(
            "http_request_duration_seconds",
            "Time to answer, from the end of the request's head.",
            "method",
            "route",
        )
        self.http_in_flight = gauge("http_requests_in_flight", "HTTP requests being answered now.", "route")
        self.http_request_size = histogram("http_request_size_bytes", "Size of request bodies.", "route", buckets=BYTES)
        self.http_response_size = histogram("http_response_size_bytes", "Size of response bodies.", "route", buckets=BYTES)

        self.connections_closed = counter(
            "http_connections_closed_total", "Connections that the server refused or closed, by the reason.", "reason"
        )
        self._connections_closed = {
            reason: self.add_counter(self.connections_closed.labels(reason)) for reason in CONNECTION_REASONS
        }

        self.requests = counter("inference_requests_total", "Requests to predict, by outcome.", *MODEL, "outcome", "api")
        self.invalid = counter("invalid_inputs_total", "Requests refused for what they held.", *MODEL, "reason")
        self.rows = counter("inference_rows_total", "Rows that graphs ran.", *MODEL)
        self.timesteps = counter("inference_timesteps_total", "Time steps that graphs ran, without padding.", *MODEL)
        self.executions = counter("batch_executions_total", "Batches that graphs ran.", *MODEL)
        self.duration = histogram(
            "inference_request_duration_seconds", "Time of a request to predict, from the end of its body.", *MODEL
        )
        self.queue = histogram("inference_queue_duration_seconds", "Time an item waited for its batch.", *MODEL)
        self.preprocess = histogram("inference_preprocess_duration_seconds", "Time to turn instances into tensors.", *MODEL)
        self.postprocess = histogram("inference_postprocess_duration_seconds", "Time to turn tensors into predictions.", *MODEL)
        self.compute = histogram("inference_compute_duration_seconds", "Time a graph ran one batch.", *MODEL, "provider")
        self.batch_rows = histogram("batch_size_rows", "Rows of a batch.", *MODEL, buckets=ROWS)
        self.padding = histogram("batch_padding_ratio", "Padded time steps of a batch, of all its steps.", *MODEL, buckets=RATIOS)
        self.input_length = histogram("input_length_timesteps", "Time steps of one row as read.", *MODEL, buckets=TIMESTEPS)
        self.limit_rows = gauge("batch_limit_rows", "Rows of a batch at most.", *MODEL, mode="livemax")
        self.limit_padded_steps = gauge(
            "batch_limit_padded_steps", "Time steps of a batch at most, padding included.", *MODEL, mode="livemax"
        )
        self.costs = {
            part: gauge(f"batch_cost_{part}_seconds", f"Cost of a run, {text}.", *MODEL, mode="livemax")
            for part, text in COSTS.items()
        }
        self.queue_depth = gauge("queue_depth_rows", "Rows that wait for a batch.", *MODEL)
        self.queue_capacity = gauge("queue_capacity_rows", "Rows that may wait; beyond them requests are refused.", *MODEL)
        self.queue_oldest = gauge(
            "queue_oldest_request_timestamp_seconds",
            "When the item that waits longest arrived, Unix time; 0 when nothing waits.",
            *MODEL,
            mode="liveall",
        )
        # Over several workers a model is ready when it is in all of them.
        self.ready = gauge("model_ready", "1 if the model answers requests, else 0.", *MODEL, mode="livemin")
        self.load_duration = gauge("model_load_duration_seconds", "Time the last load took.", *MODEL, mode="livemax")
        self.loads = counter("model_loads_total", "Loads of a model folder.", *MODEL, "outcome")
        self.last_inference = gauge(
            "model_last_inference_timestamp_seconds", "When a graph last ran, Unix time; 0 before the first.", *MODEL, mode="max"
        )
        self.model_info = gauge(
            "model_info",
            "What is served: always 1.",
            *MODEL,
            "task",
            "provider",
            "precision",
            "opset",
            "sha256",
            "horizon",
            mode="livemax",
        )
        self.loop_lag = self.add_histogram(
            histogram(
                "event_loop_lag_seconds", "How late the event loop is, measured 50 times a second.", buckets=LOOP_LAG_SECONDS
            ),
            bounds=LOOP_LAG_SECONDS,
        )
        self.fallbacks = counter("provider_fallbacks_total", "Graphs that run on another provider.", "requested", "actual")
        self.rate_limited_requests = counter(
            "ratelimit_rejections_total", "Requests beyond the rate of a key, by its name, or of an address.", "scope", "key"
        )
        self._access_log_drops = self.add_counter(
            counter("access_log_dropped_lines_total", "Lines of the access log that nobody took in time.")
        )
        self._rate_limited: dict[tuple[str, str], PendingCounter] = {}
        self.rate_limited("address", "", 0)
        restarts = counter(*RESTARTS)
        for reason in RESTART_REASONS:
            restarts.labels(reason)
        reloads = counter(*RELOADS)
        for change in RELOAD_OUTCOMES:
            reloads.labels(change)
        self.sequences = SequenceMeter(registry)
        build = gauge("build_info", "What is running: always 1.", "version", "onnxruntime", "python", mode="livemax")
        build.labels(version, onnxruntime, platform.python_version()).set(1)
        self.request_meter(UNKNOWN, UNKNOWN)

        self.exemplars = ExemplarStore(SECONDS, directory)
        self._process: WorkerProcessMetrics | None = None
        self._scraped = registry
        if directory is None:
            ProcessCollector(registry=registry)
            PlatformCollector(registry=registry)
            GCCollector(registry=registry)
        else:
            self._process = WorkerProcessMetrics(registry)
            self._scraped = CollectorRegistry()
            self._scraped.register(WorkerSumCollector(directory, self._is_served))
        self.flush()

    def http(self, route: str) -> HttpMeter:
        """The meter of one route template."""
        if route not in self._http:
            self._http[route] = HttpMeter(self, route)
        return self._http[route]

    def model(self, name: str, version: str) -> ModelMeter:
        """The meter of one model version; its series start at 0."""
        if (name, version) not in self._models:
            self.request_meter(name, version)
            self._models[name, version] = ModelMeter(self, name, version)
        return self._models[name, version]

    def request_meter(self, name: str, version: str, api: str = DEFAULT_API) -> RequestMeter:
        """The meter of the requests to one model version, or to none (`_unknown`), through one API."""
        key = name, version, api
        if key not in self._requests:
            self._requests[key] = RequestMeter(self, *key)
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
                self.exemplars.put(REQUEST_DURATION, (model, version), duration_s, context)
        if reason is not None:
            meter.reasons[reason].pending += 1

    def rate_limited(self, scope: RateScope, key: str, count: int = 1) -> None:
        """So many requests were beyond the rate of the key of this name, or of an address (`key` is then empty)."""
        labels = scope, key
        if labels not in self._rate_limited:
            if len(self._rate_limited) >= MAX_KEY_SERIES:
                labels = scope, OTHER_KEYS
            self._rate_limited.setdefault(labels, self.add_counter(self.rate_limited_requests.labels(*labels)))
        self._rate_limited[labels].pending += count

    def connection_closed(self, reason: ConnectionReason) -> None:
        """The server refused or closed a connection."""
        self._connections_closed[reason].pending += 1

    def access_log_dropped(self, num_lines: int) -> None:
        """So many lines of the access log were not written."""
        self._access_log_drops.pending += num_lines

    def observe_loop_lag(self, lag_s: float) -> None:
        """A timer of the event loop was so much late."""
        self.loop_lag.observe(lag_s)

    def observer_of(self, name: str, version: str) -> ModelMeter:
        """The observer of a model that is about to be loaded."""
        return self.model(name, version)

    def loaded(self, model: LoadedModel, duration_s: float) -> None:
        """The model is READY. Counts too whether its graph runs on another provider than requested."""
        self.model(model.name, model.version).loaded(model, duration_s)
        if model.can_stream:
            self.sequences.add_model(model.name, model.version)
        if model.runtime.fallback is not None:
            self.fallbacks.labels(model.runtime.requested, model.runtime.provider).inc()

    def unavailable(self, name: str, version: str, reason: str, duration_s: float) -> None:
        """The folder cannot be served; the reason is in the log and in `GET /models`, a label could not be bounded."""
        self.model(name, version).unavailable(duration_s)

    def update_failed(self, name: str, version: str) -> None:
        """Changed files of a version cannot be served; what they were before goes on being served."""
        self.loads.labels(name, version, "error").inc()

    def unloaded(self, name: str, version: str) -> None:
        """The version is served no more: its series end, also those that other workers wrote."""
        meter = self._models.pop((name, version), None)
        if meter is None:
            return
        ended = {id(series) for series in meter.series}
        for key in [key for key in self._requests if key[:2] == (name, version)]:
            ended |= {id(series) for series in self._requests.pop(key).series}
        self._flushables = [flushable for flushable in self._flushables if id(flushable) not in ended]
        meter.end()

    def _is_served(self, name: str, version: str) -> bool:
        return name == UNKNOWN or (name, version) in self._models

    def flush(self) -> None:
        """Hand what was collected to prometheus_client."""
        for flushable in self._flushables:
            flushable.flush()
        self.exemplars.publish()
        if self._process is not None:
            self._process.flush()

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The body of a scrape and its content type: OpenMetrics where the scraper accepts it."""
        self.flush()
        return self.encode(accept)

    async def read_statistics(self) -> dict[tuple[str, str], dict[str, Any]]:
        """(model, version) → counts and times since the start, of all workers."""
        self.flush()
        return await asyncio.to_thread(lambda: sum_statistics(self._scraped.collect()))

    def content_type(self, accept: str) -> str:
        """The content type of a scrape with this Accept header."""
        return choose_encoder(accept)[1]

    def encode(self, accept: str) -> tuple[bytes, str]:
        """A scrape without what has been collected since the last flush; may be called on a thread."""
        encode, content_type = choose_encoder(accept)
        has_exemplars = content_type.startswith("application/openmetrics-text")
        return encode(ExemplarCollector(self._scraped, self.exemplars) if has_exemplars else self._scraped), content_type

    def add_counter(self, child: Counter) -> PendingCounter:
        counter = PendingCounter(child)
        self._flushables.append(counter)
        return counter

    def add_histogram(
        self, histogram: Histogram, labels: Sequence[str] = (), bounds: Sequence[float] = SECONDS
    ) -> PendingHistogram:
        pending = PendingHistogram(histogram, labels, bounds)
        self._flushables.append(pending)
        return pending

    def add_gauge(self, child: Gauge, value: float = 0.0) -> PendingGauge:
        gauge = PendingGauge(child, value)
        self._flushables.append(gauge)
        return gauge

    def add_oldest_item_gauge(self, child: Gauge, wait_s: Callable[[], float | None]) -> OldestItemGauge:
        gauge = OldestItemGauge(child, wait_s)
        self._flushables.append(gauge)
        return gauge


class HttpMeter:
    """The series of one route."""

    def __init__(self, metrics: Metrics, route: str) -> None:
        self._metrics = metrics
        self._route = route
        self._in_flight = metrics.add_gauge(metrics.http_in_flight.labels(route))
        self._request_size = metrics.add_histogram(metrics.http_request_size, (route,), BYTES)
        self._response_size = metrics.add_histogram(metrics.http_response_size, (route,), BYTES)
        self._by_method: dict[str, tuple[PendingHistogram, dict[int, PendingCounter]]] = {}

    def started(self) -> None:
        """A request has begun."""
        self._in_flight.value += 1

    def finished(self, method: str, status: int, duration_s: float, request_bytes: int, response_bytes: int) -> None:
        """A request that `started` is over."""
        self._in_flight.value -= 1
        method = method if method in METHODS else "_other"
        if method not in self._by_method:
            duration = self._metrics.add_histogram(self._metrics.http_duration, (method, self._route))
            self._by_method[method] = duration, {}
        duration, by_status = self._by_method[method]
        if status not in by_status:
            by_status[status] = self._metrics.add_counter(self._metrics.http_requests.labels(method, self._route, str(status)))
        by_status[status].pending += 1
        duration.observe(duration_s)
        context = CURRENT.get()
        if context is not None and context.is_sampled:
            self._metrics.exemplars.put(HTTP_DURATION, (method, self._route), duration_s, context)
        self._request_size.observe(request_bytes)
        self._response_size.observe(response_bytes)


class RequestMeter:
    """How the requests to one model version through one API ended."""

    def __init__(self, metrics: Metrics, model: str, version: str, api: str) -> None:
        self.outcomes = {name: metrics.add_counter(metrics.requests.labels(model, version, name, api)) for name in OUTCOMES}
        self.reasons = {name: metrics.add_counter(metrics.invalid.labels(model, version, name)) for name in INVALID_REASONS}
        self.duration = None if model == UNKNOWN else metrics.add_histogram(metrics.duration, (model, version))

    @property
    def series(self) -> list[object]:
        """What collects its events."""
        return [*self.outcomes.values(), *self.reasons.values(), self.duration]


class ModelMeter:
    """The series of one model version: it observes the batcher, and the loading."""

    def __init__(self, metrics: Metrics, name: str, version: str) -> None:
        labels = (name, version)
        self._metrics = metrics
        self._labels = labels
        self._rows = metrics.add_counter(metrics.rows.labels(*labels))
        self._timesteps = metrics.add_counter(metrics.timesteps.labels(*labels))
        self._executions = metrics.add_counter(metrics.executions.labels(*labels))
        self._queue = metrics.add_histogram(metrics.queue, labels)
        self._preprocess = metrics.add_histogram(metrics.preprocess, labels)
        self._postprocess = metrics.add_histogram(metrics.postprocess, labels)
        self._compute: PendingHistogram | None = None
        self._by_provider: dict[str, PendingHistogram] = {}
        self._oldest: OldestItemGauge | None = None
        self._about: tuple[str, ...] | None = None
        self._batch_rows = metrics.add_histogram(metrics.batch_rows, labels, ROWS)
        self._padding = metrics.add_histogram(metrics.padding, labels, RATIOS)
        self._input_length = metrics.add_histogram(metrics.input_length, labels, TIMESTEPS)
        self._queue_depth = metrics.add_gauge(metrics.queue_depth.labels(*labels))
        self._queue_capacity = metrics.add_gauge(metrics.queue_capacity.labels(*labels))
        self._ready = metrics.add_gauge(metrics.ready.labels(*labels))
        self._last_inference = metrics.add_gauge(metrics.last_inference.labels(*labels))
        for outcome in ("ok", "error"):
            metrics.loads.labels(*labels, outcome)

    def loaded(self, model: LoadedModel, duration_s: float) -> None:
        """The model is READY."""
        metrics, labels = self._metrics, self._labels
        graph = model.graph
        horizon = "" if model.horizon is None else str(model.horizon)
        # The provider that really runs the graph, not the one that was requested.
        about = (model.task, model.runtime.provider, graph.precision, str(graph.opset), graph.sha256, horizon)
        if self._about not in (None, about):
            metrics.model_info.labels(*labels, *self._about).set(0)  # which the sum over workers leaves out
        self._about = about
        metrics.model_info.labels(*labels, *about).set(1)
        metrics.loads.labels(*labels, "ok").inc()
        metrics.load_duration.labels(*labels).set(duration_s)
        provider = model.runtime.provider
        if provider not in self._by_provider:
            self._by_provider[provider] = metrics.add_histogram(metrics.compute, (*labels, provider))
        self._compute = self._by_provider[provider]
        limits = model.limits
        self._queue_capacity.value = limits.max_queue_size
        metrics.limit_rows.labels(*labels).set(limits.max_batch_size)
        metrics.limit_padded_steps.labels(*labels).set(limits.max_padded_steps)
        for part, cost in metrics.costs.items():
            cost.labels(*labels).set(getattr(limits.cost, f"{part}_ms") / 1000)
        if self._oldest is None:
            self._oldest = metrics.add_oldest_item_gauge(metrics.queue_oldest.labels(*labels), lambda: None)
        reference = weakref.ref(model)  # a model that is replaced ends when its requests do not hold it any more
        self._oldest.wait_s = lambda: None if (held := reference()) is None else held.oldest_wait_s
        self._ready.value = 1

    def unavailable(self, duration_s: float) -> None:
        """The folder cannot be served."""
        self._metrics.loads.labels(*self._labels, "error").inc()
        self._metrics.load_duration.labels(*self._labels).set(duration_s)
        self._ready.value = 0

    def end(self) -> None:
        """The version is unloaded: what is left of its gauges adds nothing to those of other workers."""
        for gauge in (self._ready, self._queue_depth, self._queue_capacity):
            gauge.child.set(0)
        if self._about is not None:
            self._metrics.model_info.labels(*self._labels, *self._about).set(0)

    @property
    def series(self) -> list[object]:
        """What collects its events."""
        return [*vars(self).values(), *self._by_provider.values()]

    def encoded(self, duration_s: float, lengths: Sequence[int]) -> None:
        """Instances of a request became tensors, rows of these lengths."""
        self._preprocess.observe(duration_s)
        for length in lengths:
            self._input_length.observe(length)

    def decoded(self, duration_s: float) -> None:
        """Tensors became predictions of a request."""
        self._postprocess.observe(duration_s)

    def enqueued(self, rows: int) -> None:
        self._queue_depth.value += rows

    def refused(self, rows: int) -> None:
        pass  # counted as the outcome `rejected` of its request

    def left_queue(self, num_items: int, rows: int, reason: str) -> None:
        self._queue_depth.value -= rows

    def batch_executed(
        self, *, rows: int, steps: int, padded_steps: int, queue_s: Sequence[float], compute_s: float, is_ok: bool
    ) -> None:
        self._executions.pending += 1
        self._rows.pending += rows
        self._timesteps.pending += steps
        self._batch_rows.observe(rows)
        self._padding.observe(1 - steps / padded_steps)
        for waited_s in queue_s:
            self._queue.observe(waited_s)
        if self._compute is not None:
            self._compute.observe(compute_s)
        self._last_inference.value = time.time()


class VersionFacts(Protocol):
    """A version of a model."""

    @property
    def model(self) -> str: ...

    @property
    def version(self) -> int: ...


class SequenceFacts(Protocol):
    """The sequences of one version of a model."""

    @property
    def num_sequences(self) -> int: ...

    @property
    def num_bytes(self) -> int: ...


class SequenceMeter:
    """The series of sequences whose states are kept. Steps are counted as requests are; here are their starts and ends."""

    def __init__(self, registry: CollectorRegistry | None) -> None:
        """`registry` None: for the process that keeps the states of several workers, whose own file every scrape reads too."""

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"sluice_{name}", text, labels, registry=registry)

        # One process counts what is kept: that of the states, or with Redis each, and all find the same.
        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"sluice_{name}", text, MODEL, registry=registry, multiprocess_mode="livemax")

        self._started = counter("sequences_started_total", "Sequences that requests started.", *MODEL)
        self._ended = counter("sequences_ended_total", "Sequences that ended, by the reason.", *MODEL, "reason")
        self._active = gauge("sequences_active", "Sequences whose states are kept.")
        self._bytes = gauge("sequence_state_bytes", "Bytes of the states that are kept.")

    def add_model(self, model: str, version: str) -> None:
        """The counters of a version that can stream begin at 0."""
        self._started.labels(model, version)
        for reason in SEQUENCE_ENDS:
            self._ended.labels(model, version, reason)

    def started(self, model: str, version: int) -> None:
        """A request started a sequence."""
        self._started.labels(model, str(version)).inc()

    def ended(self, model: str, version: int, reason: SequenceEnd) -> None:
        """A sequence ended."""
        self._ended.labels(model, str(version), reason).inc()

    def evicted(self, owner: VersionFacts, reason: SequenceEnd) -> None:
        """A sequence ended without a request for it."""
        self.ended(owner.model, owner.version, reason)

    def counted(self, totals: Mapping[Any, SequenceFacts]) -> None:
        """So many are kept now, by version of a model (VersionFacts)."""
        for owner, total in totals.items():
            self._active.labels(owner.model, str(owner.version)).set(total.num_sequences)
            self._bytes.labels(owner.model, str(owner.version)).set(total.num_bytes)


class WorkerSumCollector(Collector):
    """The sums over all workers. The oldest of all queues is the earliest time that is not 0, for which there is no mode."""

    def __init__(self, directory: Path, is_served: Callable[[str, str], bool] = lambda name, version: True) -> None:
        """Of a version that is not served now nothing is shown: the files of the workers keep it."""
        self._is_served = is_served
        self._source = multiprocess.MultiProcessCollector(None, path=str(directory))  # type: ignore[no-untyped-call]

    def collect(self) -> Iterable[Metric]:
        for metric in self._source.collect():  # type: ignore[no-untyped-call]
            if any("version" in sample.labels and "model" in sample.labels for sample in metric.samples[:1]):
                metric.samples = [
                    sample
                    for sample in metric.samples
                    if self._is_served(sample.labels["model"], sample.labels["version"])
                    and (sample.value or metric.name != "sluice_model_info")
                ]
            if metric.name == "sluice_queue_oldest_request_timestamp_seconds":
                oldest: dict[tuple[str, str], float] = {}
                for sample in metric.samples:
                    model = sample.labels["model"], sample.labels["version"]
                    times = [time for time in (oldest.get(model, 0.0), sample.value) if time > 0]
                    oldest[model] = min(times, default=0.0)
                metric.samples = [
                    Sample(metric.name, dict(zip(MODEL, model, strict=True)), value) for model, value in oldest.items()
                ]
            yield metric


class ExemplarCollector(Collector):
    """What another collector gives, with exemplars: prometheus_client has none with several processes."""

    def __init__(self, source: Collector, exemplars: ExemplarStore) -> None:
        self._source = source
        self._exemplars = exemplars

    def collect(self) -> Iterable[Metric]:
        found = self._exemplars.collect()
        for metric in self._source.collect():
            labels = EXEMPLAR_LABELS.get(metric.name)
            if found and labels is not None:
                metric.samples = [self._with_exemplar(metric.name, labels, sample, found) for sample in metric.samples]
            yield metric

    @staticmethod
    def _with_exemplar(name: str, labels: Sequence[str], sample: Sample, found: Mapping[Bucket, Exemplar]) -> Sample:
        if not sample.name.endswith("_bucket"):
            return sample
        number = bisect_left(SECONDS, float(sample.labels["le"]))
        exemplar = found.get(Bucket(name, tuple(sample.labels[label] for label in labels), number))
        if exemplar is None:
            return sample
        ids = {"trace_id": exemplar.trace_id, "span_id": exemplar.span_id}
        return sample._replace(exemplar=SampleExemplar(ids, exemplar.value, exemplar.time))


class WorkerProcessMetrics:
    """`process_*` of a worker, as metrics that add up: prometheus_client leaves them out with several processes."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._source = ProcessCollector(registry=None)
        self._cpu = Counter("process_cpu_seconds_total", "Total user and system CPU time spent in seconds.", registry=registry)
        self._flushed_cpu_s = 0.0
        self._gauges = {
            name: Gauge(name, f"{text}, of all workers.", registry=registry, multiprocess_mode="livesum")
            for name, text in (
                ("process_resident_memory_bytes", "Resident memory size in bytes"),
                ("process_virtual_memory_bytes", "Virtual memory size in bytes"),
                ("process_open_fds", "Number of open file descriptors"),
            )
        }
        self._start = Gauge(
            "process_start_time_seconds",
            "Start time of the oldest worker since unix epoch in seconds.",
            registry=registry,
            multiprocess_mode="livemin",
        )

    def flush(self) -> None:
        for family in self._source.collect():
            value = family.samples[0].value
            if family.name == "process_cpu_seconds":
                self._cpu.inc(max(0.0, value - self._flushed_cpu_s))
                self._flushed_cpu_s = value
            elif family.name == "process_start_time_seconds":
                self._start.set(value)
            elif family.name in self._gauges:
                self._gauges[family.name].set(value)


def restart_counter() -> Callable[[RestartReason], None]:
    """For the parent of several workers, whose own file every scrape reads too: counts one restart, by its reason."""
    name, text, label = RESTARTS
    restarts = Counter(f"sluice_{name}", text, (label,), registry=None)
    return lambda reason: restarts.labels(reason).inc()


def reload_counter() -> Callable[[ReloadOutcome], None]:
    """For the process that decides what is served, whose own file every scrape reads too: counts one change."""
    name, text, label = RELOADS
    reloads = Counter(f"sluice_{name}", text, (label,), registry=None)
    return lambda outcome: reloads.labels(outcome).inc()


def forget_worker(pid: int, directory: Path) -> None:
    """Take the gauges of a worker that has ended out of the sums, and its exemplars; its counters stay. Called by the parent."""
    multiprocess.mark_process_dead(pid, path=str(directory))  # type: ignore[no-untyped-call]
    file_of(pid, directory).unlink(missing_ok=True)
