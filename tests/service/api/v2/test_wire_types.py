"""The fields of requests and answers are those of the Open Inference Protocol's specification, and of Triton's extensions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio

from tests.folders import write_forecast_folder
from tests.serving import client_of

pytestmark = pytest.mark.asyncio(loop_scope="module")
MODEL = "/v2/models/toy-forecast"
HISTORY = {"name": "history", "datatype": "FP32", "shape": [1, 3, 1], "data": [1.0, 2.0, 3.0]}

Check = Callable[[Any], bool]


def is_string(value: Any) -> bool:
    return type(value) is str


def is_bool(value: Any) -> bool:
    return type(value) is bool


def is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def is_number(value: Any) -> bool:
    return type(value) in (int, float)


def list_of(check: Check) -> Check:
    return lambda value: type(value) is list and all(map(check, value))


@dataclass(frozen=True)
class Fields:
    """An object of the specification: each field with what its value is."""

    required: Mapping[str, Check]
    optional: Mapping[str, Check] = field(default_factory=dict)

    def __call__(self, value: Any) -> bool:
        known = {**self.required, **self.optional}
        return self.required.keys() <= value.keys() <= known.keys() and all(known[name](value[name]) for name in value)


def is_size(value: Any) -> bool:
    return type(value) is int and value >= -1


# inference_rest.md, in its words: $metadata_server_response and so on.
ERROR = Fields({"error": is_string})
TENSOR = Fields({"name": is_string, "datatype": is_string, "shape": list_of(is_size)})
SERVER = Fields({"name": is_string, "version": is_string, "extensions": list_of(is_string)})
METADATA = Fields(
    {"name": is_string, "platform": is_string, "inputs": list_of(TENSOR), "outputs": list_of(TENSOR)},
    {"versions": list_of(is_string)},
)
LIVE, READY = Fields({"live": is_bool}), Fields({"ready": is_bool})
MODEL_READY = Fields({"name": is_string, "ready": is_bool})
PARAMETERS: Check = lambda value: all(type(each) in (str, int, float, bool) for each in value.values())  # noqa: E731
OUTPUT = Fields(
    {"name": is_string, "shape": list_of(is_count), "datatype": is_string, "data": list_of(is_number)},
    {"parameters": PARAMETERS},
)
INFER = Fields(
    {"model_name": is_string, "outputs": list_of(OUTPUT)},
    {"model_version": is_string, "id": is_string, "parameters": PARAMETERS},
)
# extension_statistics.md
DURATION = Fields({"count": is_count, "ns": is_count})
STAGES = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")
STATISTICS = Fields(
    {
        "model_stats": list_of(
            Fields(
                {
                    **dict.fromkeys(("name", "version"), is_string),
                    **dict.fromkeys(("last_inference", "inference_count", "execution_count"), is_count),
                    "inference_stats": Fields(dict.fromkeys(STAGES, DURATION)),
                    "response_stats": Fields({}),
                    "batch_stats": list_of(DURATION),
                    "memory_usage": list_of(is_string),
                }
            )
        )
    }
)
# extension_model_repository.md
INDEX = list_of(Fields({"name": is_string}, dict.fromkeys(("version", "state", "reason"), is_string)))

ANSWERS: dict[str, tuple[str, str, Any, Check]] = {
    "the server": ("GET", "/v2", None, SERVER),
    "live": ("GET", "/v2/health/live", None, LIVE),
    "ready": ("GET", "/v2/health/ready", None, READY),
    "a model": ("GET", MODEL, None, METADATA),
    "a version": ("GET", f"{MODEL}/versions/1", None, METADATA),
    "a model that is ready": ("GET", f"{MODEL}/ready", None, MODEL_READY),
    "infer": ("POST", f"{MODEL}/infer", {"inputs": [HISTORY]}, INFER),
    "infer with an id and a version": ("POST", f"{MODEL}/versions/1/infer", {"inputs": [HISTORY], "id": "7"}, INFER),
    "statistics": ("GET", f"{MODEL}/stats", None, STATISTICS),
    "statistics of all": ("GET", "/v2/models/stats", None, STATISTICS),
    "the index": ("POST", "/v2/repository/index", {}, INDEX),
    "an unknown model": ("GET", "/v2/models/none", None, ERROR),
    "an unknown path": ("GET", "/v2/none", None, ERROR),
    "another method": ("PUT", f"{MODEL}/infer", None, ERROR),
    "a bad request": ("POST", f"{MODEL}/infer", {}, ERROR),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    folder = tmp_path_factory.mktemp("models")
    write_forecast_folder(folder)
    async with client_of(folder, max_instances=1_000_000, max_body_bytes=50_000_000, max_json_values=5_000_000) as client:
        yield client


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_has_the_fields_of_the_specification_and_no_others(client: httpx.AsyncClient, name: str) -> None:
    method, path, content, check = ANSWERS[name]
    answer = await client.request(method, path, json=content)
    assert answer.headers["content-type"] == "application/json"
    assert check(answer.json()), answer.text


async def test_every_field_of_a_request_is_taken(client: httpx.AsyncClient) -> None:
    parameters = {"a": "b", "c": 1, "d": 1.5, "e": True}
    request = {
        "id": "7",
        "parameters": parameters,
        "inputs": [HISTORY | {"parameters": parameters}],
        "outputs": [{"name": "forecast", "parameters": parameters}],
    }
    answer = await client.post(f"{MODEL}/infer", json=request)
    assert INFER(answer.json()), answer.text
    assert [output["name"] for output in answer.json()["outputs"]] == ["forecast"]


async def test_a_large_answer_is_the_same_numbers_as_its_binary_form(client: httpx.AsyncClient) -> None:
    """60,000 rows of 4 steps are more than one part of an answer, and their quantiles several."""
    rows = 60_000
    data = np.random.default_rng(0).random((rows, 2, 1), np.float32).tobytes()
    tensor = {"name": "history", "datatype": "FP32", "shape": [rows, 2, 1], "parameters": {"binary_data_size": len(data)}}
    answers = []
    for is_binary in (False, True):
        head = httpx.Request(
            "POST", "http://sluice", json={"id": "7", "inputs": [tensor], "parameters": {"binary_data_output": is_binary}}
        ).content
        headers = {"Inference-Header-Content-Length": str(len(head)), "X-Request-Timeout-Ms": "30000"}
        answers.append(await client.post(f"{MODEL}/infer", content=head + data, headers=headers))
        assert answers[-1].status_code == 200, answers[-1].text[:300]
    as_json, as_bytes = answers
    assert INFER(as_json.json())
    size = int(as_bytes.headers["inference-header-content-length"])
    numbers = np.frombuffer(as_bytes.content[size:], "<f4")
    found = np.concatenate([np.array(output["data"], np.float32) for output in as_json.json()["outputs"]])
    assert len(found) == rows * 4 * 4
    np.testing.assert_array_equal(found, numbers)
