"""How HTTP calls each error, door by door."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service import errors
from service.api.errors import TABLE, InternalError, MethodNotAllowed, find_row, problem
from service.errors import DeadlineExceeded, FolderError, InferenceFailed, InvalidInput, ModelNotReady, Overloaded, ServiceError
from tests.folders import write_forecast_folder, write_tensor_folder, write_text_folder
from tests.serving import client_of

JSON = {"content-type": "application/json"}
PREDICT_DOORS = ("/predict", "/predict/forecast", "/predict/sentiment")
READ_DOORS = ("/", "/models", "/models/toy-forecast", "/health/live", "/health/ready", "/metrics", "/docs", "/openapi.json")
ENVELOPE = {"type", "title", "status", "detail", "code"}


def all_errors(root: type[ServiceError] = ServiceError) -> list[type[ServiceError]]:
    return [root, *(error for child in root.__subclasses__() for error in all_errors(child))]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_forecast_folder(folder)
    write_text_folder(folder)
    write_tensor_folder(folder)
    (write_forecast_folder(folder, "broken") / "manifest.json").write_text("{}")
    return folder


@pytest.fixture
async def client(models: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(models, max_instances=50, max_body_bytes=20_000) as client:
        yield client


def assert_problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    content: dict[str, Any] = answer.json()
    assert (answer.status_code, content["code"]) == (status, code), content
    assert answer.headers["content-type"] == "application/problem+json"
    assert content.keys() >= ENVELOPE
    assert content["status"] == status
    assert content["type"] == f"/docs/errors#{code}"
    return content


def body_for(door: str, instances: list[Any], **more: Any) -> dict[str, Any]:
    return {"instances": instances, **({"model": "toy-forecast"} if door == "/predict" else {}), **more}


GOOD: dict[str, Any] = {
    "/predict": {"history": [1, 2, 3]},
    "/predict/forecast": {"history": [1, 2, 3]},
    "/predict/sentiment": "a good film",
}
# What every door that predicts refuses in the same way: body, headers, status, code, a word of the detail.
REFUSED: list[tuple[str, bytes | None, dict[str, str], int, str, str]] = [
    ("empty body", b"", JSON, 400, "malformed_request", "empty"),
    ("not JSON", b"{", JSON, 400, "malformed_request", "not JSON"),
    ("not UTF-8", b'{"model": "\xff"}', JSON, 400, "malformed_request", "not JSON"),
    ("a list", b"[]", JSON, 400, "malformed_request", "a list, expected an object"),
    ("a number", b"1", JSON, 400, "malformed_request", "a number, expected an object"),
    ("nothing in it", b"{}", JSON, 400, "malformed_request", '"instances" is missing'),
    ("instances of a wrong type", b'{"instances": {}}', JSON, 400, "malformed_request", '"instances" is an object'),
    ("unknown field", b'{"model": "toy-forecast", "instances": [1], "inputs": 1}', JSON, 400, "malformed_request", '"inputs"'),
    ("model of a wrong type", b'{"model": 1, "instances": [1]}', JSON, 400, "malformed_request", '"model" is a number'),
    (
        "version of a wrong type",
        b'{"model": "toy-forecast", "version": 1, "instances": [1]}',
        JSON,
        400,
        "malformed_request",
        "version",
    ),
    ("parameters of a wrong type", b'{"instances": [1], "parameters": []}', JSON, 400, "malformed_request", "parameters"),
    ("nested too deep", b"[" * 19_999, JSON, 400, "malformed_request", "depth"),
    ("nested deep", b'{"instances": ' + b"[" * 150 + b"]" * 150 + b"}", JSON, 0, "", ""),
    ("no instances", b'{"instances": []}', JSON, 422, "invalid_input", "empty"),
    ("NaN", b'{"instances": [{"history": [1]}, {"history": [1, NaN]}]}', JSON, 422, "invalid_input", "instance 1: history[1]"),
    ("Infinity", b'{"instances": ["a", -Infinity]}', JSON, 422, "invalid_input", "instance 1"),
    ("NaN outside", b'{"instances": ["a"], "parameters": {"a": NaN}}', JSON, 400, "malformed_request", "NaN"),
    ("unknown model", b'{"model": "nobody", "instances": [1]}', JSON, 404, "model_not_found", "nobody"),
    ("a path for a model", b'{"model": "../toy-forecast", "instances": [1]}', JSON, 404, "model_not_found", ""),
    (
        "unknown version",
        b'{"model": "toy-forecast", "version": "9", "instances": [1]}',
        JSON,
        404,
        "model_not_found",
        "version 9",
    ),
    ("broken model", b'{"model": "broken", "instances": [1]}', JSON, 503, "model_not_ready", "broken"),
    (
        "too many instances",
        b'{"instances": [' + b"1," * 50 + b"1]}",
        JSON,
        413,
        "payload_too_large",
        "SLUICE_MAX_INSTANCES is 50",
    ),
    ("too many bytes", b" " * 20_001, JSON, 413, "payload_too_large", "SLUICE_MAX_BODY_BYTES is 20000"),
    ("a form", b"a=1", {"content-type": "application/x-www-form-urlencoded"}, 400, "malformed_request", "not JSON"),
    ("another type", b"{}", {"content-type": "text/plain"}, 415, "unsupported_media_type", "application/json"),
    ("zipped", b"{}", JSON | {"content-encoding": "gzip"}, 415, "unsupported_media_type", "gzip"),
]


@pytest.mark.parametrize("door", PREDICT_DOORS)
async def test_every_predicting_door_refuses_what_is_wrong_in_the_same_words(client: httpx.AsyncClient, door: str) -> None:
    for name, body, headers, status, code, word in REFUSED:
        answer = await client.post(door, content=body, headers=headers)
        if name == "nested deep":
            assert answer.status_code in (400, 422), name
            continue
        if name in ("parameters of a wrong type", "nothing in it") and door == "/predict":
            assert answer.status_code == 400
            continue
        content = assert_problem(answer, status, code)
        assert word in content["detail"], name
        assert answer.headers.get("retry-after") == ("1" if status == 503 else None), name
    assert (await client.post(door, json=body_for(door, [GOOD[door]]))).status_code == 200


@pytest.mark.parametrize("door", PREDICT_DOORS)
async def test_one_bad_instance_among_good_ones_is_named(client: httpx.AsyncClient, door: str) -> None:
    bad = {"/predict/sentiment": "  "}.get(door, {"history": [1, 1e39, 3]})
    answer = await client.post(door, json=body_for(door, [GOOD[door], GOOD[door], bad, GOOD[door]]))
    content = assert_problem(answer, 422, "invalid_input")
    assert content["instance_index"] == 2
    assert "instance 2" in content["detail"]


async def test_a_model_of_another_task_is_refused_by_its_name(client: httpx.AsyncClient) -> None:
    answer = await client.post("/predict/sentiment", json={"model": "toy-forecast", "instances": ["a"]})
    assert "forecast model" in assert_problem(answer, 422, "invalid_input")["detail"]


async def test_predict_needs_a_model(client: httpx.AsyncClient) -> None:
    answer = await client.post("/predict", json={"instances": [1]})
    assert "GET /models" in assert_problem(answer, 400, "malformed_request")["detail"]


@pytest.mark.parametrize("door", [*PREDICT_DOORS, *READ_DOORS])
async def test_a_door_says_which_methods_it_takes(client: httpx.AsyncClient, door: str) -> None:
    answer = await client.request("DELETE", door)
    content = assert_problem(answer, 405, "method_not_allowed")
    allowed = answer.headers["allow"].split(", ")
    assert allowed == content["allowed"]
    assert ("POST" if door in PREDICT_DOORS else "GET") in allowed


@pytest.mark.parametrize(
    "path", ["/nothing", "/predict/", "/predict/nothing", "/models/a/b", "/static/../app.py", "/static/docs.html"]
)
async def test_an_unknown_path_is_a_problem_too(client: httpx.AsyncClient, path: str) -> None:
    assert_problem(await client.get(path), 404, "not_found")


async def test_an_unknown_model_is_not_found(client: httpx.AsyncClient) -> None:
    assert_problem(await client.get("/models/nobody"), 404, "model_not_found")


def test_every_error_that_can_reach_a_client_has_a_row() -> None:
    inside = {FolderError, errors.StartError}
    bases = {ServiceError, errors.RequestError, errors.CapacityError}
    reachable = {error for error in all_errors() if error.__module__ == "service.errors"} - inside - bases
    assert reachable <= {row.error for row in TABLE}


@pytest.mark.parametrize("error", [FolderError, errors.StartError, ServiceError])
def test_an_error_that_should_not_reach_a_client_tells_it_nothing(error: type[ServiceError]) -> None:
    status, _, body = problem(error("/secret/path is broken", path="/secret/path"))
    content = json.loads(body)
    assert (status, content["code"]) == (500, InternalError.code)
    assert b"secret" not in body


@pytest.mark.parametrize(
    ("exc", "status", "header"),
    [
        (Overloaded("full", retry_after_s=2.2, queued=7), 503, (b"retry-after", b"3")),
        (Overloaded("full", retry_after_s=0.001), 503, (b"retry-after", b"1")),
        (ModelNotReady("loading"), 503, (b"retry-after", b"1")),
        (MethodNotAllowed("PUT", "/predict", ["POST"]), 405, (b"allow", b"POST")),
        (DeadlineExceeded("late"), 504, None),
        (InferenceFailed("failed"), 500, None),
    ],
)
def test_a_problem_has_the_headers_of_its_status(exc: ServiceError, status: int, header: tuple[bytes, bytes] | None) -> None:
    found = problem(exc)
    assert found.status == status
    assert [pair for pair in found.headers if not pair[0].startswith(b"content-")] == ([header] if header else [])


def test_facts_stand_beside_the_members_and_never_replace_them() -> None:
    exc = InvalidInput("no", instance=3, where="history[1]", found=float("inf"), expected={1})
    exc.facts |= {"status": 200, "type": "x"}
    content = json.loads(problem(exc).body)
    assert (content["status"], content["type"]) == (422, "/docs/errors#invalid_input")
    assert (content["instance_index"], content["where"], content["found"]) == (3, "history[1]", "Infinity")


def test_the_nearest_base_gives_an_error_without_a_row_its_status() -> None:
    class Special(Overloaded):
        pass

    assert find_row(Special).error is Overloaded
