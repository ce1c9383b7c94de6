"""Builds the server from its settings: the models, the metrics, the doors, and how they are wired.

Everything happens here once, at start; no request comes by.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from service import __version__
from service.api import page
from service.api.errors import InternalError, MethodNotAllowed, NotFound, problem
from service.api.middleware import Edge
from service.api.openapi import complete_openapi
from service.api.operations import operations_router
from service.api.predict import predict_routes
from service.errors import MalformedRequest, ServiceError, StartError
from service.models.folder import ModelOptions
from service.models.repository import Preload, Repository
from service.observability.loop_lag import LagWatch
from service.observability.metrics import FLUSH_EVERY_S, Metrics
from service.process.machine import num_cores, threads_per_worker
from service.process.memory import give_back_at_rest
from service.runtime.onnx_runtime import GpuOptions, open_runtime, require_runtime
from service.scheduling.loop_budget import LoopBudget
from service.scheduling.planning import RequestedLimits
from service.settings import Settings
from service.tasks.registry import TaskRegistry, built_in_tasks

log = logging.getLogger(__name__)

# Time that measuring the cost of one graph may take at load: enough to see every batch size of a small one several times.
MEASURE_S = 0.1
# Two, so that a short body need not wait for a long one.
MIN_READERS = 2

OnLoaded = Callable[[Repository], None]
OnFailed = Callable[[StartError], None]


def create_app(
    settings: Settings,
    *,
    metrics_dir: Path | None = None,
    preload: Preload | None = None,
    tasks: TaskRegistry | None = None,
    on_loaded: OnLoaded | None = None,
    on_failed: OnFailed | None = None,
) -> Edge:
    """The whole server as one ASGI app.

    It answers at once; the models load beside it, and `on_loaded` is called when each folder is READY or UNAVAILABLE.
    `on_failed` is called instead when this machine lacks what was asked for, a runtime or a GPU. `metrics_dir` is shared
    by the workers of one server, `preload` holds what their parent has read for them. `tasks` are those that folders may be for,
    None: the built-in ones.
    """
    metrics = Metrics(version=__version__, onnxruntime=require_runtime().__version__, directory=metrics_dir)
    options = model_options(settings, tasks)
    repository = Repository(
        settings.models,
        options,
        defaults=default_models(settings, options.tasks),
        strict_readiness=settings.strict_readiness,
        observer=metrics,
        open_graph=functools.partial(open_runtime, gpu=gpu_options(settings)),
        preload=preload,
        loop_budget=LoopBudget(),
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # What is read on threads holds the GIL for the most part: more of them than cores would only delay the event loop.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(max(MIN_READERS, options.num_workers), "reader"))
        forever = (_flush_now_and_then(metrics), give_back_at_rest())
        tasks = [asyncio.create_task(each) for each in (_load(repository, on_loaded, on_failed), *forever)]
        watch = LagWatch(metrics.loop_was_late)
        watch.start()
        try:
            yield
        finally:
            watch.stop()
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
    hot = predict_routes(
        repository,
        metrics,
        options.tasks.endpoints,
        request_timeout_s=settings.request_timeout_ms / 1000,
        max_instances=settings.max_instances,
        max_body_bytes=settings.max_body_bytes,
    )
    api.router.routes.extend(hot)
    descriptions = {task.name: task.description for task in options.tasks if task.description is not None}
    api.include_router(operations_router(repository, metrics.render, descriptions))
    answer_errors_as_problems(api)
    complete_openapi(api)
    return Edge(
        api,
        hot={route.path: route.door for route in hot},
        routes=[*api.openapi()["paths"], *page.ROUTES],
        observers=metrics,
        metrics_port=settings.metrics_port,
    )


def model_options(settings: Settings, tasks: TaskRegistry | None = None) -> ModelOptions:
    """How models are run, in the words of the rooms below."""
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
        precision=settings.precision,
        tasks=(tasks or built_in_tasks()).configure(settings.model_dump()),
    )


def gpu_options(settings: Settings) -> GpuOptions:
    """Which card graphs may run on, and how."""
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
        if on_failed is None:
            log.error("cannot start", extra={"reason": exc.message})
        else:
            on_failed(exc)
        return
    if not repository.is_ready:
        log.error("not every model is ready", extra={"reason": repository.reason})
    if on_loaded is not None:
        on_loaded(repository)


async def _flush_now_and_then(metrics: Metrics) -> None:
    while True:
        await asyncio.sleep(FLUSH_EVERY_S)
        metrics.flush()


def answer_errors_as_problems(api: FastAPI) -> None:
    """Have every error of the doors that FastAPI runs said by the table of `api/errors.py`."""

    def answer(exc: ServiceError) -> Response:
        status, headers, body = problem(exc)
        return Response(body, status, {name.decode(): value.decode() for name, value in headers})

    async def known(_: Request, exc: Exception) -> Response:
        assert isinstance(exc, ServiceError)
        return answer(exc)

    async def http(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, HTTPException)
        path = request.url.path[:200]
        if exc.status_code == 405:
            allowed = set((exc.headers or {}).get("Allow", "").split(", "))
            # GET and HEAD are routes of their own, and Starlette names the first one's methods only.
            return answer(MethodNotAllowed(request.method, path, allowed | ({"HEAD"} if "GET" in allowed else set())))
        if exc.status_code == 404:
            return answer(NotFound(f'there is nothing at "{path}"', path=path))
        return answer(InternalError(str(exc.detail)))

    async def malformed(_: Request, exc: Exception) -> Response:
        return answer(MalformedRequest(str(exc)))

    async def unexpected(_: Request, exc: Exception) -> Response:
        # Starlette raises it again after this answer, and the edge logs it.
        return answer(InternalError("an unexpected error; the log says more"))

    api.add_exception_handler(Exception, unexpected)
    api.add_exception_handler(ServiceError, known)
    api.add_exception_handler(HTTPException, http)
    api.add_exception_handler(RequestValidationError, malformed)
