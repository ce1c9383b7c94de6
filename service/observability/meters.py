"""The series of one route, of the requests to one model, and of one model: what the other folders report events to.

Called on the event loop only. Knows nothing of prometheus_client: families and what collects their events are arguments.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Sequence
from typing import NamedTuple, Protocol, get_args

from service.context import CURRENT
from service.errors import InvalidReason, Outcome
from service.manifest import Graph
from service.observability.exemplars import ExemplarStore
from service.observability.pending import OldestItemGauge, PendingCounter, PendingHistogram, PendingSeries
from service.observability.prometheus import BYTES, HTTP_DURATION, RATIOS, ROWS, TIMESTEPS, Families

UNKNOWN = "_unknown"
DEFAULT_API = "predict"
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
INVALID_REASONS: tuple[InvalidReason, ...] = get_args(InvalidReason)
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))


class Recorders(NamedTuple):
    """Where events go."""

    families: Families
    pending: PendingSeries
    exemplars: ExemplarStore


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


class HttpMeter:
    """The series of one route."""

    def __init__(self, recorders: Recorders, route: str) -> None:
        self._families, self._pending, self._exemplars = families, pending, _ = recorders
        self._route = route
        self._in_flight = pending.add_gauge(families.http_in_flight.labels(route))
        self._request_size = pending.add_histogram(families.http_request_size, (route,), BYTES)
        self._response_size = pending.add_histogram(families.http_response_size, (route,), BYTES)
        self._by_method: dict[str, tuple[PendingHistogram, dict[int, PendingCounter]]] = {}

    def started(self) -> None:
        """A request has begun."""
        self._in_flight.value += 1

    def finished(self, method: str, status: int, duration_s: float, request_bytes: int, response_bytes: int) -> None:
        """A request that `started` is over."""
        self._in_flight.value -= 1
        method = method if method in METHODS else "_other"
        if method not in self._by_method:
            duration = self._pending.add_histogram(self._families.http_duration, (method, self._route))
            self._by_method[method] = duration, {}
        duration, by_status = self._by_method[method]
        if status not in by_status:
            by_status[status] = self._pending.add_counter(self._families.http_requests.labels(method, self._route, str(status)))
        by_status[status].pending += 1
        duration.observe(duration_s)
        context = CURRENT.get()
        if context is not None and context.is_sampled:
            self._exemplars.put(HTTP_DURATION, (method, self._route), duration_s, context)
        self._request_size.observe(request_bytes)
        self._response_size.observe(response_bytes)


class _Outcomes(dict[Outcome, PendingCounter]):
    """The counters of the outcomes of one API, made when they are wanted."""

    def __init__(self, recorders: Recorders, model: tuple[str, str], api: str) -> None:
        self._recorders = recorders
        self._model = model
        self._api = api

    def __missing__(self, outcome: Outcome) -> PendingCounter:
        family = self._recorders.families.requests
        counter = self[outcome] = self._recorders.pending.add_counter(family.labels(*self._model, outcome, self._api))
        return counter


class RequestMeter:
    """How the requests to one model version through one API ended."""

    def __init__(self, recorders: Recorders, model: str, version: str, api: str) -> None:
        families, pending, _ = recorders
        self.outcomes = _Outcomes(recorders, (model, version), api)
        if api == DEFAULT_API:  # which every model is asked through; the series of other APIs begin with their first event
            for outcome in OUTCOMES:
                self.outcomes[outcome]
        self.reasons = {name: pending.add_counter(families.invalid.labels(model, version, name)) for name in INVALID_REASONS}
        self.duration = None if model == UNKNOWN else pending.add_histogram(families.duration, (model, version))

    @property
    def series(self) -> list[object]:
        """What collects its events."""
        return [*self.outcomes.values(), *self.reasons.values(), self.duration]


class ModelMeter:
    """The series of one model version: it observes the batcher, and the loading."""

    def __init__(self, recorders: Recorders, name: str, version: str) -> None:
        self._recorders = recorders
        self._labels = labels = (name, version)
        families, pending, _ = recorders
        self._rows = pending.add_counter(families.rows.labels(*labels))
        self._timesteps = pending.add_counter(families.timesteps.labels(*labels))
        self._executions = pending.add_counter(families.executions.labels(*labels))
        self._queue = pending.add_histogram(families.queue, labels)
        self._preprocess = pending.add_histogram(families.preprocess, labels)
        self._postprocess = pending.add_histogram(families.postprocess, labels)
        self._compute: PendingHistogram | None = None
        self._by_provider: dict[str, PendingHistogram] = {}
        self._oldest: OldestItemGauge | None = None
        self._about: tuple[str, ...] | None = None
        self._batch_rows = pending.add_histogram(families.batch_rows, labels, ROWS)
        self._padding = pending.add_histogram(families.padding, labels, RATIOS)
        self._input_length = pending.add_histogram(families.input_length, labels, TIMESTEPS)
        self._queue_depth = pending.add_gauge(families.queue_depth.labels(*labels))
        self._queue_capacity = pending.add_gauge(families.queue_capacity.labels(*labels))
        self._ready = pending.add_gauge(families.ready.labels(*labels))
        self._last_inference = pending.add_gauge(families.last_inference.labels(*labels))
        for outcome in ("ok", "error"):
            families.loads.labels(*labels, outcome)

    def loaded(self, model: LoadedModel, duration_s: float) -> None:
        """The model is READY."""
        (families, pending, _), labels = self._recorders, self._labels
        graph = model.graph
        horizon = "" if model.horizon is None else str(model.horizon)
        # The provider that really runs the graph, not the one that was requested.
        about = (model.task, model.runtime.provider, graph.precision, str(graph.opset), graph.sha256, horizon)
        if self._about not in (None, about):
            families.model_info.labels(*labels, *self._about).set(0)  # which the sum over workers leaves out
        self._about = about
        families.model_info.labels(*labels, *about).set(1)
        families.loads.labels(*labels, "ok").inc()
        families.load_duration.labels(*labels).set(duration_s)
        provider = model.runtime.provider
        if provider not in self._by_provider:
            self._by_provider[provider] = pending.add_histogram(families.compute, (*labels, provider))
        self._compute = self._by_provider[provider]
        limits = model.limits
        self._queue_capacity.value = limits.max_queue_size
        families.limit_rows.labels(*labels).set(limits.max_batch_size)
        families.limit_padded_steps.labels(*labels).set(limits.max_padded_steps)
        for part, cost in families.costs.items():
            cost.labels(*labels).set(getattr(limits.cost, f"{part}_ms") / 1000)
        if self._oldest is None:
            self._oldest = pending.add_oldest_item_gauge(families.queue_oldest.labels(*labels), lambda: None)
        reference = weakref.ref(model)  # a model that is replaced ends when its requests do not hold it any more
        self._oldest.wait_s = lambda: None if (held := reference()) is None else held.oldest_wait_s
        self._ready.value = 1

    def unavailable(self, duration_s: float) -> None:
        """The folder cannot be served."""
        self._recorders.families.loads.labels(*self._labels, "error").inc()
        self._recorders.families.load_duration.labels(*self._labels).set(duration_s)
        self._ready.value = 0

    def end(self) -> None:
        """The version is unloaded: what is left of its gauges adds nothing to those of other workers."""
        for gauge in (self._ready, self._queue_depth, self._queue_capacity):
            gauge.child.set(0)
        if self._about is not None:
            self._recorders.families.model_info.labels(*self._labels, *self._about).set(0)

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
