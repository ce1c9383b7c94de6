"""How the server is built from its settings."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service.api.error_handlers import add_error_handlers
from service.api.gateway import Gateway
from service.api.operations import operations_router
from service.app import create_app, default_models, model_options
from service.errors import StartError
from service.models.repository import Repository
from service.observability.metrics import Metrics
from service.observability.scraping import ScrapeCache
from service.process.machine import num_cores
from service.scheduling.planning import RequestedLimits
from service.server import startup_message
from service.settings import Settings
from service.tasks.forecast import ForecastDefinition
from service.tasks.registry import built_in_tasks
from tests.folders import write_forecast_folder, write_text_folder
from tests.serving import PATIENCE_S, client_of, lifespan


def test_settings_become_the_options_of_the_models() -> None:
    settings = Settings(
        device="cpu",
        num_threads=3,
        max_batch_size=4,
        max_padded_steps=5,
        max_queue_size=6,
        max_queue_delay_ms=7,
        max_horizon_multiple=8,
    )
    options = model_options(settings)
    limits = options.limits
    assert (options.device, options.num_workers, options.tasks["forecast"]) == ("cpu", 3, ForecastDefinition(8))
    assert (limits.max_batch_size, limits.max_padded_steps, limits.max_queue_size, limits.max_queue_delay_s) == (4, 5, 6, 0.007)


def test_threads_are_the_cores_shared_by_the_workers() -> None:
    assert model_options(Settings(workers=1)).num_workers == num_cores() >= 1
    assert model_options(Settings(workers=256)).num_workers == 1


def test_a_limit_of_0_is_left_to_what_is_measured() -> None:
    assert model_options(Settings()).limits == RequestedLimits()


def test_a_default_model_is_named_per_endpoint() -> None:
    tasks = built_in_tasks()
    assert default_models(Settings(), tasks) == {}
    found = default_models(Settings(default_forecast_model="a", default_sentiment_model="b"), tasks)
    assert found == {("forecast", None): "a", ("classify", "sentiment"): "b"}


async def test_the_server_answers_before_its_models_are_loaded(tmp_path: Path) -> None:
    write_forecast_folder(tmp_path)
    ready = asyncio.Event()
    app = create_app(Settings(models=tmp_path, device="cpu"), on_loaded=lambda _: ready.set())
    async with lifespan(app), httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://sluice") as client:
        assert (await client.get("/health/live")).status_code == 200
        early = await client.get("/health/ready")
        answer = await client.post("/predict/forecast", json={"instances": [{"history": [1, 2]}]})
        # Loading reads on threads; whether it is over by now is open, and both answers must be right.
        if early.status_code == 503:
            assert early.json()["status"] == "not ready"
        assert answer.status_code in (200, 503)
        await asyncio.wait_for(ready.wait(), PATIENCE_S)
        assert (await client.get("/health/ready")).status_code == 200


async def test_the_default_models_are_the_chosen_ones(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_forecast_folder(tmp_path, f"forecast-{name}")
        write_text_folder(tmp_path, f"text-{name}")
    async with client_of(tmp_path, default_forecast_model="forecast-b", default_sentiment_model="text-b") as client:
        forecast = await client.post("/predict/forecast", json={"instances": [{"history": [1, 2]}]})
        text = await client.post("/predict/sentiment", json={"instances": ["good"]})
        assert (forecast.json()["model"], text.json()["model"]) == ("forecast-b", "text-b")


async def test_a_full_queue_answers_when_to_try_again(tmp_path: Path) -> None:
    write_forecast_folder(tmp_path)
    body = {"instances": [{"history": [1, 2]}]}
    # A batch that waits two minutes for more rows fills a queue of one row.
    long = {"max_queue_delay_ms": 60_000, "request_timeout_ms": 120_000}
    async with client_of(tmp_path, max_queue_size=1, **long) as client:
        requests = {asyncio.create_task(client.post("/predict/forecast", json=body)) for _ in range(2)}
        done, waiting = await asyncio.wait(requests, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
        busy = done.pop().result()
        assert (busy.status_code, busy.json()["code"]) == (503, "overloaded")
        assert int(busy.headers["retry-after"]) >= 1
        (first,) = waiting
        first.cancel()
        await asyncio.wait([first])


async def test_an_answer_that_would_come_too_late_is_not_computed(tmp_path: Path) -> None:
    write_forecast_folder(tmp_path)
    async with client_of(tmp_path, request_timeout_ms=0.001) as client:
        answer = await client.post("/predict/forecast", json={"instances": [{"history": [1, 2]}]})
        assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
        assert 'sluice_batch_executions_total{model="toy-forecast",version="1"} 0.0' in (await client.get("/metrics")).text


async def test_a_device_that_the_machine_lacks_is_reported_to_the_caller(tmp_path: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime can use CUDA")
    write_forecast_folder(tmp_path)
    failed: asyncio.Future[StartError] = asyncio.get_running_loop().create_future()
    app = create_app(Settings(models=tmp_path, device="cuda"), on_failed=failed.set_result)
    async with lifespan(app):
        assert "cuda" in (await asyncio.wait_for(failed, PATIENCE_S)).message


async def test_an_unexpected_error_of_a_documented_route_is_a_problem_too(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Repository):
        def describe(self) -> list[dict[str, Any]]:
            raise ZeroDivisionError("/secret")

    api, metrics = FastAPI(), Metrics(version="0", onnxruntime="0")
    api.include_router(operations_router(Broken(Path("nowhere")), ScrapeCache(metrics, time.monotonic).render))
    add_error_handlers(api)
    gateway = Gateway(api, direct={}, routes=["/models"], observers=metrics)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(gateway), base_url="http://sluice") as client:
        answer = await client.get("/models")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert answer.headers["content-type"] == "application/problem+json"
    assert "secret" not in answer.text
    assert "secret" in caplog.text


async def test_the_start_message_says_what_keeps_the_server_from_being_ready(tmp_path: Path) -> None:
    write_text_folder(tmp_path)
    (write_forecast_folder(tmp_path, "broken") / "example.json").unlink()
    repository = Repository(tmp_path)
    await repository.start()
    first, _, command = startup_message(repository, "http://host").splitlines()
    assert "is not ready (model folder broken/1 is UNAVAILABLE: example.json" in first
    assert "and answers at http://host (documentation at http://host/docs)" in first
    assert command.startswith("  curl -s http://host/predict/sentiment -H")
    await repository.stop()
