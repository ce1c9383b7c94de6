"""`/v2/.../infer` in the whole app: the numbers of `/predict`, in every form that the protocol has; else an error string."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio

from tests.folders import write_forecast_folder, write_tensor_folder, write_text_folder
from tests.serving import client_of

pytestmark = pytest.mark.asyncio(loop_scope="module")
INFER = "/v2/models/toy-forecast/infer"
HISTORY = [1.0, 2.0, 3.0, 2.5, 4.0]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    folder = tmp_path_factory.mktemp("models")
    write_forecast_folder(folder)
    write_text_folder(folder)
    write_tensor_folder(folder)
    async with client_of(folder, max_body_bytes=200_000, max_instances=50) as client:
        yield client


def history(values: list[float] | None = None, **more: Any) -> dict[str, Any]:
    data = HISTORY if values is None else values
    return {"name": "history", "datatype": "FP32", "shape": [1, len(data), 1], "data": data, **more}


def binary_body(content: dict[str, Any], *tensors: bytes) -> tuple[bytes, dict[str, str]]:
    text = json.dumps(content).encode()
    return b"".join((text, *tensors)), {"Inference-Header-Content-Length": str(len(text))}


async def predicted(client: httpx.AsyncClient, values: list[float]) -> list[float]:
    answer = await client.post("/predict", json={"model": "toy-forecast", "instances": [{"history": values}]})
    found: list[float] = answer.json()["predictions"][0]["forecast"]
    return found


async def test_the_forecast_of_a_row_is_the_one_of_predict(client: httpx.AsyncClient) -> None:
    answer = await client.post(INFER, json={"id": "7", "inputs": [history()]})
    assert answer.status_code == 200, answer.text
    content = answer.json()
    assert (content["model_name"], content["model_version"], content["id"]) == ("toy-forecast", "1", "7")
    outputs = {output["name"]: output for output in content["outputs"]}
    assert outputs["forecast"]["shape"] == [1, 4, 1]
    assert outputs["quantiles"]["shape"] == [1, 4, 1, 3]
    assert outputs["forecast"]["data"] == await predicted(client, HISTORY)


async def test_a_history_longer_than_the_context_is_cut_as_by_predict(client: httpx.AsyncClient) -> None:
    rows = [[float(step % 7) for step in range(40)], [float(step % 5) for step in range(26)]]
    padded = [*rows[0], *rows[1], *[9.0] * 14]
    tensor = {"name": "history", "datatype": "FP32", "shape": [2, 40, 1], "data": padded}
    lengths = {"name": "lengths", "datatype": "INT64", "shape": [2], "data": [40, 26]}
    answer = await client.post(INFER, json={"inputs": [tensor, lengths], "outputs": [{"name": "forecast"}]})
    (forecast,) = answer.json()["outputs"]
    expected = [value for row in rows for value in await predicted(client, row)]
    np.testing.assert_allclose(forecast["data"], expected, rtol=1e-5)


async def test_texts_are_strings_in_and_labels_out(client: httpx.AsyncClient) -> None:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [2], "data": ["good film", "bad plot"]}
    answer = await client.post("/v2/models/toy-sentiment/versions/1/infer", json={"inputs": [tensor]})
    label, probabilities = answer.json()["outputs"]
    predictions = (await client.post("/predict", json={"model": "toy-sentiment", "instances": ["good film", "bad plot"]})).json()[
        "predictions"
    ]
    assert label["datatype"] == "BYTES"
    assert label["data"] == [prediction["label"] for prediction in predictions]
    expected = [value for prediction in predictions for value in prediction["probabilities"].values()]
    np.testing.assert_allclose(probabilities["data"], expected, rtol=1e-6)


async def test_a_classification_names_the_best_labels(client: httpx.AsyncClient) -> None:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["good film"]}
    request = {"inputs": [tensor], "outputs": [{"name": "probabilities", "parameters": {"classification": 1}}]}
    (output,) = (await client.post("/v2/models/toy-sentiment/infer", json=request)).json()["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [1, 1])
    value, index, label = output["data"][0].split(":")
    assert label == ["negative", "positive"][int(index)]
    assert float(value) >= 0.5


async def test_binary_inputs_and_outputs_are_the_same_numbers(client: httpx.AsyncClient) -> None:
    data = np.array(HISTORY, "<f4").tobytes()
    tensor = history() | {"parameters": {"binary_data_size": len(data)}}
    del tensor["data"]
    outputs = [{"name": "forecast", "parameters": {"binary_data": True}}, {"name": "quantiles"}]
    body, headers = binary_body({"inputs": [tensor], "outputs": outputs}, data)
    answer = await client.post(INFER, content=body, headers=headers)
    assert answer.headers["content-type"] == "application/octet-stream"
    size = int(answer.headers["inference-header-content-length"])
    head = json.loads(answer.content[:size])
    assert head["outputs"][0]["parameters"] == {"binary_data_size": 16}
    assert len(head["outputs"][1]["data"]) == 12
    found = np.frombuffer(answer.content[size:], "<f4")
    np.testing.assert_array_equal(found, np.array(await predicted(client, HISTORY), np.float32))


async def test_all_outputs_are_binary_where_the_request_says_so(client: httpx.AsyncClient) -> None:
    answer = await client.post(INFER, json={"inputs": [history()], "parameters": {"binary_data_output": True}})
    size = int(answer.headers["inference-header-content-length"])
    assert len(answer.content) - size == 4 * (4 + 12)


async def test_a_raw_body_is_the_only_input(client: httpx.AsyncClient) -> None:
    headers = {"Inference-Header-Content-Length": "0", "Content-Type": "application/octet-stream"}
    answer = await client.post(INFER, content=np.array(HISTORY, "<f4").tobytes(), headers=headers)
    size = int(answer.headers["inference-header-content-length"])
    np.testing.assert_array_equal(
        np.frombuffer(answer.content[size : size + 16], "<f4"), np.array(await predicted(client, HISTORY), np.float32)
    )
    answer = await client.post("/v2/models/toy-sentiment/infer", content=b"good film", headers=headers)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_compressed_bodies_are_read_and_large_answers_compressed(client: httpx.AsyncClient, coding: str) -> None:
    body = json.dumps({"inputs": [history()]}).encode()
    compressed = gzip.compress(body) if coding == "gzip" else zlib.compress(body)
    headers = {"Content-Encoding": coding, "Accept-Encoding": "identity"}
    plain = await client.post(INFER, content=compressed, headers=headers)
    assert plain.status_code == 200, plain.text
    many = {"name": "history", "datatype": "FP32", "shape": [40, 5, 1], "data": HISTORY * 40}
    answer = await client.post(INFER, json={"inputs": [many]}, headers={"Accept-Encoding": coding})
    assert answer.headers["content-encoding"] == coding
    assert answer.json()["outputs"][0]["shape"] == [40, 4, 1]


async def test_an_unbatched_tensor_model_answers_its_tensors(client: httpx.AsyncClient) -> None:
    metadata = (await client.get("/v2/models/toy-tensor")).json()
    assert [tensor["name"] for tensor in metadata["inputs"]] == ["x", "lengths"]
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 3, 2], "data": [0.1] * 6}
    answer = await client.post("/v2/models/toy-tensor/infer", json={"inputs": [tensor]})
    assert [output["name"] for output in answer.json()["outputs"]] == ["y"]


BAD: dict[str, tuple[dict[str, Any] | bytes, dict[str, str], int, str]] = {
    "no JSON": (b"{", {}, 400, "not JSON"),
    "nothing": (b"", {}, 400, "the body is empty"),
    "a list": (b"[]", {}, 400, "no JSON object"),
    "no inputs": ({}, {}, 400, '"inputs" is missing'),
    "an unknown input": ({"inputs": [history() | {"name": "x"}]}, {}, 400, 'unknown input "x"'),
    "the same input twice": ({"inputs": [history(), history()]}, {}, 400, "it is there twice"),
    "too few values": ({"inputs": [history(shape=[1, 9, 1])]}, {}, 400, "takes 9 values, got 5"),
    "another datatype": ({"inputs": [history(datatype="INT64")]}, {}, 400, "the datatype INT64"),
    "another rank": ({"inputs": [history(shape=[5])]}, {}, 400, "expected 3 axes"),
    "a negative size": ({"inputs": [history(shape=[-1, 5, 1])]}, {}, 400, "expected sizes from 1"),
    "too short a history": ({"inputs": [history([1.0])]}, {}, 400, "at least 2 steps"),
    "an unknown output": ({"inputs": [history()], "outputs": [{"name": "z"}]}, {}, 400, 'unknown output "z"'),
    "an output twice": ({"inputs": [history()], "outputs": [{"name": "forecast"}] * 2}, {}, 400, "a name is there twice"),
    "a parameter that is an object": ({"inputs": [history()], "parameters": {"a": {}}}, {}, 400, '"parameters"'),
    "an id that is a number": ({"inputs": [history()], "id": 7}, {}, 400, '"id"'),
    "too many rows": (
        {"inputs": [{"name": "history", "datatype": "FP32", "shape": [60, 2, 1], "data": [0.0] * 120}]},
        {},
        413,
        "SLUICE_MAX_INSTANCES",
    ),
    "a header length beyond the body": (
        {"inputs": []},
        {"Inference-Header-Content-Length": "999"},
        400,
        "range (0, 14), got: 999",
    ),
    "a header length below zero": ({"inputs": []}, {"Inference-Header-Content-Length": "-1"}, 400, "got: -1"),
    "a header length of many digits": ({"inputs": []}, {"Inference-Header-Content-Length": "9" * 5000}, 400, "got: 999"),
    "binary data that is not there": (
        {"inputs": [{"name": "history", "datatype": "FP32", "shape": [1, 5, 1], "parameters": {"binary_data_size": 20}}]},
        {},
        400,
        "20 bytes are announced, 0 are left",
    ),
    "an unknown coding": (b"x", {"Content-Encoding": "br"}, 415, "accepted are gzip"),
    "a broken stream": (b"x", {"Content-Encoding": "gzip"}, 400, "no whole gzip stream"),
    "a bomb": (gzip.compress(b" " * 10_000_000), {"Content-Encoding": "gzip"}, 413, "decompressed body"),
    "another media type": (b"x", {"Content-Type": "text/xml"}, 415, "text/xml"),
}


@pytest.mark.parametrize("name", BAD)
async def test_what_is_wrong_is_one_error_string(client: httpx.AsyncClient, name: str) -> None:
    body, headers, status, message = BAD[name]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = await client.post(INFER, content=content, headers={"Content-Type": "application/json"} | headers)
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json()) == ["error"]
    assert message in answer.json()["error"]
    assert answer.status_code == status


@pytest.mark.parametrize(
    ("method", "path", "status", "error"),
    [
        ("GET", "/v2/nothing", 404, "Not Found"),
        ("POST", "/v2", 405, "Method Not Allowed"),
        ("DELETE", INFER, 405, "Method Not Allowed"),
        ("POST", "/v2/models/none/infer", 404, 'there is no model "none"'),
        ("POST", "/v2/models/toy-forecast/versions/9/infer", 404, "has no version 9"),
        ("POST", "/v2/models/a%20b/infer", 404, 'there is no model "a b"'),
        ("GET", "/v2/models/none", 404, 'there is no model "none"'),
        ("GET", "/v2/models/toy-forecast/versions/v1", 404, "is no version"),
        ("GET", "/v2/models/none/stats", 404, 'there is no model "none"'),
        ("POST", "/v2/repository/models/toy-forecast/load", 400, "not allowed"),
        ("POST", "/v2/repository/models/toy-forecast/unload", 400, "not allowed"),
    ],
)
async def test_every_path_below_v2_errs_in_the_shape_of_the_protocol(
    client: httpx.AsyncClient, method: str, path: str, status: int, error: str
) -> None:
    answer = await client.request(method, path, content=b'{"inputs": []}' if path.endswith("infer") else None)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert error in answer.json()["error"]


async def test_health_and_metadata_have_the_fields_of_the_protocol(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v2/health/live")).json() == {"live": True}
    assert (await client.get("/v2/health/ready")).json() == {"ready": True}
    assert (await client.get("/v2/models/toy-forecast/ready")).json() == {"name": "toy-forecast", "ready": True}
    for path in ("/v2", "/v2/"):
        assert set((await client.get(path)).json()) == {"name", "version", "extensions"}
    metadata = (await client.get("/v2/models/toy-forecast/versions/1")).json()
    assert set(metadata) == {"name", "versions", "platform", "inputs", "outputs"}
    assert metadata["inputs"][0] == {"name": "history", "datatype": "FP32", "shape": [-1, -1, 1]}
    assert (await client.get("/v2/models")).json() == {"models": ["toy-forecast", "toy-sentiment", "toy-tensor"]}
    config = (await client.get("/v2/models/toy-forecast/config")).json()
    assert config["input"][1]["optional"] is True
    assert config["max_batch_size"] == 50


@pytest.mark.parametrize("content", [b"", b"{}", b'{"ready": true}'])
async def test_the_index_lists_every_version(client: httpx.AsyncClient, content: bytes) -> None:
    answer = await client.post("/v2/repository/index", content=content)
    assert {"name": "toy-forecast", "version": "1", "state": "READY"} in answer.json()


async def test_statistics_count_what_was_inferred(client: httpx.AsyncClient) -> None:
    before = (await client.get("/v2/models/toy-forecast/versions/1/stats")).json()["model_stats"][0]
    await client.post(INFER, json={"inputs": [history()]})
    await client.post(INFER, json={"inputs": []})
    await client.post(INFER, json={"inputs": [history([1.0])]})
    (after,) = (await client.get("/v2/models/toy-forecast/stats")).json()["model_stats"]
    assert after["inference_count"] - before["inference_count"] == 1
    assert after["inference_stats"]["success"]["count"] - before["inference_stats"]["success"]["count"] == 1
    assert after["inference_stats"]["compute_infer"]["ns"] > before["inference_stats"]["compute_infer"]["ns"]
    assert after["inference_stats"]["fail"]["count"] - before["inference_stats"]["fail"]["count"] == 2
    assert after["last_inference"] >= before["last_inference"]
    names = [entry["name"] for entry in (await client.get("/v2/models/stats")).json()["model_stats"]]
    assert names == ["toy-forecast", "toy-sentiment", "toy-tensor"]
