"""Every Prometheus name, once: what is counted, in which unit, and how it adds up over several worker processes.

The only file that imports prometheus_client. Collects no events: `pending.py` does.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, get_args

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
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar as SampleExemplar
from prometheus_client.samples import Sample
from prometheus_client.values import ValueClass

from service.errors import ReloadOutcome, RestartReason, SequenceEnd
from service.observability.drift import ModelDrift
from service.observability.exemplars import Bucket, Exemplar, ExemplarStore
from service.observability.pending import AddCounts
from service.observability.worker_files import remove_files

log = logging.getLogger(__name__)

# The versions of prometheus_client whose private names are known: from the first, up to but without the second.
TESTED_CLIENT = ((0, 21), (0, 27))
# The measure itself is off by half a millisecond; from 10 ms on a stall shows in the latency of requests.
LOOP_LAG_SECONDS = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
BYTES = tuple(256 * 4**n for n in range(10))
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
RATIOS = (0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
TIMESTEPS = tuple(2**n for n in range(13))

RELOADS = ("model_reloads_total", "Changes of what is served while the server runs.", "outcome")
RELOAD_OUTCOMES: tuple[ReloadOutcome, ...] = get_args(ReloadOutcome)
RESTARTS = ("worker_restarts_total", "Worker processes that were replaced.", "reason")
SEQUENCE_ENDS: tuple[SequenceEnd, ...] = get_args(SequenceEnd)
RESTART_REASONS: tuple[RestartReason, ...] = get_args(RestartReason)

COSTS = {
    "overhead": "per run",
    "row": "per row",
    "step": "per time step, however many rows",
    "row_step": "per time step of each row",
}

MODEL = ("model", "version")
ReadDrift = Callable[[], Mapping[tuple[str, str], ModelDrift]]
"""(model, version) → its drift."""
HTTP_DURATION, REQUEST_DURATION = "sluice_http_request_duration_seconds", "sluice_inference_request_duration_seconds"
# Histograms that have exemplars, and their labels; all have the buckets of SECONDS.
EXEMPLAR_LABELS = {HTTP_DURATION: ("method", "route"), REQUEST_DURATION: MODEL}

disable_created_metrics()  # type: ignore[no-untyped-call]  # `_created` doubles the number of series and nothing reads it


class Families:
    """The metrics of one process, or of one worker among several, without their labels' values."""

    def __init__(self, registry: CollectorRegistry) -> None:
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
        self.loop_lag = histogram(
            "event_loop_lag_seconds", "How late the event loop is, measured 50 times a second.", buckets=LOOP_LAG_SECONDS
        )
        self.fallbacks = counter("provider_fallbacks_total", "Graphs that run on another provider.", "requested", "actual")
        self.rate_limited_requests = counter(
            "ratelimit_rejections_total", "Requests beyond the rate of a key, by its name, or of an address.", "scope", "key"
        )
        self.access_log_drops = counter("access_log_dropped_lines_total", "Lines of the access log that nobody took in time.")
        restarts = counter(*RESTARTS)
        for reason in RESTART_REASONS:
            restarts.labels(reason)
        reloads = counter(*RELOADS)
        for change in RELOAD_OUTCOMES:
            reloads.labels(change)
        self.build_info = gauge("build_info", "What is running: always 1.", "version", "onnxruntime", "python", mode="livemax")

    def forget_model(self, name: str, version: str) -> None:
        """Let go of the series of a version that is unloaded; in the files of the workers they stay, with their names."""
        families = [each for value in vars(self).values() for each in (value.values() if isinstance(value, dict) else (value,))]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # prometheus_client warns of those files
            for family in families:
                with contextlib.suppress(ValueError, AttributeError):  # it has no such labels; prometheus_client is before 0.22
                    family.remove_by_labels({"model": name, "version": version})
        _forget_values(name, version)


def is_tested(version: str) -> bool:
    """Whether the private names of this version of prometheus_client are known."""
    major, minor, *_ = (int(part) if part.isdigit() else -1 for part in [*version.split("."), "", ""])
    return TESTED_CLIENT[0] <= (major, minor) < TESTED_CLIENT[1]


def find_add_counts(version: str | None = None) -> AddCounts | None:
    """What adds many values to a histogram at once, of which prometheus_client makes no public call; None of an unknown version.

    `version` is the installed one, unless it is given.
    """
    version = version or importlib.metadata.version("prometheus-client")
    if is_tested(version):
        return _add_counts
    log.warning(
        "values are added to histograms one by one, which takes longer",
        extra={"reason": "this version of prometheus_client was not tested", "prometheus_client": version},
    )
    return None


def _add_counts(histogram: Any, counts: Sequence[float], total: float) -> None:
    for bucket, count in zip(histogram._buckets, counts, strict=True):  # not cumulative inside
        if count:
            bucket.inc(count)
    histogram._sum.inc(total)


def _forget_values(*labels: str) -> None:
    """Let go of the values of removed series, whose labels begin with these.

    With several processes prometheus_client keeps each value that there ever was, to write them to other files after a fork:
    70 KB for each version of a model. The list is in the closure of its class; of a version that is not known it is left alone.
    """
    if not is_tested(importlib.metadata.version("prometheus-client")):
        return
    create = ValueClass.__init__
    cells = dict(zip(create.__code__.co_freevars, create.__closure__ or (), strict=True))
    if {"values", "lock"} <= cells.keys():
        kept = cells["values"].cell_contents
        with cells["lock"].cell_contents, contextlib.suppress(AttributeError, IndexError, TypeError):  # of another version
            kept[:] = [value for value in kept if value._params[4][: len(labels)] != labels]


class Exposition:
    """What a scrape gets: the families of this process, or the sums of all workers that share `directory`."""

    def __init__(self, directory: Path | None, is_served: Callable[[str, str], bool], read_drift: ReadDrift = dict) -> None:
        """`is_served` of a model's name and version: what is not is not shown. `read_drift` as of Metrics."""
        registry = CollectorRegistry()
        self.families = Families(registry)
        self.sequences = SequenceMeter(registry)
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
            self._scraped.register(WorkerSumCollector(directory, is_served))
        self._scraped.register(DriftCollector(read_drift))

    def flush(self) -> None:
        """Bring up to date what no event tells."""
        self.exemplars.publish()
        if self._process is not None:
            self._process.flush()

    def collect(self) -> Iterable[Metric]:
        """Every metric with its samples; may be called on a thread."""
        return self._scraped.collect()

    def content_type(self, accept: str) -> str:
        """The content type of a scrape with this Accept header."""
        return choose_encoder(accept)[1]

    def encode(self, accept: str) -> tuple[bytes, str]:
        """The body of a scrape and its content type: OpenMetrics where the scraper accepts it. May be called on a thread."""
        encode, content_type = choose_encoder(accept)
        has_exemplars = content_type.startswith("application/openmetrics-text")
        return encode(ExemplarCollector(self._scraped, self.exemplars) if has_exemplars else self._scraped), content_type


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

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"sluice_{name}", text, labels, registry=registry)

        # Each process counts what is kept in a store that it shares with others, and all find the same.
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


class DriftCollector(Collector):
    """The drift of the models that are watched. Every worker gives that of all, so nothing is added up."""

    def __init__(self, read_drift: ReadDrift) -> None:
        self._read_drift = read_drift

    def collect(self) -> Iterable[Metric]:
        score = GaugeMetricFamily(
            "sluice_drift_score", "Population stability index of a feature against the training part.", labels=(*MODEL, "feature")
        )
        distance = GaugeMetricFamily(
            "sluice_drift_ks_distance",
            "Kolmogorov-Smirnov distance of a feature to the training part.",
            labels=(*MODEL, "feature"),
        )
        rows = GaugeMetricFamily(
            "sluice_drift_window_rows", "Sampled rows in the window that drift is measured of.", labels=MODEL
        )
        for model, drift in self._read_drift().items():
            rows.add_metric(model, drift.num_rows)
            for feature, (psi, ks) in drift.features.items():
                score.add_metric((*model, feature), psi)
                distance.add_metric((*model, feature), ks)
        return score, distance, rows


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
    """Take the gauges of a worker that has ended out of the sums, and what it showed the others; its counters stay.

    Called by the parent.
    """
    multiprocess.mark_process_dead(pid, path=str(directory))  # type: ignore[no-untyped-call]
    remove_files(directory, pid)
