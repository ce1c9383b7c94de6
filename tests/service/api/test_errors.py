"""What each error becomes in HTTP, at every endpoint."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service import errors
from service.api import page
from service.api.error_handlers import add_error_handlers
from service.api.errors import (
    TABLE,
    ErrorRow,
    Forbidden,
    HeadTooLarge,
    InternalError,
    MethodNotAllowed,
    NotFound,
    RateLimited,
    RequestTimedOut,
    Unauthorized,
    UnsupportedMediaType,
    UpgradeRequired,
    UrlTooLong,
    find_row,
    problem,
)
from service.api.gateway import Gateway
from service.api.inference import RequestLimits
from service.api.operations import operations_router
from service.api.predict import documented_routes, predict_endpoints
from service.api.request import Headers, HttpRequest
from service.errors import (
    AmbiguousModel,
    DeadlineExceeded,
    FolderError,
    InferenceFailed,
    InvalidInput,
    LoadFailed,
    MalformedRequest,
    ModelNotFound,
    ModelNotReady,
    Overloaded,
    PayloadTooLarge,
    SequenceConflict,
    SequenceNotFound,
    ServiceError,
    StateError,
    StoreUnavailable,
)
from service.observability.metrics import Metrics
from service.tasks.registry import built_in_tasks
from tests.folders import write_forecast_folder, write_tensor_folder, write_text_folder
from tests.serving import PATIENCE_S, ROOT, client_of

JSON = {"content-type": "application/json"}
PREDICT_ROUTES = ("/predict", "/predict/forecast", "/predict/sentiment", "/predict/classify")
READ_ROUTES = (
    "/",
    "/models",
    "/models/toy-forecast",
    "/health/live",
    "/health/ready",
    "/metrics",
    "/docs",
    "/docs/errors",
    "/openapi.json",
    "/static/sluice.css",
)
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
    assert content["request_id"] == answer.headers["x-request-id"]
    return content


def body_for(path: str, instances: list[Any], **more: Any) -> dict[str, Any]:
    return {"instances": instances, **({"model": "toy-forecast"} if path == "/predict" else {}), **more}


GOOD: dict[str, Any] = {
    "/predict": {"history": [1, 2, 3]},
    "/predict/forecast": {"history": [1, 2, 3]},
    "/predict/sentiment": "a good film",
    "/predict/classify": "a good film",
}
# What every endpoint that predicts refuses in the same way: body, headers, status, code, a word of the detail.
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
    ("unknown model", b'{"model": "unknown", "instances": [1]}', JSON, 404, "model_not_found", "unknown"),
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


@pytest.mark.parametrize("path", PREDICT_ROUTES)
async def test_every_endpoint_that_predicts_refuses_what_is_wrong_in_the_same_words(client: httpx.AsyncClient, path: str) -> None:
    for name, body, headers, status, code, word in REFUSED:
        answer = await client.post(path, content=body, headers=headers)
        if name == "nested deep":
            assert answer.status_code in (400, 422), name
            continue
        content = assert_problem(answer, status, code)
        assert word in content["detail"], name
        assert answer.headers.get("retry-after") == ("1" if status == 503 else None), name
    assert (await client.post(path, json=body_for(path, [GOOD[path]]))).status_code == 200


@pytest.mark.parametrize("path", PREDICT_ROUTES)
async def test_one_bad_instance_among_good_ones_is_named(client: httpx.AsyncClient, path: str) -> None:
    bad = "  " if isinstance(GOOD[path], str) else {"history": [1, 1e39, 3]}
    answer = await client.post(path, json=body_for(path, [GOOD[path], GOOD[path], bad, GOOD[path]]))
    content = assert_problem(answer, 422, "invalid_input")
    assert content["instance_index"] == 2
    assert "instance 2" in content["detail"]


async def test_a_model_of_another_task_is_refused_by_its_name(client: httpx.AsyncClient) -> None:
    answer = await client.post("/predict/sentiment", json={"model": "toy-forecast", "instances": ["a"]})
    assert "forecast model" in assert_problem(answer, 422, "invalid_input")["detail"]


async def test_predict_needs_a_model(client: httpx.AsyncClient) -> None:
    answer = await client.post("/predict", json={"instances": [1]})
    assert "GET /models" in assert_problem(answer, 400, "malformed_request")["detail"]


@pytest.mark.parametrize("path", [*PREDICT_ROUTES, *READ_ROUTES])
async def test_a_refused_method_is_answered_with_those_that_are_allowed(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.request("DELETE", path)
    content = assert_problem(answer, 405, "method_not_allowed")
    allowed = answer.headers["allow"].split(", ")
    assert allowed == content["allowed"]
    assert ("POST" if path in PREDICT_ROUTES else "GET") in allowed


@pytest.mark.parametrize(
    "path", ["/nothing", "/predict/", "/predict/nothing", "/models/a/b", "/static/../app.py", "/static/docs.html"]
)
async def test_an_unknown_path_is_a_problem_too(client: httpx.AsyncClient, path: str) -> None:
    assert_problem(await client.get(path), 404, "not_found")


async def test_an_unknown_model_is_not_found(client: httpx.AsyncClient) -> None:
    assert_problem(await client.get("/models/unknown"), 404, "model_not_found")


# ------------------------------------------------------------------------------------------------------- every error


async def post(models: Path, path: str = "/predict/forecast", **settings: Any) -> httpx.Response:
    async with client_of(models, **settings) as client:
        return await client.post(path, json={"instances": [{"history": [1, 2, 3]}]})


async def fill_the_queue(models: Path) -> httpx.Response:
    # A batch that waits two minutes for more rows fills a queue of one row.
    async with client_of(models, max_queue_size=1, max_queue_delay_ms=60_000, request_timeout_ms=120_000) as client:
        body = {"instances": [{"history": [1, 2, 3]}]}
        requests = {asyncio.create_task(client.post("/predict/forecast", json=body)) for _ in range(2)}
        done, waiting = await asyncio.wait(requests, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
        for request in waiting:
            request.cancel()
        await asyncio.wait(waiting)
        return done.pop().result()


async def choose_among_two(models: Path) -> httpx.Response:
    write_forecast_folder(models, "another-forecast")
    return await post(models)


async def send(models: Path, method: str, path: str, **content: Any) -> httpx.Response:
    async with client_of(models, max_instances=2) as client:
        return await client.request(method, path, **content)


FORECAST = "/predict/forecast"
# How a request meets each error. The errors that no request of these can raise are raised in the test that is named.
RAISED: Mapping[type[ServiceError], Callable[[Path], Awaitable[httpx.Response]] | str] = {
    MalformedRequest: lambda models: send(models, "POST", FORECAST, content=b"{"),
    ModelNotFound: lambda models: send(models, "GET", "/models/unknown"),
    NotFound: lambda models: send(models, "GET", "/nothing"),
    MethodNotAllowed: lambda models: send(models, "DELETE", "/models"),
    AmbiguousModel: choose_among_two,
    PayloadTooLarge: lambda models: send(models, "POST", FORECAST, json={"instances": [1, 2, 3]}),
    UnsupportedMediaType: lambda models: send(models, "POST", FORECAST, content=b"{}", headers={"content-type": "text/plain"}),
    InvalidInput: lambda models: send(models, "POST", FORECAST, json={"instances": ["a"]}),
    StateError: lambda models: send(models, "POST", FORECAST, json={"instances": [{"history": [1, 2, 3], "state": None}]}),
    SequenceNotFound: "tests/contract/test_sequences.py::test_a_sequence_is_shown_moved_and_ended",
    SequenceConflict: "tests/contract/test_sequences.py::test_a_model_that_is_reloaded_with_another_graph_in_mid_sequence_is_409",
    StoreUnavailable: "tests/contract/test_sequences.py::test_redis_that_is_gone_in_mid_sequence_is_503_and_recovers_by_itself",
    InferenceFailed: "tests/service/models/test_model.py::test_a_graph_that_answers_nan_is_an_error_and_not_an_answer",
    RequestTimedOut: "tests/attacks/test_slow_clients.py::test_what_comes_too_slowly_is_answered_408_and_closed",
    UpgradeRequired: lambda models: send(models, "GET", "/predict/ws"),
    UrlTooLong: "tests/service/api/test_regular_path.py::test_a_url_beyond_its_bound_is_refused_and_closes",
    HeadTooLarge: "tests/service/api/test_regular_path.py::test_a_refused_head_says_why",
    InternalError: "tests/service/test_app.py::test_an_unexpected_error_of_a_documented_route_is_a_problem_too",
    ModelNotReady: lambda models: send(models, "POST", "/predict", json={"model": "broken", "instances": [1]}),
    LoadFailed: "tests/contract/test_model_control.py::test_models_are_loaded_by_request_in_all_processes_or_in_none",
    Overloaded: fill_the_queue,
    DeadlineExceeded: lambda models: post(models, request_timeout_ms=0.001),
    Unauthorized: "tests/attacks/test_error_answers.py::test_an_error_says_no_more_than_it_must",
    Forbidden: "tests/attacks/test_error_answers.py::test_an_error_says_no_more_than_it_must",
    RateLimited: "tests/attacks/test_error_answers.py::test_an_error_says_no_more_than_it_must",
}


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.error.code)
async def test_every_row_of_the_table_is_raised_by_a_request(row: ErrorRow, tmp_path: Path) -> None:
    raised = RAISED[row.error]
    if isinstance(raised, str):
        file, _, name = raised.partition("::")
        assert f"def {name}(" in (ROOT / file).read_text()
        return
    write_forecast_folder(tmp_path)
    (write_forecast_folder(tmp_path, "broken") / "manifest.json").write_text("{}")
    assert_problem(await raised(tmp_path), row.status, row.error.code)


async def test_the_candidates_of_an_ambiguous_request_are_listed(tmp_path: Path) -> None:
    write_forecast_folder(tmp_path)
    content = assert_problem(await choose_among_two(tmp_path), 409, "ambiguous_model")
    assert content["candidates"] == ["another-forecast", "toy-forecast"]


def sample_of(error: type[ServiceError]) -> ServiceError:
    if issubclass(error, MethodNotAllowed):
        return error("PUT", "/models", ["GET"])
    if issubclass(error, AmbiguousModel):
        return error("several fit", candidates=["a", "b"])
    if issubclass(error, Unauthorized):
        return error("no key", has_credentials=False)
    if issubclass(error, StateError):
        return error("cannot stream", problem="not_streaming")
    if issubclass(error, RateLimited):
        return error("too many", retry_after_s=2.2, limit="1/s")
    return error("what happened", where="history", found=7)


class RaisingModels:
    """Models and metrics that raise `exc` wherever they are used."""

    exc: Exception

    @property
    def is_ready(self) -> bool:
        raise self.exc

    @property
    def reason(self) -> str | None:
        raise self.exc

    def describe(self) -> list[dict[str, Any]]:
        raise self.exc

    def describe_model(self, name: str) -> dict[str, Any]:
        raise self.exc

    def get(self, name: str, version: str | None = None) -> Any:
        raise self.exc

    def choose(self, *args: Any, **options: Any) -> Any:
        raise self.exc

    def restricted_to(self, names: frozenset[str]) -> RaisingModels:
        raise self.exc

    async def render(self, accept: str) -> tuple[bytes, str]:
        raise self.exc


class RaisingHook:
    """Refuses every request with `exc`, where there is one."""

    exc: Exception | None

    def before(self, request: HttpRequest) -> None:
        if self.exc is not None:
            raise self.exc

    def after(self, request: HttpRequest, headers: Headers) -> None:
        pass

    def finished(self, request: HttpRequest) -> None:
        pass


@pytest.fixture(scope="module")
def raising_app() -> tuple[Gateway, RaisingModels, RaisingHook]:
    models, hook = RaisingModels(), RaisingHook()
    metrics, endpoints = Metrics(version="0", onnxruntime="0"), built_in_tasks().endpoints
    api = FastAPI(docs_url=None, redoc_url=None)
    api.router.routes.extend(documented_routes(endpoints))
    api.include_router(operations_router(models, models.render))
    add_error_handlers(api)
    direct = predict_endpoints(models, metrics, RequestLimits(100, 10_000), endpoints)
    routes = [*api.openapi()["paths"], *page.ROUTES]
    return Gateway(api, direct=direct, routes=routes, observers=metrics, hooks=[hook]), models, hook


# These use neither models nor metrics.
STATIC_ROUTES = frozenset({"/health/live", "/docs", "/docs/errors", "/openapi.json", "/static/sluice.css"})


@pytest.mark.parametrize("error", [*(row.error for row in TABLE), FolderError, ZeroDivisionError])
@pytest.mark.parametrize("place", ["hook", "endpoint"])
async def test_every_error_is_a_problem_at_every_route(
    error: type[Exception], place: str, raising_app: tuple[Gateway, RaisingModels, RaisingHook]
) -> None:
    gateway, models, hook = raising_app
    exc = sample_of(error) if issubclass(error, ServiceError) else error("/secret")
    is_known = any(row.error is error for row in TABLE)
    shown = exc if isinstance(exc, ServiceError) else InternalError("an unexpected error; the log says more")
    expected = problem(shown, "this-one")
    body = json.dumps({"model": "any", "instances": [1]}).encode()
    models.exc, hook.exc = exc, exc if place == "hook" else None
    transport, headers = httpx.ASGITransport(gateway), {"x-request-id": "this-one"}
    async with httpx.AsyncClient(transport=transport, base_url="http://sluice", headers=headers) as client:
        for method, path in [*(("POST", path) for path in PREDICT_ROUTES), *(("GET", path) for path in READ_ROUTES)]:
            if place == "endpoint" and path in STATIC_ROUTES:
                continue
            answer = await client.request(method, path, content=body if method == "POST" else None)
            content = assert_problem(answer, expected.status, error.code if is_known else "internal_error")  # type: ignore[attr-defined]
            assert json.loads(expected.body) == content, path
            sent = {name.encode(): value.encode() for name, value in answer.headers.items()}
            assert dict(expected.headers).items() <= sent.items(), path


# ---------------------------------------------------------------------------------------------------------- the table


def test_every_error_that_can_reach_a_client_has_a_row() -> None:
    inside = {FolderError, errors.StartError}
    bases = {ServiceError, errors.RequestError, errors.CapacityError}
    reachable = {error for error in all_errors() if error.__module__ == "service.errors"} - inside - bases
    assert reachable <= {row.error for row in TABLE}


@pytest.mark.parametrize("error", [FolderError, errors.StartError, ServiceError])
def test_an_error_that_should_not_reach_a_client_is_an_internal_error(error: type[ServiceError]) -> None:
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
        (Unauthorized("no key", has_credentials=False), 401, (b"www-authenticate", b"Bearer")),
        (Unauthorized("no such key", has_credentials=True), 401, (b"www-authenticate", b'Bearer error="invalid_token"')),
        (Forbidden("no scope"), 403, None),
        (RateLimited("too many", retry_after_s=2.2), 429, (b"retry-after", b"3")),
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
