"""Spans of requests for OpenTelemetry: the only file that imports it, and only where tracing is on (the extra `otel`).

A request has a server span from its begin on, which the sampler decides about; at its end the stages become spans inside it.
Rows of many requests run as one batch: it has a span of its own in the trace of the request that is over first, with a link to
each request whose spans are kept, and the `run` of each of these links to it. Sampling, the collector and the name of the
service are set by OpenTelemetry's environment variables. Is called on the event loop.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    Tracer,
    TraceState,
    set_span_in_context,
)
from opentelemetry.util.types import Attributes

from service import __version__
from service.context import BatchRun, RequestContext, Stage

NAME = "sluice"
# For so long the spans that wait are sent when the process ends.
STOP_S = 3.0
MAX_PATH_CHARACTERS = 256
UNKNOWN_ROUTE = "_unknown"
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"))


class TracedRequest(Protocol):
    """A request, as spans describe it."""

    @property
    def method(self) -> str: ...

    @property
    def path(self) -> str: ...

    @property
    def route(self) -> str: ...

    @property
    def client(self) -> tuple[str, int | None] | None: ...

    @property
    def server(self) -> tuple[str, int | None] | None: ...

    @property
    def started_at(self) -> float: ...

    @property
    def duration_s(self) -> float: ...

    @property
    def status(self) -> int: ...

    @property
    def num_instances(self) -> int: ...

    @property
    def request_bytes(self) -> int: ...

    @property
    def response_bytes(self) -> int: ...


class Tracing:
    """Keeps the spans of requests between `open` and `close`, in the process that calls them."""

    def __init__(self, make_processor: Callable[[], SpanProcessor] | None = None, *, scheme: str = "http") -> None:
        """`make_processor` is called by `open`; None: spans go to a collector by OTLP over HTTP. `scheme` is that of URLs."""
        self._make_processor = make_processor or (lambda: BatchSpanProcessor(OTLPSpanExporter()))
        self._scheme = scheme
        self._ids = _IdGenerator()
        self._provider: TracerProvider | None = None
        self._tracer: Tracer | None = None
        self._sampler: _OnceSampler | None = None

    def open(self) -> None:
        """Start the thread that sends spans, which no process inherits from its parent."""
        self._provider = TracerProvider(resource=_resource(), id_generator=self._ids, shutdown_on_exit=False)
        self._provider.add_span_processor(self._make_processor())
        self._sampler = self._provider.sampler = _OnceSampler(self._provider.sampler)
        self._tracer = self._provider.get_tracer(NAME, __version__)

    def close(self, patience_s: float = STOP_S) -> None:
        """Send what waits, if the collector takes it in time. Blocks."""
        if self._provider is not None:
            ending = threading.Thread(target=self._provider.shutdown, name="tracing-end", daemon=True)
            ending.start()
            ending.join(patience_s)

    def start(self, request: TracedRequest, context: RequestContext) -> None:
        """Begin the span of a request, in the trace that it came with or in one of its own, whose id is then the request's."""
        if self._tracer is None or self._sampler is None:
            return
        trace_id = self._ids.trace_id = int(context.trace_id, 16)
        method = request.method if request.method in METHODS else "_OTHER"
        has_route = request.route != UNKNOWN_ROUTE
        attributes: dict[str, Any] = {
            "http.request.method": method,
            "url.path": request.path[:MAX_PATH_CHARACTERS],
            "url.scheme": self._scheme,
        }
        if has_route:
            attributes["http.route"] = request.route
        name = f"{method} {request.route}" if has_route else method
        parent = _parent_of(context)
        if not self._sampler.decide(parent, trace_id, name, attributes):
            return
        span = self._tracer.start_span(
            name,
            parent,
            SpanKind.SERVER,
            attributes,
            start_time=_clock_offset_ns() + int(1e9 * request.started_at),
        )
        own = span.get_span_context()
        if not own.is_valid:  # OTEL_SDK_DISABLED
            return
        context.traceparent = f"00-{own.trace_id:032x}-{own.span_id:016x}-{own.trace_flags:02x}"
        if span.is_recording():
            context.span = span
            assert context.timing is not None
            context.timing.stages = []

    def finish(self, request: TracedRequest, context: RequestContext) -> None:
        """End the span of a request, and add those of its stages."""
        span, timing = context.span, context.timing
        if not isinstance(span, Span) or timing is None or self._tracer is None:
            return
        offset_ns = _clock_offset_ns()
        inside = set_span_in_context(span, Context())
        stages, timing.stages, context.span = timing.stages or (), None, None  # no circle is left to the garbage collector
        self._add_stages(stages, span, inside, offset_ns)
        span.set_attributes(_outcome_of(request, context))
        if request.status >= 500:
            span.set_status(StatusCode.ERROR)
        span.end(offset_ns + int(1e9 * (request.started_at + request.duration_s)))

    def _add_stages(self, stages: Sequence[Stage], span: Span, inside: Context, offset_ns: int) -> None:
        assert self._tracer is not None
        for name, started_at, ended_at, batch in stages:
            links = [Link(self._find_batch(batch, span, inside, offset_ns))] if batch is not None and name == "run" else None
            stage = self._tracer.start_span(name, inside, links=links, start_time=offset_ns + int(1e9 * started_at))
            stage.end(offset_ns + int(1e9 * ended_at))

    def _find_batch(self, batch: BatchRun, span: Span, inside: Context, offset_ns: int) -> SpanContext:
        """The span of a batch, which the first of its requests that is over makes."""
        assert self._tracer is not None
        if not isinstance(batch.reference, SpanContext):
            requests = [request.span.get_span_context() for request in batch.requests if isinstance(request.span, Span)]
            own = span.get_span_context()
            made = self._tracer.start_span(
                "batch",
                inside,
                attributes={"sluice.batch.rows": batch.rows},
                links=[Link(each) for each in [own, *requests]],
                start_time=offset_ns + int(1e9 * batch.started_at),
            )
            made.end(offset_ns + int(1e9 * batch.ended_at))
            batch.reference = made.get_span_context()
            batch.requests.clear()
        return batch.reference


class _OnceSampler(Sampler):
    """The sampler of the environment, which is asked about each request before there is a span: a third of what a span takes."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self._decision: SamplingResult | None = None

    def decide(self, parent: Context, trace_id: int, name: str, attributes: Attributes) -> bool:
        """Whether the server span of a request, which must then be started, is kept."""
        decision = self._sampler.should_sample(parent, trace_id, name, SpanKind.SERVER, attributes)
        self._decision = decision if decision.decision is not Decision.DROP else None
        return self._decision is not None

    def should_sample(self, *args: Any, **options: Any) -> SamplingResult:
        """As decided for the request that begins; its other spans follow from it."""
        decision, self._decision = self._decision, None
        return decision or self._sampler.should_sample(*args, **options)

    def get_description(self) -> str:
        return self._sampler.get_description()


class _IdGenerator(RandomIdGenerator):
    """The trace of a request that came without one has the request's id, so that one id finds its log lines and its spans."""

    def __init__(self) -> None:
        self.trace_id = 0

    def generate_trace_id(self) -> int:
        return self.trace_id or super().generate_trace_id()

    def is_trace_id_random(self) -> bool:
        return False


def _resource() -> Resource:
    resource = Resource.create()
    name = {SERVICE_NAME: NAME} if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service") else {}
    return resource.merge(Resource({**name, "service.version": __version__}))


def _parent_of(context: RequestContext) -> Context:
    if not context.is_continued:
        return Context()
    state = TraceState.from_header([context.tracestate]) if context.tracestate is not None else None
    flags = TraceFlags(int(context.traceparent[53:], 16))
    remote = SpanContext(int(context.trace_id, 16), int(context.span_id, 16), True, flags, state)
    return set_span_in_context(NonRecordingSpan(remote), Context())


def _outcome_of(request: TracedRequest, context: RequestContext) -> dict[str, Any]:
    """The attributes that are known at the end."""
    found: dict[str, Any] = {
        "http.response.status_code": request.status,
        "http.request.body.size": request.request_bytes,
        "http.response.body.size": request.response_bytes,
        "sluice.request_id": context.request_id,
    }
    if request.status >= 500:
        found["error.type"] = str(request.status)
    if request.method not in METHODS:
        found["http.request.method_original"] = request.method[:32]
    if request.client is not None:
        found["network.peer.address"] = request.client[0]
    if request.server is not None:
        found["server.address"] = request.server[0]
        if request.server[1] is not None:
            found["server.port"] = request.server[1]
    timing = context.timing
    if timing is not None and timing.model is not None:
        found |= {"sluice.model": timing.model, "sluice.version": timing.version, "sluice.rows": request.num_instances}
    return found


def _clock_offset_ns() -> int:
    """What makes monotonic seconds Unix time."""
    return time.time_ns() - time.monotonic_ns()
