"""500, 503 and 504 of a real server at every API: the status, and the error in the shape that the API's clients read."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.folders import write_forecast_folder, write_graph, write_text_folder
from tests.serving import ROOT, ServerProcess, server_process

VERTEX = "/v1/endpoints/7:predict"
HISTORY = [1.0, 2.0, 3.0, 2.5, 4.0]
TOO_LOW = -2000.0
"""A value that `nan` makes no number of."""
NUM_CLIENTS, NUM_REQUESTS = 150, 3


class Api(NamedTuple):
    """How to send histories to a model, and what an error of it looks like."""

    path: Callable[[str], str]
    body: Callable[[str, list[list[float]]], Any]
    message: Callable[[Any], Any]
    """The message of an error; raises KeyError or TypeError for another shape."""


def infer_body(model: str, histories: list[list[float]]) -> Any:
    data = [value for history in histories for value in history]
    shape = [len(histories), len(histories[0]), 1]
    return {"inputs": [{"name": "history", "datatype": "FP32", "shape": shape, "data": data}]}


def instances(histories: list[list[float]]) -> list[Any]:
    return [{"history": history} for history in histories]


def flat(histories: list[list[float]]) -> Any:
    return {"y": [value for history in histories for value in history], "sizes": [len(history) for history in histories]}


APIS: dict[str, Api] = {
    "predict": Api(
        lambda model: "/predict",
        lambda model, histories: {"model": model, "instances": instances(histories)},
        lambda error: (error["title"], error["status"], error["code"]) and error["detail"],
    ),
    "v2": Api(lambda model: f"/v2/models/{model}/infer", infer_body, lambda error: error["error"]),
    "v1": Api(
        lambda model: f"/v1/models/{model}:predict",
        lambda model, histories: {"instances": instances(histories)},
        lambda error: error["error"],
    ),
    "invocations": Api(
        lambda model: "/invocations",
        lambda model, histories: {"instances": instances(histories), "params": {"model": model}},
        lambda error: error["error_code"] and error["message"],
    ),
    "vertex": Api(
        lambda model: VERTEX,
        lambda model, histories: {"instances": instances(histories), "parameters": {"model": model}},
        lambda error: error["error"]["code"] and error["error"]["message"],
    ),
    "timeseries": Api(
        lambda model: "/v1/timeseries/forecast",
        lambda model, histories: {"model": model, "inputs": [{"name": "a", "series": history} for history in histories]},
        lambda error: (error["error"]["code"], error["error"]["type"]) and error["error"]["message"],
    ),
    "nixtla": Api(
        lambda model: "/v2/forecast",
        lambda model, histories: {"model": model, "series": flat(histories)},
        lambda error: error["detail"],
    ),
}
EVERY_API = pytest.mark.parametrize("api", APIS)


def write_nan_folder(models: Path) -> None:
    """A forecasting model that answers a history with a value below -1000 with NaN, and any other as the toy does."""
    folder = write_forecast_folder(models, "nan")
    graph = onnx.load(folder / "model.onnx")
    nodes = list(graph.graph.node)
    place = next(number for number, node in enumerate(nodes) if "forecast" in node.output)
    nodes[place].output[:] = ["plain"]
    nodes[place + 1 : place + 1] = [
        helper.make_node("ReduceMin", ["history"], ["lowest"], axes=[1, 2], keepdims=1),
        helper.make_node("Add", ["lowest", "thousand"], ["above"]),
        helper.make_node("Sqrt", ["above"], ["root"]),
        helper.make_node("Mul", ["root", "nothing"], ["none"]),
        helper.make_node("Add", ["plain", "none"], ["forecast"]),
    ]
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    for name, value in (("thousand", 1000.0), ("nothing", 0.0)):
        graph.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    write_graph(folder, graph.SerializeToString())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    models = tmp_path_factory.mktemp("models")
    write_forecast_folder(models, horizon=24)
    write_text_folder(models)
    write_nan_folder(models)
    (write_forecast_folder(models, "broken") / "model.onnx").write_bytes(b"no graph")
    routes: dict[str, Any] = {"SLUICE_VERTEX_PREDICT_ROUTE": VERTEX, "SLUICE_STRICT_READINESS": "false"}
    with server_process(models, **routes) as server:
        yield server


def send(server: ServerProcess, api: str, model: str, histories: list[list[float]], **headers: str) -> httpx.Response:
    path, body, _ = APIS[api]
    return httpx.post(server.url + path(model), json=body(model, histories), headers=headers, timeout=60)


def message_of(answer: httpx.Response, api: str) -> str:
    found = APIS[api].message(answer.json())
    assert isinstance(found, str)
    return found


@EVERY_API
def test_a_history_is_answered(server: ServerProcess, api: str) -> None:
    for model in ("toy-forecast", "nan"):
        answer = send(server, api, model, [HISTORY])
        assert answer.status_code == 200, answer.text


@EVERY_API
def test_a_graph_that_fails_is_500(server: ServerProcess, api: str) -> None:
    answer = send(server, api, "nan", [[*HISTORY, TOO_LOW]])
    assert answer.status_code == 500
    assert "finite" in message_of(answer, api)
    assert send(server, api, "nan", [HISTORY]).status_code == 200


@EVERY_API
def test_a_model_that_is_not_ready_is_503_with_the_time_to_try_again(server: ServerProcess, api: str) -> None:
    answer = send(server, api, "broken", [HISTORY])
    assert answer.status_code == 503
    assert "broken" in message_of(answer, api)
    assert int(answer.headers["retry-after"]) >= 1


@EVERY_API
def test_an_answer_that_cannot_come_in_time_is_504(server: ServerProcess, api: str) -> None:
    # To read a body of so many values takes longer than that, on any machine.
    answer = send(server, api, "toy-forecast", [HISTORY * 4] * 4000, **{"X-Request-Timeout-Ms": "1"})
    assert answer.status_code == 504
    assert "deadline" in message_of(answer, api)


# Under load, beside each other; texts take longest.
TEXT = "The film was slow but quiet and moving, and nobody expected how it would end. " * 20
LOADED: dict[str, tuple[str, Any]] = {
    "predict": ("/predict", {"model": "sentiment-en", "instances": [TEXT]}),
    "v2": ("/v2/models/sentiment-en/infer", {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [TEXT]}]}),
    "v1": ("/v1/models/sentiment-en:predict", {"instances": [TEXT]}),
    "invocations": ("/invocations", {"instances": [TEXT], "params": {"model": "sentiment-en"}}),
    "vertex": (VERTEX, {"instances": [TEXT], "parameters": {"model": "sentiment-en"}}),
}


async def overload(url: str) -> list[tuple[str, httpx.Response]]:
    """Many clients of every API that do not wait between their requests."""
    bodies = {api: json.dumps(body).encode() for api, (_, body) in LOADED.items()}
    limits = httpx.Limits(max_connections=NUM_CLIENTS)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:

        async def ask(api: str) -> list[tuple[str, httpx.Response]]:
            headers = {"content-type": "application/json"}
            return [(api, await client.post(LOADED[api][0], content=bodies[api], headers=headers)) for _ in range(NUM_REQUESTS)]

        answers = await asyncio.gather(*(ask(api) for _ in range(NUM_CLIENTS // len(LOADED)) for api in LOADED))
    return [answer for each in answers for answer in each]


@pytest.mark.resilience
def test_under_overload_every_api_refuses_in_its_own_shape_and_says_when_to_return() -> None:
    settings: dict[str, Any] = {"SLUICE_REQUEST_TIMEOUT_MS": "400", "SLUICE_VERTEX_PREDICT_ROUTE": VERTEX}
    with server_process(ROOT / "models", **settings) as server:
        found = asyncio.run(overload(server.url))
        counts = Counter(answer.status_code for _, answer in found)
        assert counts.keys() <= {200, 503, 504}
        assert counts[200] > 0
        for api, answer in found:
            if answer.status_code != 200:
                assert message_of(answer, api)
            if answer.status_code == 503:
                assert int(answer.headers["retry-after"]) >= 1
