"""Bad requests to infer, to a real server on both of its paths: each is one error string, and the next request is answered."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.folders import write_forecast_folder, write_text_folder
from tests.serving import ServerProcess, server_process

FORECAST, TEXT = "/v2/models/toy-forecast/infer", "/v2/models/toy-sentiment/infer"
JSON = {"Content-Type": "application/json"}
MAX_BODY_BYTES = 200_000


@pytest.fixture(scope="module", params=["true", "false"], ids=["fast path", "regular path"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    models = tmp_path_factory.mktemp("models")
    write_forecast_folder(models)
    write_text_folder(models)
    settings = {"SLUICE_FAST_PATH": request.param, "SLUICE_MAX_BODY_BYTES": str(MAX_BODY_BYTES), "SLUICE_MAX_INSTANCES": "50"}
    with server_process(models, **settings) as server:
        yield server
        assert server.end() == 0
        assert "Traceback" not in server.log


def history(**changes: Any) -> dict[str, Any]:
    return {"name": "history", "datatype": "FP32", "shape": [1, 3, 1], "data": [1.0, 2.0, 3.0]} | changes


def inputs(*tensors: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"inputs": tensors, **more}).encode()


def binary(data: bytes, size: int | None = None, **changes: Any) -> tuple[bytes, dict[str, str]]:
    """A body of one binary tensor, `size` bytes of which are announced, and its headers."""
    tensor = history(parameters={"binary_data_size": len(data) if size is None else size}, **changes)
    del tensor["data"]
    head = inputs(tensor)
    return head + data, {"Inference-Header-Content-Length": str(len(head))}


def with_length(value: str) -> tuple[bytes, dict[str, str]]:
    return inputs(history()), {"Inference-Header-Content-Length": value, **JSON}


Request = tuple[bytes, dict[str, str]]
# Path, body with headers, status, and what the message says.
BAD: dict[str, tuple[str, Request, int, str]] = {
    "no JSON": (FORECAST, (b"{", JSON), 400, "not JSON"),
    "no body": (FORECAST, (b"", JSON), 400, "the body is empty"),
    "no inputs": (FORECAST, (b"{}", JSON), 400, '"inputs" is missing'),
    "a header length beyond the body": (FORECAST, with_length("999"), 400, "should be in range (0, "),
    "a header length below zero": (FORECAST, with_length("-1"), 400, "got: -1"),
    "a header length that is no number": (FORECAST, with_length("12a"), 400, "got: 12a"),
    "a header length with a sign": (FORECAST, with_length("+9"), 400, "got: +9"),
    "a header length within the JSON": (FORECAST, with_length("9"), 400, "not JSON"),
    "binary data cut off": (FORECAST, binary(b"\0" * 8, 12), 400, "12 bytes are announced, 8 are left"),
    "binary data with more behind it": (FORECAST, binary(b"\0" * 16, 12), 400, "unexpected additional input data: 4 bytes"),
    "binary data of another shape": (FORECAST, binary(b"\0" * 8), 400, "takes 12 bytes, got 8"),
    "a binary size below zero": (FORECAST, binary(b"\0" * 12, -12), 400, '"binary_data_size": expected a number'),
    "too few values": (FORECAST, (inputs(history(shape=[1, 4, 1])), JSON), 400, "takes 4 values, got 3"),
    "too many values": (FORECAST, (inputs(history(shape=[1, 2, 1])), JSON), 400, "takes 2 values, got 3"),
    "a shape of 100 MB": (FORECAST, (inputs(history(shape=[1, 26_214_400, 1])), JSON), 400, "takes 26214400 values, got 3"),
    "a shape beyond all memory": (FORECAST, (inputs(history(shape=[1, 2**31, 2**31])), JSON), 400, "values, got 3"),
    "a negative size": (FORECAST, (inputs(history(shape=[1, -3, 1])), JSON), 400, "expected sizes from 1"),
    "a size of zero": (FORECAST, (inputs(history(shape=[0, 3, 1], data=[])), JSON), 400, "expected sizes from 1"),
    "a size that is true": (FORECAST, (inputs(history(shape=[True, 3, 1])), JSON), 400, '"shape": expected'),
    "another number of axes": (FORECAST, (inputs(history(shape=[3])), JSON), 400, "expected 3 axes"),
    "another datatype": (FORECAST, (inputs(history(datatype="FP64")), JSON), 400, "got the datatype FP64"),
    "FP16 as JSON": (FORECAST, (inputs(history(datatype="FP16")), JSON), 400, "got the datatype FP16"),
    "strings for numbers": (FORECAST, (inputs(history(data=["1", "2", "3"])), JSON), 400, "got strings"),
    "a number beyond FP32": (FORECAST, (inputs(history(data=[1e300, 1.0, 1.0])), JSON), 400, "history"),
    "NaN in binary data": (FORECAST, binary(b"\0\0\xc0\x7f" * 3), 400, "nan"),
    "an unknown input": (FORECAST, (inputs(history(name="x")), JSON), 400, 'unknown input "x"'),
    "an unknown output": (FORECAST, (inputs(history(), outputs=[{"name": "z"}]), JSON), 400, 'unknown output "z"'),
    "bytes that are not UTF-8": (
        TEXT,
        binary(b"\x02\0\0\0\xff\xfe", name="text", datatype="BYTES", shape=[1]),
        400,
        "element 0 is not UTF-8",
    ),
    "a string longer than its data": (
        TEXT,
        binary(b"\xff\xff\xff\xff\0\0", name="text", datatype="BYTES", shape=[1]),
        400,
        "element 0 ends beyond the data",
    ),
    "strings without data": (TEXT, binary(b"\0" * 4, name="text", datatype="BYTES", shape=[50_000]), 413, "SLUICE_MAX_INSTANCES"),
    "too many rows": (FORECAST, (inputs(history(shape=[51, 2, 1], data=[1.0] * 102)), JSON), 413, "SLUICE_MAX_INSTANCES"),
    "a bomb": (FORECAST, (gzip.compress(b" " * 50_000_000), {"Content-Encoding": "gzip", **JSON}), 413, "decompressed"),
    "a small bomb": (FORECAST, (gzip.compress(b" " * 300_000), {"Content-Encoding": "gzip", **JSON}), 413, "decompressed"),
    "a stream cut off": (FORECAST, (gzip.compress(b"{}")[:-6], {"Content-Encoding": "gzip", **JSON}), 400, "no whole gzip"),
    "an unknown coding": (FORECAST, (b"{}", {"Content-Encoding": "br", **JSON}), 415, "accepted are gzip"),
    "a large body": (FORECAST, (b" " * (MAX_BODY_BYTES + 1), JSON), 413, "SLUICE_MAX_BODY_BYTES"),
    "another media type": (FORECAST, (b"{}", {"Content-Type": "text/xml"}), 415, "text/xml"),
    "an unknown model": ("/v2/models/none/infer", (inputs(history()), JSON), 404, 'there is no model "none"'),
    "an unknown version": ("/v2/models/toy-forecast/versions/9/infer", (inputs(history()), JSON), 404, "has no version 9"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_one_error_string_and_harms_no_other(server: ServerProcess, name: str) -> None:
    path, (body, headers), status, message = BAD[name]
    with httpx.Client(base_url=server.url) as client:
        answer = client.post(path, content=body, headers=headers)
        assert list(answer.json()) == ["error"], answer.text
        assert message in answer.json()["error"]
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/json"
        assert client.post(FORECAST, content=inputs(history()), headers=JSON).status_code == 200
