"""Builds the server from its settings: the models, the metrics, the doors, and how they are wired.

Everything happens here once, at start; no request comes by.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import NamedTuple, TypeVar

from fastapi import FastAPI

from service import __version__
from service.api import page
from service.api.access.addresses import ClientAddresses, parse_networks
from service.api.access.control import AccessControl
from service.api.access.cors import Cors, parse_origins
from service.api.access.keys import KeyRing, read_keys
from service.api.access.rates import RateTable, parse_rate
from service.api.error_handlers import add_error_handlers
from service.api.gateway import Gateway
from service.api.openapi import complete_openapi
from service.api.operations import operations_router
from service.api.predict import PREDICT_ROUTES, RequestLimits, documented_routes, predict_endpoints
from service.api.request import Hook
from service.errors import StartError
from service.files import FileWatch
from service.models.folder import ModelOptions
from service.models.repository import Opened, Repository
from service.observability.loop_lag import LagWatch
from service.observability.metrics import FLUSH_EVERY_S, Metrics
from service.process.machine import num_cores, threads_per_worker
from service.process.memory import give_back_at_rest
from service.runtime.onnx_runtime import GpuOptions, open_runtime, require_runtime
from service.scheduling.planning import Limits
from service.settings import Settings, SettingsError, environment_name

log = logging.getLogger(__name__)

# Time that measuring the cost of one graph may take at load: enough to see every batch size of a small one several times.
MEASURE_S = 0.1
# Two, so that a short body need not wait for a long one.
MIN_READERS = 2
# Clients whose rates are counted at once, 16 bytes for each: those of 65,536 addresses, and more keys than a file may hold.
NUM_ADDRESS_RATES = 65_536
NUM_KEY_RATES = 4096

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
    `on_failed` is called instead when this machine lacks what was asked for, a runtime or a GPU. `metrics_dir` is shared
    by the workers of one server (`workers.py`), `opened` are the models that their parent has opened for them, and in `rates`
    they count together. Raises SettingsError and StartError for what the access settings name.
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

    access = open_access(settings, metrics, rates)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # What is read on threads holds the GIL for the most part: more of them than cores would only delay the event loop.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(max(MIN_READERS, options.num_workers), "reader"))
        forever = [_flush_now_and_then(metrics), give_back_at_rest(), *(watch.run() for watch in access.watches)]
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
    api.router.routes.extend(documented_routes(PREDICT_ROUTES))
    api.include_router(operations_router(repository, metrics.render))
    add_error_handlers(api)
    complete_openapi(api)
    limits = RequestLimits(settings.request_timeout_ms / 1000, settings.max_instances, settings.max_body_bytes)
    return Gateway(
        api if access.cors is None else access.cors.wrap(api),
        direct=predict_endpoints(PREDICT_ROUTES, repository, metrics, limits),
        routes=[*api.openapi()["paths"], *page.ROUTES],
        observers=metrics,
        hooks=access.hooks,
        metrics_port=settings.metrics_port,
    )


def model_options(settings: Settings) -> ModelOptions:
    """How models are run, in the words of the rooms below."""
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


def gpu_options(settings: Settings) -> GpuOptions:
    """Which card graphs may run on, and how."""
    return GpuOptions(settings.device_id, settings.gpu_memory_limit_bytes, settings.tensorrt_cache)


def default_models(settings: Settings) -> dict[str, str]:
    """Task → the model that answers where a request names none."""
    chosen = {"forecast": settings.default_forecast_model, "classify": settings.default_sentiment_model}
    return {task: name for task, name in chosen.items() if name}


class RateTables(NamedTuple):
    """Where the requests of each key and of each address are counted."""

    keys: RateTable
    addresses: RateTable


def rate_tables(settings: Settings, context: BaseContext | None = None) -> RateTables | None:
    """The tables that processes of `context` share, or one process alone has; None where nothing can be limited."""
    if settings.rate_limit is None and settings.api_keys_file is None:
        return None
    return RateTables(RateTable(NUM_KEY_RATES, context), RateTable(NUM_ADDRESS_RATES, context))


class Access(NamedTuple):
    """What decides over access, opened: the hooks in their order, and the files that are read again when they change."""

    hooks: Sequence[Hook] = ()
    cors: Cors | None = None
    watches: Sequence[FileWatch] = ()


def open_access(settings: Settings, metrics: Metrics, rates: RateTables | None = None) -> Access:
    """Read what the settings name. Raises SettingsError for values without meaning, StartError for a keys file that is wrong."""
    rate = _parse("rate_limit", settings.rate_limit, parse_rate)
    trusted = _parse("trusted_proxies", settings.trusted_proxies, lambda text: parse_networks(text.split(",")))
    origins = _parse("cors_origins", settings.cors_origins, lambda text: parse_origins(text.split(",")))
    if settings.protect_operations and settings.api_keys_file is None:
        raise SettingsError("SLUICE_PROTECT_OPERATIONS needs keys: SLUICE_API_KEYS_FILE names their file")
    cors = Cors(origins) if origins else None
    keys, watches = None, []
    if (file := settings.api_keys_file) is not None:
        keys = KeyRing(read_keys(file))
        watches.append(FileWatch([file], functools.partial(_read_keys_again, file, keys)))
    hooks: list[Hook] = [] if cors is None else [cors]
    tables = rates or rate_tables(settings)
    if tables is not None:
        hooks.append(
            AccessControl(
                metrics,
                keys=keys,
                rate=rate,
                key_rates=tables.keys,
                address_rates=tables.addresses,
                addresses=ClientAddresses(trusted or ()),
                protects_operations=settings.protect_operations,
            )
        )
    return Access(hooks, cors, watches)


def _read_keys_again(file: Path, keys: KeyRing) -> None:
    if keys.replace(read_keys(file)):
        log.info("API keys have changed", extra={"keys": len(keys)})


_Value = TypeVar("_Value")


def _parse(field: str, text: str | None, parse: Callable[[str], _Value]) -> _Value | None:
    try:
        return None if text is None else parse(text)
    except ValueError as exc:
        raise SettingsError(f"{environment_name(field)}={text}: {exc}", name=environment_name(field)) from exc


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


async def _flush_now_and_then(metrics: Metrics) -> None:
    while True:
        await asyncio.sleep(FLUSH_EVERY_S)
        metrics.flush()
