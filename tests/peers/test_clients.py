"""The examples of docs/protocols.md in the clients of others, each in an environment of its own, against a real server."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.peers.environments import ROOT, run_in
from tests.peers.examples import EXAMPLES, at
from tests.serving import ServerProcess, server_process

# What has to hold when an example has run; `post` sends the same to the server's own endpoint.
PREDICTED = """
import json, urllib.request


def post(path, body):
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request("http://127.0.0.1:8000" + path, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def predicted(model, instance, **parameters):
    body = {"model": model, "instances": [instance], "parameters": parameters}
    return post("/predict", body)["predictions"][0]


TEXTS = ["a wonderful film", "a dull mess"]
"""
CLIENTS = {
    "tritonclient": """
wanted = predicted("forecast-hourly", {"history": history.ravel().tolist()})
np.testing.assert_allclose(forecast.ravel(), wanted["forecast"], rtol=1e-5, atol=1e-6)
""",
    "kserve_v1": """
assert predictions == [predicted("sentiment-en", text) for text in TEXTS], predictions
""",
    "timeseries": """
wanted = predicted("forecast-hourly", {"history": series["series"]}, horizon=24, quantiles=[0.1, 0.9])
assert forecast == wanted["forecast"]
assert answer.json()["outputs"][0]["content"][0]["quantiles"] == wanted["quantiles"]
""",
    "kserve": """
assert list(labels) == [predicted("sentiment-en", text)["label"] for text in TEXTS], labels


async def others():
    url = "http://127.0.0.1:8000"
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    assert await client.is_server_live(url)
    assert await client.is_server_ready(url)
    assert await client.is_model_ready(url, "sentiment-en")
    history = np.arange(168, dtype=np.float32).reshape(1, 168, 1)
    wanted = predicted("forecast-hourly", {"history": history.ravel().tolist()})["forecast"]
    for is_binary in (True, False):
        tensor = InferInput("history", [1, 168, 1], "FP32")
        tensor.set_data_from_numpy(history, binary_data=is_binary)
        request = InferRequest("forecast-hourly", [tensor], request_id="7")
        response = await client.infer(url, request, model_name="forecast-hourly")
        assert response.id == "7"
        np.testing.assert_allclose(response.outputs[0].as_numpy().ravel(), wanted, rtol=1e-5)
    first = InferenceRESTClient(RESTConfig(protocol="v1"))
    assert await first.is_model_ready(url, "sentiment-en")
    answer = await first.infer(url, {"instances": TEXTS}, model_name="sentiment-en")
    assert [prediction["label"] for prediction in answer["predictions"]] == list(labels)


asyncio.run(others())
""",
    "mlserver": """
assert labels == [predicted("sentiment-en", text)["label"] for text in TEXTS], labels
from mlserver.codecs import NumpyCodec
from mlserver.types import MetadataModelResponse, MetadataServerResponse, RepositoryIndexResponse
import numpy as np

history = np.arange(168, dtype=np.float32).reshape(1, 168, 1)
request = InferenceRequest(inputs=[NumpyCodec.encode_input("history", history)])
body = request.model_dump(mode="json", exclude_none=True)
response = InferenceResponse.model_validate(post("/v2/models/forecast-hourly/infer", body))
wanted = predicted("forecast-hourly", {"history": history.ravel().tolist()})["forecast"]
np.testing.assert_allclose(NumpyCodec.decode_output(response.outputs[0]).ravel(), wanted, rtol=1e-5)
index = RepositoryIndexResponse.model_validate(post("/v2/repository/index", {}))
assert {entry.name for entry in index.root} >= {"forecast-hourly", "sentiment-en"}
for path, kind in (("/v2", MetadataServerResponse), ("/v2/models/sentiment-en", MetadataModelResponse)):
    assert kind.model_validate(requests.get("http://127.0.0.1:8000" + path, timeout=30).json()).name in ("sluice", "sentiment-en")
""",
    "mlflow": """
client.wait_server_ready(timeout=10)
assert list(predictions["label"]) == [predicted("sentiment-en", text)["label"] for text in TEXTS]
history = list(range(168))
params = {"model": "forecast-hourly", "horizon": 2}
found = client.invoke([{"history": history}], params=params).get_predictions()
assert found["forecast"][0] == predicted("forecast-hourly", {"history": history}, horizon=2)["forecast"]
""",
    "nixtla": """
assert list(forecast.columns) == ["unique_id", "ds", "TimeGPT", "TimeGPT-hi-80", "TimeGPT-lo-80"], forecast.columns
assert len(forecast) == 24
assert str(forecast["ds"].iloc[0]) == "2024-01-11 00:00:00"
wanted = predicted("forecast-hourly", {"history": frame["y"].tolist()}, horizon=24, quantiles=[0.1, 0.9])
np.testing.assert_allclose(forecast["TimeGPT"], wanted["forecast"], rtol=1e-5)
np.testing.assert_allclose(forecast["TimeGPT-lo-80"], wanted["quantiles"]["0.1"], rtol=1e-5)
np.testing.assert_allclose(forecast["TimeGPT-hi-80"], wanted["quantiles"]["0.9"], rtol=1e-5)
assert client.validate_api_key()
""",
}
OF_THIS_ENVIRONMENT = ("tritonclient", "kserve_v1", "timeseries")
OF_PLATFORMS = ("vertex", "sagemaker")
"""Run in tests/contract/test_platforms.py, in the environment that the platform makes."""
EACH_CLIENT = [pytest.param(name, marks=() if name in OF_THIS_ENVIRONMENT else pytest.mark.slow) for name in CLIENTS]

PERF_STARTS = """
import subprocess
import sys
from pathlib import Path

command = [str(Path(sys.executable).parent / "perf_analyzer"), "-u", "127.0.0.1:8000"]
try:
    started = subprocess.run([*command, "--help"], capture_output=True, text=True)
    cannot = "cannot open shared object file" in started.stderr and started.stderr
except OSError as exc:
    cannot = str(exc)
windows = ["--measurement-mode", "count_windows", "--measurement-request-count", "50", "-s", "1000", "-r", "3"]
"""
PERF_ANALYZER = """
if cannot:
    Path("skipped").write_text(cannot)
    sys.exit()
for arguments in (
    ["-m", "sentiment-en", "--string-data", "a wonderful film", "-b", "2", "--concurrency-range", "4"],
    ["-m", "sentiment-en", "--string-data", "a wonderful film", "--async", "--concurrency-range", "4"],
    ["-m", "forecast-hourly", "--input-data", "histories.json", "--concurrency-range", "4"],
):
    done = subprocess.run([*command, *arguments, *windows], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Avg request latency" in done.stdout, done.stdout  # of the server's statistics
    assert "Inferences/Second vs. Client" in done.stdout, done.stdout
"""

MODEL_CONTROL = """
import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

client = triton.InferenceServerClient("127.0.0.1:8000", network_timeout=120)
texts = ["-m", "sentiment-en", "--string-data", "a wonderful film", "-b", "2", "--concurrency-range", "2"]


def states():
    return {entry["name"]: entry["state"] for entry in client.get_model_repository_index()}


def expect_measured(is_there):
    if cannot:
        return
    done = subprocess.run([*command, *texts, *windows], capture_output=True, text=True, timeout=120)
    assert (done.returncode == 0) == is_there, done.stdout + done.stderr
    assert not is_there or "Inferences/Second vs. Client" in done.stdout, done.stdout


assert states() == {}
expect_measured(False)
client.load_model("sentiment-en")
assert states() == {"sentiment-en": "READY"}
assert client.is_model_ready("sentiment-en")
expect_measured(True)
client.unload_model("sentiment-en")
assert not client.is_model_ready("sentiment-en")
assert states()["sentiment-en"] in ("UNLOADING", "UNAVAILABLE")
expect_measured(False)
try:
    client.load_model("unknown")
except InferenceServerException as exc:
    assert "unknown" in str(exc)
else:
    raise AssertionError("a model is loaded that is not there")
"""


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with server_process(ROOT / "models") as server:
        yield server


def address(server: ServerProcess) -> str:
    return server.url.removeprefix("http://")


def test_every_example_is_run() -> None:
    assert set(EXAMPLES) == {*CLIENTS, *OF_PLATFORMS, "histories"}


@pytest.mark.parametrize("name", EACH_CLIENT)
def test_a_client_gets_what_predict_answers(
    name: str, server: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in OF_THIS_ENVIRONMENT:
        monkeypatch.setenv(f"SLUICE_TEST_{name.upper()}", sys.executable)
    run_in(name, at(address(server), EXAMPLES[name] + PREDICTED + CLIENTS[name]), tmp_path)


@pytest.mark.slow
def test_perf_analyzer_measures(server: ServerProcess, tmp_path: Path) -> None:
    run_in("perf", at(address(server), EXAMPLES["histories"] + PERF_STARTS + PERF_ANALYZER), tmp_path)
    if (tmp_path / "skipped").exists():
        pytest.skip((tmp_path / "skipped").read_text())


@pytest.mark.slow
def test_the_client_beside_perf_analyzer_loads_and_unloads_what_it_measures(tmp_path: Path) -> None:
    explicit: dict[str, Any] = {"SLUICE_MODEL_CONTROL": "explicit", "SLUICE_WORKERS": "2"}
    with server_process(ROOT / "models", **explicit) as server:
        run_in("perf", at(address(server), PERF_STARTS + MODEL_CONTROL), tmp_path)
