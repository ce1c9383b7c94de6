"""Triton's own HTTP client against a real server of two workers: every call that the protocol defines and Sluice offers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

from tests.folders import write_forecast_folder, write_text_folder
from tests.serving import PATIENCE_S, ServerProcess, server_process, wait_until

HISTORIES = np.array([[1.0, 2.0, 3.0, 2.5, 4.0], [2.0, 2.0, 1.0, 0.5, 3.0]], np.float32).reshape(2, 5, 1)
COUNTED = "counted"
"""A model that one test alone sends requests to."""
TEXTS = np.array([b"good film", b"bad plot", b"\xc3\xbcber"], np.object_)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    models = tmp_path_factory.mktemp("models")
    write_forecast_folder(models)
    write_forecast_folder(models, COUNTED)
    write_text_folder(models)
    with server_process(models, SLUICE_WORKERS="2") as server:
        yield server


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Any]:
    client = triton.InferenceServerClient(server.url.removeprefix("http://"), concurrency=4)
    yield client
    client.close()


@pytest.fixture(scope="module")
def expected(server: ServerProcess) -> np.ndarray[Any, np.dtype[np.float32]]:
    """What `/predict` answers for the histories, each alone."""
    rows = []
    for history in HISTORIES[:, :, 0].tolist():
        answer = httpx.post(f"{server.url}/predict", json={"model": "toy-forecast", "instances": [{"history": history}]})
        rows.append(answer.json()["predictions"][0]["forecast"])
    return np.array(rows, np.float32)[:, :, None]


def history_input(*, is_binary: bool, module: Any = triton) -> Any:
    tensor = module.InferInput("history", HISTORIES.shape, "FP32")
    tensor.set_data_from_numpy(HISTORIES, binary_data=is_binary)
    return tensor


def test_health_and_metadata_are_read(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("toy-forecast")
    assert client.is_model_ready("toy-forecast", "1")
    assert not client.is_model_ready("none")
    assert client.get_server_metadata()["name"] == "sluice"
    assert client.get_model_metadata("toy-forecast")["outputs"][0]["name"] == "forecast"
    assert client.get_model_config("toy-sentiment")["input"][0]["data_type"] == "TYPE_STRING"
    assert {entry["name"] for entry in client.get_model_repository_index()} == {COUNTED, "toy-forecast", "toy-sentiment"}


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("sends_binary", [True, False], ids=["binary in", "JSON in"])
@pytest.mark.parametrize("gets_binary", [True, False], ids=["binary out", "JSON out"])
def test_numbers_are_those_of_predict_in_every_form(
    client: Any, expected: Any, compression: str | None, sends_binary: bool, gets_binary: bool
) -> None:
    result = client.infer(
        "toy-forecast",
        [history_input(is_binary=sends_binary)],
        outputs=[triton.InferRequestedOutput("forecast", binary_data=gets_binary)],
        request_id="a request",
        request_compression_algorithm=compression,
        response_compression_algorithm=compression,
    )
    assert result.get_response()["id"] == "a request"
    np.testing.assert_allclose(result.as_numpy("forecast"), expected, rtol=1e-6)


def test_outputs_that_nobody_lists_all_come(client: Any) -> None:
    result = client.infer("toy-forecast", [history_input(is_binary=True)])
    assert result.as_numpy("forecast").shape == (2, 4, 1)
    assert result.as_numpy("quantiles").shape == (2, 4, 1, 3)


@pytest.mark.parametrize("is_binary", [True, False])
def test_texts_and_their_classes(client: Any, is_binary: bool) -> None:
    tensor = triton.InferInput("text", [3], "BYTES")
    tensor.set_data_from_numpy(TEXTS, binary_data=is_binary)
    result = client.infer("toy-sentiment", [tensor])
    assert set(result.as_numpy("label")) <= {b"negative", b"positive"}
    output = triton.InferRequestedOutput("probabilities", class_count=2)
    classes = client.infer("toy-sentiment", [tensor], outputs=[output]).as_numpy("probabilities")
    assert classes.shape == (3, 2)
    for row, label in zip(classes, result.as_numpy("label"), strict=True):
        assert row[0].decode().endswith(label.decode())


def test_many_requests_at_once_are_all_answered(client: Any, expected: Any) -> None:
    pending = [client.async_infer("toy-forecast", [history_input(is_binary=True)]) for _ in range(20)]
    for request in pending:
        np.testing.assert_allclose(request.get_result().as_numpy("forecast"), expected, rtol=1e-5)


async def test_the_asyncio_client_works_too(server: ServerProcess, expected: Any) -> None:
    client = triton_aio.InferenceServerClient(server.url.removeprefix("http://"))
    try:
        assert await client.is_server_ready()
        results = await asyncio.gather(
            *(client.infer("toy-forecast", [history_input(is_binary=True, module=triton_aio)]) for _ in range(8))
        )
    finally:
        await client.close()
    for result in results:
        np.testing.assert_allclose(result.as_numpy("forecast"), expected, rtol=1e-5)


def test_errors_are_the_messages_of_the_server(client: Any) -> None:
    with pytest.raises(InferenceServerException, match='there is no model "none"'):
        client.infer("none", [history_input(is_binary=True)])
    with pytest.raises(InferenceServerException, match="not allowed"):
        client.load_model("toy-forecast")
    with pytest.raises(InferenceServerException, match="not allowed"):
        client.unload_model("toy-forecast")
    tensor = triton.InferInput("history", [1, 1, 1], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 1, 1), np.float32))
    with pytest.raises(InferenceServerException, match="at least 2 steps"):
        client.infer("toy-forecast", [tensor])


def test_statistics_of_all_workers_only_grow(server: ServerProcess) -> None:
    def count() -> int:
        found = httpx.get(f"{server.url}/v2/models/{COUNTED}/stats").json()["model_stats"][0]
        return int(found["inference_stats"]["success"]["count"])

    body = {"inputs": [{"name": "history", "datatype": "FP32", "shape": [1, 2, 1], "data": [1, 2]}]}
    assert count() == 0
    with ThreadPoolExecutor(8) as threads:
        url = f"{server.url}/v2/models/{COUNTED}/infer"
        answers = list(threads.map(lambda _: httpx.post(url, json=body).status_code, range(40)))
    assert answers == [200] * 40
    # A worker hands on what it counted four times a second.
    found = [0]
    while found[-1] < 40 and len(found) < 200:
        found.append(count())
    assert found == sorted(found)
    assert found[-1] == 40


def test_models_are_loaded_and_unloaded_by_the_client(tmp_path: Path) -> None:
    write_forecast_folder(tmp_path)
    write_text_folder(tmp_path)
    explicit: dict[str, Any] = {"SLUICE_MODEL_CONTROL": "explicit", "SLUICE_WORKERS": "2", "SLUICE_LOAD_MODELS": "toy-sentiment"}
    with server_process(tmp_path, **explicit) as server:
        # Loading takes as long as a process takes to start.
        client = triton.InferenceServerClient(server.url.removeprefix("http://"), network_timeout=PATIENCE_S * 4)
        try:
            assert states(client) == {"toy-sentiment": "READY"}
            assert not client.is_model_ready("toy-forecast")
            with pytest.raises(InferenceServerException, match='no model "toy-forecast"'):
                client.infer("toy-forecast", [history_input(is_binary=True)])
            client.load_model("toy-forecast")
            assert states(client) == {"toy-forecast": "READY", "toy-sentiment": "READY"}
            assert client.is_model_ready("toy-forecast", "1")
            assert client.infer("toy-forecast", [history_input(is_binary=True)]).as_numpy("forecast").shape == (2, 4, 1)
            client.load_model("toy-forecast")  # again: nothing has changed
            with pytest.raises(InferenceServerException, match="as its folder has it"):
                client.load_model("toy-forecast", config='{"max_batch_size": 1}')
            with pytest.raises(InferenceServerException, match="as its folder has it"):
                client.load_model("toy-forecast", config="{}", files={"file:1/model.onnx": b"another graph"})
            with pytest.raises(InferenceServerException, match='no model folder "unknown"'):
                client.load_model("unknown")
            client.unload_model("toy-forecast")
            client.unload_model("toy-forecast", unload_dependents=True)
            client.unload_model("unknown")
            with pytest.raises(InferenceServerException, match='no model "toy-forecast"'):
                client.infer("toy-forecast", [history_input(is_binary=True)])
            wait_until(lambda: states(client)["toy-forecast"] == "UNAVAILABLE", "its requests are answered")
            assert client.is_server_ready()
        finally:
            client.close()


def states(client: Any) -> dict[str, str]:
    return {entry["name"]: entry["state"] for entry in client.get_model_repository_index()}


async def test_the_asyncio_client_loads_and_unloads_too(tmp_path: Path) -> None:
    write_forecast_folder(tmp_path)
    with server_process(tmp_path, SLUICE_MODEL_CONTROL="explicit") as server:
        client = triton_aio.InferenceServerClient(server.url.removeprefix("http://"), conn_timeout=PATIENCE_S * 4)
        try:
            assert await client.get_model_repository_index() == []
            await client.load_model("toy-forecast")
            assert await client.is_model_ready("toy-forecast")
            await client.unload_model("toy-forecast")
            assert not await client.is_model_ready("toy-forecast")
        finally:
            await client.close()
