"""Builds the server from its settings: the models, the metrics, the endpoints, and how they are wired.

Everything happens here once, at start; no request passes through.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.routing import Route

from service import __version__
from service.api import page
from service.api.access.control import OPERATIONS
from service.api.access.wiring import AccessOptions, RateTables, open_access
from service.api.access_log import AccessLog
from service.api.adapters.base import adapter_endpoints
from service.api.adapters.operations import adapter_routes, prediction_routes
from service.api.adapters.registry import WireFormats, wire_formats
from service.api.connections import STREAMS_SHARE, ConnectionLimits, ConnectionMonitor, StreamLimit
from service.api.control import control_router
from service.api.draining import Drain
from service.api.error_handlers import add_error_handlers
from service.api.error_shapes import ErrorShapes, ShapedPath
from service.api.gateway import Gateway
from service.api.inference import Monitors, RequestLimits
from service.api.openapi import complete_openapi
from service.api.operations import operations_router
from service.api.predict import Predictor, documented_routes, predict_endpoints
from service.api.protocol_routes import ProtocolRoute, protocol_router
from service.api.sequences import sequences_router
from service.api.stream import API as STREAM_API
from service.api.stream import STREAM_PATH, StreamEndpoint, documented_stream
from service.api.stream_sequence import Streams
from service.api.v2.errors import describe_error as describe_v2_error
from service.api.v2.infer import INFER_ROUTES, InferEndpoint
from service.api.v2.operations import v2_routes
from service.api.websocket import API as WEBSOCKET_API
from service.api.websocket import WEBSOCKET_PATH, WebSocketEndpoint, websocket_router
from service.errors import StartError
from service.models.folder import ModelOptions
from service.models.membership import Membership, Stream
from service.models.preloading import Preload
from service.models.repository import Repository
from service.models.target import Withdrawal
from service.models.verification import Verification
from service.observability.access_log import AccessLogWriter, Times
from service.observability.drift import DriftMonitor
from service.observability.loop_lag import LoopLagMonitor
from service.observability.metrics import FLUSH_INTERVAL_S, Metrics
from service.observability.scraping import SCRAPE_INTERVAL_S, ScrapeCache
from service.process.machine import max_open_connections, num_cores, threads_per_worker
from service.process.memory import IdleDetector, trim_heap_when_idle
from service.process.notices import Notices
from service.runtime.onnx_runtime import GpuOptions, open_runtime, require_runtime
from service.scheduling.admission import AdmissionControl, RefusalBudget
from service.scheduling.loop_budget import LoopBudget
from service.scheduling.planning import RequestedLimits
from service.sequences.kept import KeptSequences
from service.sequences.shared import SharedStore, create_memory
from service.sequences.shared_memory import SharedMemory
from service.sequences.store import MemoryStore, SequenceStore, StoreObserver
from service.sequences.table import Bounds
from service.sequences.tokens import open_state_tokens
from service.settings import Settings
from service.tasks.registry import TaskRegistry, built_in_tasks

if TYPE_CHECKING:
    from service.observability.tracing import Tracing

log = logging.getLogger(__name__)

# Time that measuring the cost of one graph may take at load: enough to see every batch size of a small one several times.
MEASURE_S = 0.1
# A run of a graph that takes so many times the time of a request is ended, and its model taken out of service.
MAX_RUN_FACTOR = 3
# But no sooner than this, however short the time of a request is: a wall clock tells, a good model must not be withdrawn for what
# else a machine does, and where there was more work than cores threads have stood still for 2.4 s (docs/reliability.md).
LEAST_MAX_RUN_S = 5.0
# Of the rows that may wait, so many may be admitted by what is known of their bodies: the estimate may be too large, and rows
# that run wait no longer. The queue of the model itself holds the exact bound.
ADMITTED_SHARE = 1.25
# Two, so that a short body need not wait behind a long one.
MIN_READERS = 2

OnLoaded = Callable[[Repository], None]
OnFailed = Callable[[StartError], None]
Connect = Callable[[], Awaitable[Stream]]


def create_app(
    settings: Settings,
    *,
    metrics_dir: Path | None = None,
    preload: Preload | None = None,
    verification: Verification | None = None,
    rates: RateTables | None = None,
    connect_control: Connect | None = None,
    packed_graphs: Path | None = None,
    sequence_memory: SharedMemory | None = None,
    tasks: TaskRegistry | None = None,
    tracing: Tracing | None = None,
    on_loaded: OnLoaded | None = None,
    on_failed: OnFailed | None = None,
    on_stuck: Callable[[], None] = lambda: None,
    notices: Notices | None = None,
    scrape_interval_s: float = SCRAPE_INTERVAL_S,
) -> Gateway:
    """The whole server as one ASGI app.

    It answers at once; the models load beside it, and `on_loaded` is called when each folder is READY or UNAVAILABLE.
    `on_failed` is called instead when this machine lacks what was requested, a runtime or a GPU, `on_stuck` when a graph runs
    that cannot be ended. `metrics_dir` is shared by the workers of one server, `preload` holds what their parent has read for
    them, `verification` verifies the rest, `rates` is where they count requests together. `connect_control` connects to the
    process that decides what is served, None: what the folders hold at the start; `packed_graphs` is where it puts graphs for
    all workers to map. `sequence_memory` is that in which all workers keep the states of sequences, None: this process does.
    `tasks` are those that folders may be for, None: the built-in ones. `tracing` keeps the spans of requests, None: what the
    settings say. `notices` tell the other workers what is withdrawn. Raises StartError for what the settings of access name, and
    where tracing is not installed. Scrapes within `scrape_interval_s` get the same metrics.
    """
    drift = DriftMonitor(settings.drift_window_seconds, metrics_dir)
    metrics = Metrics(
        version=__version__, onnxruntime=require_runtime().__version__, directory=metrics_dir, read_drift=drift.collect
    )
    options = replace(model_options(settings, tasks), open_sampler=drift.open_sampler)
    loop_budget = LoopBudget()
    repository = Repository(
        settings.model_folders,
        options,
        pins=settings.version_pins,
        defaults=default_models(settings, options.tasks),
        strict_readiness=settings.strict_readiness,
        observer=metrics,
        open_graph=functools.partial(open_runtime, gpu=gpu_options(settings), packed=packed_graphs),
        preload=preload,
        may_be_empty=settings.model_control == "explicit",
        verification=verification,
        on_stuck=on_stuck,
        loop_budget=loop_budget,
    )
    membership = None
    if connect_control is not None:
        membership = Membership(
            repository,
            connect_control,
            on_started=lambda: _finish_start(repository, on_loaded),
            on_failed=on_failed or _log_failure,
        )
    elif notices is not None:
        repository.on_withdrawn = lambda withdrawal: notices.publish(withdrawal._asdict())
        notices.on_notice = lambda notice: repository.withdraw(Withdrawal(**notice))

    state_tokens = open_state_tokens(settings.state_key_file)
    sequences = KeptSequences(open_store(settings, sequence_memory, metrics.sequences), metrics.sequences)
    access = open_access(access_options(settings), metrics, rates)
    access_log = None if settings.access_log == "off" else AccessLogWriter(settings.access_log, metrics.access_log_dropped)
    if tracing is None and settings.tracing:
        tracing = require_tracing("http" if settings.tls_certfile is None else "https")
    hooks = list(access.hooks)
    if access_log is not None:
        hooks.append(AccessLog(access_log.put, access.addresses, Times().text))

    def begin_work() -> list[Coroutine[Any, Any, None]]:
        load = _load(repository, on_loaded, on_failed) if membership is None else membership.run()
        # To replace a model takes less time than counts as busy, and leaves as much to return as the model was large.
        detector = IdleDetector()
        repository.on_retired = detector.mark_busy
        return [
            load,
            _flush_regularly(metrics),
            trim_heap_when_idle(detector),
            sequences.store.run(),
            *([drift.run()] if settings.models_to_watch else []),
            *(watch.run() for watch in (*access.watches, *state_tokens.watches)),
        ]

    drain = Drain()
    formats = wire_formats(settings.vertex_predict_route)
    error_shapes = ErrorShapes([ShapedPath("/v2", describe_v2_error), *formats.error_shapes])
    api = FastAPI(
        title="Sluice",
        version=__version__,
        lifespan=_lifespan(begin_work, repository, sequences, metrics, access_log, tracing, options.num_workers),
        docs_url=None,  # FastAPI's page loads its scripts from the internet; ours is in api/page.py
        redoc_url=None,
        redirect_slashes=False,
    )
    scrapes = ScrapeCache(metrics, time.monotonic, scrape_interval_s)
    control = membership if settings.model_control == "explicit" else None
    protocol_routes = _add_routes(api, settings, options.tasks, repository, metrics, scrapes, formats, drain, control)
    admission = _admission(settings)
    streams = functools.partial(
        Streams,
        repository,
        metrics,
        state_tokens.tokens,
        timeout_s=settings.request_timeout_ms / 1000,
        admission=admission,
        check_again=access.check_again,
    )
    connections = connection_limits(settings)
    stream_limit = StreamLimit(max(1, int(STREAMS_SHARE * connections.max_connections)))
    stream = StreamEndpoint(streams(api=STREAM_API, route=STREAM_PATH), drain, stream_limit)
    api.router.routes += [Route(STREAM_PATH, stream, methods=["POST"]), documented_stream()]
    api.include_router(websocket_router())
    limits = RequestLimits(settings.max_instances, settings.max_body_bytes, settings.max_json_values)
    monitors = Monitors.open(limits, loop_budget)
    api.include_router(
        sequences_router(
            repository,
            sequences,
            state_tokens.tokens,
            monitors.large_bodies,
            timeout_s=settings.request_timeout_ms / 1000,
            max_body_bytes=settings.max_body_bytes,
        )
    )
    add_error_handlers(api, error_shapes)
    complete_openapi(api, access.refusals, protocol_routes)
    documented = {route.path for route in protocol_routes if route.about is not None}
    given = {route.path_format: route.path for route in api.routes if isinstance(route, APIRoute)}  # which the document shortens
    own_paths = [given.get(path, path) for path in api.openapi()["paths"] if path not in documented]
    pages = page.page_routes(has_playground=settings.playground)
    paths = [*own_paths, *pages, *(route.path for route in protocol_routes)]
    if settings.vertex_health_route is not None:
        require_probe_route(settings.vertex_health_route, paths)
    websocket = WebSocketEndpoint(
        streams(api=WEBSOCKET_API, route=WEBSOCKET_PATH),
        drain,
        allows_origin=access.allows_origin,
        limit=stream_limit,
        head_timeout_s=connections.body_timeout_s,
        idle_timeout_s=settings.websocket_idle_seconds,
    )
    predictor = Predictor(state_tokens.tokens, sequences)
    return Gateway(
        access.wrap(api),
        direct={
            **predict_endpoints(repository, metrics, limits, options.tasks.endpoints, monitors, predictor),
            **dict.fromkeys(INFER_ROUTES, InferEndpoint(repository, metrics, limits, monitors, sequences)),
            **adapter_endpoints(formats.adapters, repository, metrics, limits, monitors, predictor),
        },
        routes=dict.fromkeys(paths),
        observers=metrics,
        hooks=hooks,
        admission=admission,
        refusals=RefusalBudget(time.monotonic, time.process_time),
        timeout_s=settings.request_timeout_ms / 1000,
        metrics_port=settings.metrics_port,
        drain=drain,
        error_shapes=error_shapes,
        tracer=tracing,
        times_stages=access_log is not None,
        connections=ConnectionMonitor(connections, metrics),
        streaming_paths=frozenset((STREAM_PATH,)),
        websockets={WEBSOCKET_PATH: websocket},
    )


def _lifespan(
    begin_work: Callable[[], Iterable[Coroutine[Any, Any, None]]],
    repository: Repository,
    sequences: KeptSequences,
    metrics: Metrics,
    access_log: AccessLogWriter | None,
    tracing: Tracing | None,
    num_threads: int,
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """What runs beside the requests: `begin_work` from the first of them to the last, and what records them."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # What is read on threads holds the GIL for the most part: more of them than cores would only delay the event loop.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(max(MIN_READERS, num_threads), "reader"))
        tasks = [asyncio.create_task(work) for work in begin_work()]
        lag_monitor = LoopLagMonitor(metrics.observe_loop_lag)
        lag_monitor.start()
        if access_log is not None:
            access_log.start()
        if tracing is not None:
            tracing.open()
        try:
            yield
        finally:
            if access_log is not None:
                await asyncio.to_thread(access_log.stop)
            if tracing is not None:
                await asyncio.to_thread(tracing.close)
            lag_monitor.stop()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await repository.stop()
            await sequences.store.close()
            metrics.flush()

    return lifespan


def _add_routes(
    api: FastAPI,
    settings: Settings,
    tasks: TaskRegistry,
    repository: Repository,
    metrics: Metrics,
    scrapes: ScrapeCache,
    formats: WireFormats,
    drain: Drain,
    control: Membership | None,
) -> list[ProtocolRoute]:
    """Add every route to the app that FastAPI runs; those of other protocols."""
    api.router.routes.extend(documented_routes(tasks.endpoints))
    descriptions = {task.name: task.description for task in tasks if task.description is not None}
    api.include_router(operations_router(repository, scrapes.render, descriptions, drain, has_playground=settings.playground))
    api.include_router(control_router(repository, control))
    v2 = v2_routes(repository, metrics.read_statistics, max_rows=settings.max_instances, drain=drain, control=control)
    api.include_router(protocol_router(v2, "open inference protocol"))
    others = adapter_routes(repository, health_path=settings.vertex_health_route, drain=drain)
    others += prediction_routes(formats.adapters)
    api.include_router(protocol_router(others, "other formats"))
    return [*v2, *others]


def _admission(settings: Settings) -> AdmissionControl:
    """Which requests wait, and which are refused at once."""
    return AdmissionControl(
        time.monotonic,
        random.random,
        max_pending_bytes=settings.max_pending_bytes,
        max_pending_rows=ADMITTED_SHARE * settings.max_queue_size,
    )


def require_probe_route(route: str, paths: Sequence[str]) -> None:
    """Raise StartError where the route, one of `paths`, is that of something else too: a probe's route is open to everyone."""
    patterns = [re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path)) for path in paths]
    others = [path for path, pattern in zip(paths, patterns, strict=True) if re.fullmatch(pattern, route)]
    if len(others) > 1 and route not in OPERATIONS:
        raise StartError(f"SLUICE_VERTEX_HEALTH_ROUTE={route}: this server answers something else there")


def connection_limits(settings: Settings) -> ConnectionLimits:
    """What a connection may take."""
    return ConnectionLimits(
        settings.header_timeout_ms / 1000,
        settings.body_timeout_ms / 1000,
        settings.send_timeout_ms / 1000,
        min(settings.max_connections, max_open_connections()),
        settings.drain_seconds,
    )


def sequence_bounds(settings: Settings) -> Bounds:
    """How many sequences are kept, and for how long."""
    return Bounds(settings.sequence_max, settings.sequence_max_bytes, settings.sequence_ttl_seconds)


def share_sequences(settings: Settings, folder: Path) -> SharedMemory:
    """The memory in which several workers keep the states of sequences. Raises StartError."""
    try:
        return create_memory(sequence_bounds(settings), folder)
    except (OSError, OverflowError) as exc:
        raise StartError(
            f"SLUICE_SEQUENCE_MAX={settings.sequence_max}, SLUICE_SEQUENCE_MAX_BYTES={settings.sequence_max_bytes}: "
            f"there is no memory for so much ({exc})"
        ) from exc


def open_store(settings: Settings, memory: SharedMemory | None, observer: StoreObserver) -> SequenceStore:
    """Where the states of sequences are kept; `memory` as of `create_app`. Raises StartError."""
    bounds = sequence_bounds(settings)
    if settings.sequence_store != "local":
        try:
            from service.sequences.redis_store import RedisStore
        except ImportError as exc:
            raise StartError(
                f"SLUICE_SEQUENCE_STORE needs the client of Redis, which is not installed ({exc}): "
                "pip install 'sluice-serving[redis]'"
            ) from exc
        return RedisStore(settings.sequence_store, bounds, observer)
    return MemoryStore(bounds, observer) if memory is None else SharedStore(memory, bounds, observer)


def require_tracing(scheme: str) -> Tracing:
    """What sends spans to a collector. Raises StartError where OpenTelemetry is not installed."""
    try:
        from service.observability.tracing import Tracing
    except ImportError as exc:
        raise StartError(
            f"SLUICE_TRACING needs OpenTelemetry, which is not installed ({exc}): pip install 'sluice-serving[otel]'"
        ) from exc
    return Tracing(scheme=scheme)


def model_options(settings: Settings, tasks: TaskRegistry | None = None) -> ModelOptions:
    """How models are run, as the folders below take it."""
    limits = RequestedLimits(
        max_batch_size=settings.max_batch_size or None,
        max_padded_steps=settings.max_padded_steps or None,
        max_queue_size=settings.max_queue_size,
        max_queue_delay_s=settings.max_queue_delay_ms / 1000,
    )
    num_threads = settings.num_threads or threads_per_worker(num_cores(), settings.workers or 1)
    return ModelOptions(
        settings.device,
        num_threads,
        limits,
        latency_target_ms=settings.latency_target_ms,
        measure_s=MEASURE_S,
        max_run_s=max(LEAST_MAX_RUN_S, MAX_RUN_FACTOR * settings.request_timeout_ms / 1000),
        precision=settings.precision,
        tasks=(tasks or built_in_tasks()).configure(settings.model_dump()),
        drift_models=settings.models_to_watch,
    )


def access_options(settings: Settings) -> AccessOptions:
    """Who may send requests, and how many."""
    return AccessOptions(
        settings.api_keys_file,
        settings.protect_operations,
        settings.rate_limit,
        settings.trusted_proxies,
        settings.cors_origins,
        [] if settings.vertex_health_route is None else [settings.vertex_health_route],
    )


def gpu_options(settings: Settings) -> GpuOptions:
    """Which GPU graphs may run on, and how."""
    return GpuOptions(settings.device_id, settings.gpu_memory_limit_bytes, settings.tensorrt_cache)


def default_models(settings: Settings, tasks: TaskRegistry) -> dict[tuple[str, str | None], str]:
    """(task, purpose) of an endpoint → the model that the settings name for requests that name none."""
    values = settings.model_dump()
    names = {(endpoint.task, endpoint.purpose): values.get(endpoint.default_setting or "") for endpoint in tasks.endpoints}
    return {endpoint: name for endpoint, name in names.items() if name}


async def _load(repository: Repository, on_loaded: OnLoaded | None, on_failed: OnFailed | None) -> None:
    try:
        await repository.start()
    except StartError as exc:
        (on_failed or _log_failure)(exc)
        return
    _finish_start(repository, on_loaded)


def _finish_start(repository: Repository, on_loaded: OnLoaded | None) -> None:
    if not repository.is_ready:
        log.error("not every model is ready", extra={"reason": repository.reason, "models": str(repository.models_dirs)})
    if on_loaded is not None:
        on_loaded(repository)


def _log_failure(exc: StartError) -> None:
    log.error("cannot start", extra={"reason": exc.message})


async def _flush_regularly(metrics: Metrics) -> None:
    while True:
        await asyncio.sleep(FLUSH_INTERVAL_S)
        metrics.flush()
