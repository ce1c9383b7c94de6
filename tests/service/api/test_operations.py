"""The index, the models, health and metrics."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from service import __version__
from tests.folders import write_forecast_folder, write_tensor_folder, write_text_folder
from tests.serving import client_of


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_forecast_folder(folder)
    write_text_folder(folder)
    write_tensor_folder(folder)
    (write_text_folder(folder, "broken") / "model.onnx").write_bytes(b"<script>")
    return folder


@pytest.fixture
async def client(models: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(models) as client:
        yield client


async def test_a_broken_folder_is_listed_with_its_reason(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/models")).json()["models"]
    assert {model["name"]: model["state"] for model in listed} == {
        "broken": "UNAVAILABLE",
        "toy-forecast": "READY",
        "toy-sentiment": "READY",
        "toy-tensor": "READY",
    }
    assert "sha256" in (await client.get("/models/broken")).json()["reason"]


async def test_readiness_lists_the_state_of_every_model(client: httpx.AsyncClient) -> None:
    answer = await client.get("/health/ready")
    listed = (await client.get("/models")).json()["models"]
    assert answer.json()["models"] == listed
    assert (answer.status_code, answer.json()["status"]) == (503, "not ready")
    assert answer.json()["reason"].startswith("model folder broken/1 is UNAVAILABLE: model.onnx: its sha256 is")


async def test_readiness_that_is_not_strict_needs_one_model(models: Path) -> None:
    async with client_of(models, strict_readiness=False) as client:
        answer = await client.get("/health/ready")
        assert (answer.status_code, answer.json()["status"]) == (200, "ready")
        assert "broken" in {model["name"] for model in answer.json()["models"]}


async def test_without_a_model_the_server_is_live_and_not_ready(tmp_path: Path) -> None:
    async with client_of(tmp_path) as client:
        assert (await client.get("/health/live")).json() == {"status": "live"}
        answer = await client.get("/health/ready")
        assert (answer.status_code, answer.json()["status"]) == (503, "not ready")
        assert "no model folder" in answer.json()["reason"]


async def test_a_model_describes_what_it_accepts(client: httpx.AsyncClient) -> None:
    description = (await client.get("/models/toy-forecast")).json()
    found = tuple(description[key] for key in ("name", "version", "state", "task"))
    assert found == ("toy-forecast", "1", "READY", "forecast")
    assert description["forecast"]["min_length"] == 2
    assert description["forecast"]["point"] in ("mean", "median")


async def test_models_are_listed_in_the_order_of_their_names(client: httpx.AsyncClient) -> None:
    names = [model["name"] for model in (await client.get("/models")).json()["models"]]
    assert names == ["broken", "toy-forecast", "toy-sentiment", "toy-tensor"]


async def test_the_index_is_json_where_json_is_asked_for_and_a_page_where_html_is(client: httpx.AsyncClient) -> None:
    index = await client.get("/", headers={"accept": "application/json"})
    assert index.json().keys() == {"name", "version", "endpoints"}
    assert (index.json()["name"], index.json()["version"]) == ("sluice", __version__)
    document = (await client.get("/openapi.json")).json()
    assert index.json()["endpoints"].keys() == document["paths"].keys()
    assert index.json()["endpoints"]["/predict/forecast"].startswith("POST: ")
    for accept in ("*/*", "text/html,application/xhtml+xml,application/json;q=0.9"):
        page = await client.get("/", headers={"accept": accept})
        assert page.headers["content-type"].startswith("text/html")
        assert (page.headers["vary"], index.headers["vary"]) == ("accept", "accept")


READINESS = ("/health/ready", "/v2/health/ready", "/ping")


async def test_the_index_page_lists_every_endpoint_and_model_and_its_links_lead_somewhere(client: httpx.AsyncClient) -> None:
    page = (await client.get("/", headers={"accept": "text/html"})).text
    document = (await client.get("/openapi.json")).json()
    shown = set(re.findall(r"<code>([^<]*)</code>", page))
    assert shown >= {*document["paths"], "broken", "toy-forecast", "toy-sentiment", "toy-tensor"}
    links = set(re.findall(r'href="(/[^"]*)"', page))
    assert links >= {"/docs", "/openapi.json", "/models", "/models/broken"}
    for link in links:
        assert (await client.get(link)).status_code == (503 if link in READINESS else 200), link


async def test_metrics_are_in_the_format_that_accept_names(client: httpx.AsyncClient) -> None:
    plain = await client.get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain")
    openmetrics = await client.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")


@pytest.mark.parametrize("path", ["/", "/models", "/models/toy-tensor", "/health/live", "/metrics"])
async def test_head_is_get_without_a_body(client: httpx.AsyncClient, path: str) -> None:
    head, get = await client.head(path), await client.get(path)
    assert (head.status_code, head.headers["content-type"]) == (200, get.headers["content-type"])


@pytest.mark.parametrize(("path", "allowed"), [("/models", "GET, HEAD"), ("/docs", "GET, HEAD"), ("/predict", "POST")])
async def test_a_refused_method_names_those_that_are_allowed(client: httpx.AsyncClient, path: str, allowed: str) -> None:
    answer = await client.delete(path)
    assert (answer.status_code, answer.headers["allow"], answer.json()["allowed"]) == (405, allowed, allowed.split(", "))
