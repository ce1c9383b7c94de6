"""The doors for people and machines that look after the service."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service import __version__
from service.api.errors import TABLE
from service.api.operations import DOORS, STATIC
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


async def test_a_broken_folder_is_shown_and_does_not_stand_in_the_way(client: httpx.AsyncClient) -> None:
    answer = await client.get("/health/ready")
    assert (answer.status_code, answer.json()["status"]) == (200, "ready")
    states = {model["name"]: model["state"] for model in answer.json()["models"]}
    assert states == {
        "broken": "UNAVAILABLE",
        "toy-forecast": "READY",
        "toy-sentiment": "READY",
        "toy-tensor": "READY",
    }
    broken = (await client.get("/models/broken")).json()
    assert "sha256" in broken["reason"]


async def test_without_a_model_the_server_lives_and_is_not_ready(tmp_path: Path) -> None:
    async with client_of(tmp_path) as client:
        assert (await client.get("/health/live")).json() == {"status": "live"}
        answer = await client.get("/health/ready")
        assert (answer.status_code, answer.json()["status"]) == (503, "not ready")
        assert "no model folder" in answer.json()["reason"]


async def test_a_model_tells_what_it_takes(client: httpx.AsyncClient) -> None:
    about = (await client.get("/models/toy-forecast")).json()
    assert (about["name"], about["version"], about["state"], about["task"]) == ("toy-forecast", "1", "READY", "forecast")
    assert about["forecast"]["min_length"] == 2
    assert [model["name"] for model in (await client.get("/models")).json()["models"]] == [
        "broken",
        "toy-forecast",
        "toy-sentiment",
        "toy-tensor",
    ]


async def test_the_first_page_links_every_door(client: httpx.AsyncClient) -> None:
    page = (await client.get("/")).text
    assert all(door in page for door in DOORS)
    for link in set(re.findall(r'href="(/[^"]*)"', page)):
        assert (await client.get(link)).status_code == 200, link
    about = (await client.get("/", headers={"accept": "application/json"})).json()
    assert (about["version"], about["doors"]) == (__version__, dict(DOORS))


async def test_every_door_is_listed_and_documented(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    assert {*document["paths"]} == {*DOORS} - {"/docs", "/openapi.json"} | {"/"}


async def test_the_pages_need_no_internet(client: httpx.AsyncClient) -> None:
    page = await client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    files = set(re.findall(r'(?:src|href)="(/static/[^"]*)"', page.text))
    assert files == {"/static/docs.css", "/static/docs.js"}
    for file in files:
        assert (await client.get(file)).status_code == 200
    for path in STATIC.iterdir():
        assert re.findall(r"(?:https?:)?//[a-z]+\.[a-z]", path.read_text()) == [], path


@pytest.mark.parametrize("door", ["/", "/models", "/health/live", "/health/ready", "/docs"])
async def test_head_is_get_without_a_body(client: httpx.AsyncClient, door: str) -> None:
    assert (await client.head(door)).status_code == 200


@pytest.mark.parametrize(("door", "allowed"), [("/models", "GET, HEAD"), ("/docs", "GET, HEAD"), ("/predict", "POST")])
async def test_a_refused_method_is_told_all_that_are_taken(client: httpx.AsyncClient, door: str, allowed: str) -> None:
    answer = await client.delete(door)
    assert (answer.status_code, answer.headers["allow"], answer.json()["allowed"]) == (405, allowed, allowed.split(", "))


async def test_the_schemas_tell_gaps_and_name_a_model_of_their_task(client: httpx.AsyncClient) -> None:
    schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
    numbers, rows = schemas["ForecastInstance"]["properties"]["history"]["anyOf"]
    assert numbers["items"]["anyOf"] == rows["items"]["items"]["anyOf"] == [{"type": "number"}, {"type": "null"}]
    for kind, name in (("Forecast", "forecast-hourly"), ("Sentiment", "sentiment-en")):
        for schema in (f"{kind}Request", f"{kind}Response"):
            assert schemas[schema]["properties"]["model"]["examples"] == [name], schema


def fields_of(schemas: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(name, field, about) for name, schema in schemas.items() for field, about in schema.get("properties", {}).items()]


async def test_every_field_of_every_door_has_a_description(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    fields = fields_of(document["components"]["schemas"])
    assert len(fields) > 40
    assert [(name, field) for name, field, about in fields if not about.get("description")] == []


async def test_every_plain_field_has_an_example(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    without = [
        f"{name}.{field}"
        for name, field, about in fields_of(document["components"]["schemas"])
        if "examples" not in about and "$ref" not in str(about)
    ]
    assert without == []


async def test_the_documentation_explains_every_error_where_problems_point(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    assert [error["code"] for error in document["x-errors"]] == [entry.error.code for entry in TABLE]
    assert all(error["description"] for error in document["x-errors"])
    for path in ("/predict", "/predict/forecast", "/predict/sentiment"):
        responses = document["paths"][path]["post"]["responses"]
        assert set(responses) == {"200", "400", "404", "413", "415", "422", "500", "503", "504"}
        bodies = {str(response["content"]) for status, response in responses.items() if status != "200"}
        assert bodies == {"{'application/problem+json': {'schema': {'$ref': '#/components/schemas/Problem'}}}"}


async def test_the_examples_of_the_documentation_are_answered(client: httpx.AsyncClient) -> None:
    schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
    history = schemas["ForecastInstance"]["properties"]["history"]["examples"][0]
    start = schemas["ForecastInstance"]["properties"]["start"]["examples"][0]
    answer = await client.post("/predict/forecast", json={"instances": [{"history": history, "start": start, "frequency": "H"}]})
    assert set(answer.json()["predictions"][0]) == set(schemas["Forecast"]["properties"])
    texts = schemas["SentimentRequest"]["properties"]["instances"]["examples"][0]
    answer = await client.post("/predict/sentiment", json={"instances": texts})
    assert answer.status_code == 200
    assert set(answer.json()["predictions"][0]) | {"truncated"} == set(schemas["Sentiment"]["properties"])
