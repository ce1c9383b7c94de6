"""Builds the server from its settings: the models, the metrics, the endpoints, and how they are wired.

Everything happens here once, at start; no request passes through.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fastapi import FastAPI

from service import __version__
from service.api import page
from service.api.access.wiring import AccessOptions, RateTables, open_access
from service.api.error_handlers import add_error_handlers
from service.api.gateway import Gateway
from service.api.openapi import complete_openapi
from service.api.operations import operations_router
from service.api.predict import PREDICT_ROUTES, RequestLimits, documented_routes, predict_endpoints
from service.errors import StartError
from service.models.folder import ModelOptions
from service.models.repository import Opened, Repository
from service.observability.loop_lag import LoopLagMonitor
from service.observability.metrics import FLUSH_INTERVAL_S, Metrics
from service.process.machine import num_cores, threads_per_worker
from service.process.memory import trim_heap_when_idle
from service.runtime.onnx_runtime import GpuOptions, open_runtime, require_runtime
from service.scheduling.planning import Limits
from service.settings import Settings

log = logging.getLogger(__name__)

# Time that measuring the cost of one graph may take at load: enough to see every batch size of a small one several times.
MEASURE_S = 0.1
# Two, so that a short body need not wait behind a long one.
MIN_READERS = 2

OnLoaded = Callable[[Repository], None]
OnFailed = Callable[[StartError], None]


def create_app(
    settings: Settings,
    *,
    metrics_dir: Path | None = None,
    opened: Opened | None = None,
    rates: RateTables | None = None,
    on_loaded: OnLoaded | None = None,
    on_failed: OnFailed | None = None,
) -> Gateway:
    """The whole server as one ASGI app.

    It answers at once; the models load beside it, and `on_loaded` is called when each folder is READY or UNAVAILABLE.
    `on_failed` is called instead when this machine lacks what was requested, a runtime or a GPU. `metrics_dir` is shared by
    the workers of one server, `opened` are the models that their parent has opened for them, `rates` where they count requests
    together. Raises StartError for what the settings of access name.
    """
    metrics = Metrics(version=__version__, onnxruntime=require_runtime().__version__, directory=metrics_dir)
    options = model_options(settings)
    repository = Repository(
        settings.models,
        options,
        defaults=default_models(settings),
        observer=metrics,
        open_graph=functools.partial(open_runtime, gpu=gpu_options(settings)),
        opened=opened,
    )

    access = open_access(access_options(settings), metrics, rates)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # What is read on threads holds the GIL for the most part: more of them than cores would only delay the event loop.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(max(MIN_READERS, options.num_workers), "reader"))
        endless = (_flush_regularly(metrics), trim_heap_when_idle(), *(watch.run() for watch in access.watches))
        tasks = [asyncio.create_task(each) for each in (_load(repository, on_loaded, on_failed), *endless)]
        lag_monitor = LoopLagMonitor(metrics.observe_loop_lag)
        lag_monitor.start()
        try:
            yield
        finally:
            lag_monitor.stop()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await repository.stop()
            metrics.flush()

    api = FastAPI(
        title="Sluice",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's page loads its scripts from the internet; ours is in api/page.py
        redoc_url=None,
        redirect_slashes=False,
    )
    api.router.routes.extend(documented_routes(PREDICT_ROUTES))
    api.include_router(operations_router(repository, metrics.render))
    add_error_handlers(api)
    complete_openapi(api)
    limits = RequestLimits(settings.request_timeout_ms / 1000, settings.max_instances, settings.max_body_bytes)
    return Gateway(
        access.wrap(api),
        direct=predict_endpoints(PREDICT_ROUTES, repository, metrics, limits),
        routes=[*api.openapi()["paths"], *page.ROUTES],
        observers=metrics,
        hooks=access.hooks,
        metrics_port=settings.metrics_port,
    )


def model_options(settings: Settings) -> ModelOptions:
    """How models are run, as the folders below take it."""
    limits = Limits(
        max_batch_size=settings.max_batch_size,
        max_padded_steps=settings.max_padded_steps,
        max_queue_size=settings.max_queue_size,
        max_queue_delay_s=settings.max_queue_delay_ms / 1000,
    )
    num_threads = settings.num_threads or threads_per_worker(num_cores(), settings.workers or 1)
    return ModelOptions(
        settings.device,
        num_threads,
        limits,
        settings.max_horizon_multiple,
        latency_target_ms=settings.latency_target_ms,
        measure_s=MEASURE_S,
        precision=settings.precision,
    )


def access_options(settings: Settings) -> AccessOptions:
    """Who may send requests, and how many."""
    return AccessOptions(
        settings.api_keys_file,
        settings.protect_operations,
        settings.rate_limit,
        settings.trusted_proxies,
        settings.cors_origins,
    )


def gpu_options(settings: Settings) -> GpuOptions:
    """Which GPU graphs may run on, and how."""
    return GpuOptions(settings.device_id, settings.gpu_memory_limit_bytes, settings.tensorrt_cache)


def default_models(settings: Settings) -> dict[str, str]:
    """Task → the model that answers where a request names none."""
    chosen = {"forecast": settings.default_forecast_model, "classify": settings.default_sentiment_model}
    return {task: name for task, name in chosen.items() if name}


async def _load(repository: Repository, on_loaded: OnLoaded | None, on_failed: OnFailed | None) -> None:
    try:
        await repository.start()
    except StartError as exc:
        if on_failed is None:
            log.error("cannot start", extra={"reason": exc.message})
        else:
            on_failed(exc)
        return
    if not repository.is_ready:
        log.error("no model is ready", extra={"reason": repository.reason})
    if on_loaded is not None:
        on_loaded(repository)


async def _flush_regularly(metrics: Metrics) -> None:
    while True:
        await asyncio.sleep(FLUSH_INTERVAL_S)
        metrics.flush()
