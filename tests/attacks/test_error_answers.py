"""No answer says more than it must: every error of the table is provoked, and holds no stack trace, path or library."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from onnx import TensorProto, helper

from service.api.access.keys import describe_entry, new_key
from service.api.errors import TABLE
from tests.folders import (
    build_graph,
    edit_example,
    edit_manifest,
    write_forecast_folder,
    write_graph,
    write_tensor_folder,
    write_text_folder,
)
from tests.serving import ROOT, ServerProcess, server_process
from tests.streams import cells, write_text_stream

LIBRARIES = [
    "fastapi",
    "httptools",
    "numpy",
    "onnxruntime",
    "orjson",
    "pydantic",
    "pydantic_core",
    "starlette",
    "tokenizers",
    "uvicorn",
    "uvloop",
    "websockets",
]
STACK = re.compile(r'Traceback|File "|line \d+, in|\.py\b|\.cc?\b|\.pyx\b|0x[0-9a-f]{6}')
# A path has two parts at least; those of our own routes are written in full in the table of errors and in the requests here.
PATH = re.compile(r"(?<![\w.:/])(?:/[\w.-]+){2,}")
OWN_PATHS = ("/docs/errors", "/no/such/path", "/predict/forecast", "/predict/ws")
TOO_LARGE = 1e6
"""Beyond it the graph of `fails` looks for a row that its table does not have."""
BUG = "instances of a bug"
CLIENT = httpx.Client(limits=httpx.Limits(max_keepalive_connections=0), timeout=30)

# A server with a bug in it, which shows what it should not.
BUGGY = f"""
import sys
from service.api import parsing, predict
parse = parsing.parse
def buggy(body, *args, **options):
    if {BUG.encode()!r} in body:
        raise RuntimeError("/etc/passwd of " + sys.version)
    return parse(body, *args, **options)
parsing.parse = predict.parse = buggy
from service.__main__ import main
sys.exit(main([]))
"""


class Given(NamedTuple):
    """The server to provoke, a second one that gives requests no time, a third one whose store is not there, and their keys."""

    server: ServerProcess
    hurried: ServerProcess
    storeless: ServerProcess
    keys: dict[str, str]

    def post(self, body: Any = None, *, key: str = "predict", path: str = "/predict", **options: Any) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"content-type": "application/json", "x-api-key": self.keys[key], **options.pop("headers", {})}
        return CLIENT.post(self.server.url + path, content=content, headers=headers, **options)


def write_failing_folder(models: Path) -> None:
    """A graph that runs for its example, and raises for a value beyond TOO_LARGE."""
    folder = write_tensor_folder(models, "fails")

    def edit(manifest: dict[str, Any]) -> None:
        tensor = {"datatype": "FP32", "shape": ["batch", 1]}
        manifest.update(inputs=[{"name": "x", **tensor}], outputs=[{"name": "y", **tensor}])
        manifest.pop("state")

    edit_manifest(folder, edit)
    manifest = json.loads((folder / "manifest.json").read_text())
    nodes = [
        helper.make_node("Greater", ["x", "bound"], ["is_too_large"]),
        helper.make_node("Cast", ["is_too_large"], ["one"], to=TensorProto.INT64),
        helper.make_node("Mul", ["one", "nine"], ["row"]),
        helper.make_node("Gather", ["table", "row"], ["y"]),
    ]
    write_graph(folder, build_graph(manifest, nodes, {"bound": np.array(TOO_LARGE), "table": np.array([0.5])}, {"nine": [9]}))

    def answer(example: dict[str, Any]) -> None:
        example["request"]["instances"] = [{"x": [1.0]}]
        example["response"]["predictions"] = [[0.5]]

    edit_example(folder, answer)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Given]:
    models = tmp_path_factory.mktemp("models")
    write_forecast_folder(models)
    write_forecast_folder(models, "toy-forecast-2")
    write_text_folder(models)
    write_failing_folder(models)
    edit_manifest(write_text_folder(models, "broken"), lambda manifest: manifest.update(task="guess"))
    write_second_version(write_text_stream(models, cells("lstm")))
    streams = tmp_path_factory.mktemp("streams")
    write_text_stream(streams, cells("lstm"))
    scopes: dict[str, list[str]] = {"predict": ["predict"], "admin": ["admin"], "slow": ["predict"]}
    keys = {name: new_key() for name in scopes}
    keys_file = tmp_path_factory.mktemp("keys") / "keys.toml"
    keys_file.write_text(
        "".join(
            describe_entry(key, name, scopes=scopes[name], rate_limit="1/h" if name == "slow" else None)
            for name, key in keys.items()
        )
    )
    with (
        server_process(
            models,
            code=BUGGY,
            SLUICE_API_KEYS_FILE=str(keys_file),
            SLUICE_STRICT_READINESS="false",
            SLUICE_MAX_QUEUE_SIZE="2",
            SLUICE_MAX_QUEUE_DELAY_MS="200",
            SLUICE_MAX_BODY_BYTES="50000",
            SLUICE_HEADER_TIMEOUT_MS="500",
        ) as server,
        server_process(
            models,
            SLUICE_API_KEYS_FILE=str(keys_file),
            SLUICE_STRICT_READINESS="false",
            SLUICE_REQUEST_TIMEOUT_MS="0.001",
            SLUICE_MODEL_CONTROL="explicit",
            SLUICE_LOAD_MODELS="*",
        ) as hurried,
        server_process(
            streams,
            SLUICE_API_KEYS_FILE=str(keys_file),
            SLUICE_SEQUENCE_STORE=f"redis://user:password@127.0.0.1:{closed_port()}/0",
        ) as storeless,
    ):
        yield Given(server, hurried, storeless, keys)
        assert "RuntimeError" in server.log, "the log says what the answer does not"


def write_second_version(folder: Path) -> None:
    """A version 2 beside version 1, with the same graph."""
    shutil.copytree(folder, folder.with_name("2"))
    edit_manifest(folder.with_name("2"), lambda manifest: manifest.update(version="2"))


def closed_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def step(given: Given, version: str | None = None, **parameters: Any) -> httpx.Response:
    body = {"model": "toy-chat", "version": version, "instances": ["good"], "parameters": {"sequence_id": "a", **parameters}}
    return given.post(body)


def change_graph(given: Given) -> httpx.Response:
    """A step of a sequence that another version began."""
    assert step(given, "1", sequence_start=True).status_code == 200
    return step(given, "2")


def overload(given: Given) -> httpx.Response:
    """The first refusal among several requests at once to a queue of two rows, which waits for more before it runs."""
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            answers = list(pool.map(given.post, [FORECAST] * 8))
            if refused := [answer for answer in answers if answer.status_code == 503]:
                break
    return refused[0]


def begin_slowly(given: Given) -> httpx.Response:
    """What comes of a head that never ends."""
    found = urlsplit(given.server.url)
    with socket.create_connection((found.hostname, found.port), timeout=30) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nX-Slow: ")
        with connection.makefile("rb") as stream:
            head, _, body = stream.read().partition(b"\r\n\r\n")
    first_line, *lines = head.decode().split("\r\n")
    headers = [(name, value) for name, _, value in (line.partition(": ") for line in lines)]
    return httpx.Response(int(first_line.split()[1]), headers=headers, content=body)


FORECAST: dict[str, Any] = {"model": "toy-forecast", "instances": [{"history": [1, 2, 3]}]}
PROVOCATIONS: dict[str, Callable[[Given], httpx.Response]] = {
    "malformed_request": lambda given: given.post(b'{"instances": [}'),
    "unauthorized": lambda given: CLIENT.get(given.server.url + "/models"),
    "forbidden": lambda given: given.post(FORECAST, key="admin"),
    "model_not_found": lambda given: given.post(FORECAST | {"model": "../../etc/passwd"}),
    "sequence_not_found": lambda given: step(given),
    "not_found": lambda given: given.post({}, path="/no/such/path"),
    "method_not_allowed": lambda given: CLIENT.put(given.server.url + "/predict", headers={"x-api-key": given.keys["predict"]}),
    "request_timeout": lambda given: begin_slowly(given),
    "ambiguous_model": lambda given: given.post({"instances": [{"history": [1, 2, 3]}]}, path="/predict/forecast"),
    "load_failed": lambda given: given._replace(server=given.hurried).post({}, key="admin", path="/models/broken/load"),
    "sequence_conflict": change_graph,
    "payload_too_large": lambda given: given.post(b" " * 50_001),
    "url_too_long": lambda given: given.post({}, path="/" + "a" * 10_000),
    "unsupported_media_type": lambda given: given.post(FORECAST, headers={"content-type": "text/plain"}),
    "invalid_input": lambda given: given.post(FORECAST | {"instances": [{"history": ["/etc"]}]}),
    "invalid_state": lambda given: given.post(FORECAST | {"instances": [{"history": [1, 2, 3], "state": "/etc"}]}),
    "upgrade_required": lambda given: CLIENT.get(given.server.url + "/predict/ws", headers={"x-api-key": given.keys["predict"]}),
    "rate_limited": lambda given: [given.post(FORECAST, key="slow") for _ in range(2)][1],
    "head_too_large": lambda given: given.post(FORECAST, headers={"x-large": "a" * 70_000}),
    "inference_failed": lambda given: given.post({"model": "fails", "instances": [{"x": [2 * TOO_LARGE]}]}),
    "internal_error": lambda given: given.post({"model": BUG, "instances": [1]}),
    "model_not_ready": lambda given: given.post({"model": "broken", "instances": ["a"]}),
    "overloaded": overload,
    "store_unavailable": lambda given: step(given._replace(server=given.storeless), sequence_start=True),
    "deadline_exceeded": lambda given: given._replace(server=given.hurried).post(FORECAST),
}


def test_every_error_of_the_table_is_provoked_here() -> None:
    assert list(PROVOCATIONS) == [row.error.code for row in TABLE]


@pytest.mark.parametrize("code", PROVOCATIONS)
def test_an_error_says_no_more_than_it_must(given: Given, code: str) -> None:
    answer = PROVOCATIONS[code](given)
    row = next(row for row in TABLE if row.error.code == code)
    assert (answer.status_code, answer.json()["code"]) == (row.status, code), answer.text
    assert_is_discreet(f"{answer.headers}\n{answer.text}")
    assert "server" not in answer.headers


def assert_is_discreet(text: str) -> None:
    shown = text.replace("\\", "")
    for own in (*OWN_PATHS, "../../etc/passwd"):
        shown = shown.replace(own, "")
    assert STACK.search(shown) is None, text
    assert PATH.search(shown) is None, text
    assert str(ROOT) not in text
    for library in LIBRARIES:
        assert library not in shown.lower(), text
        assert importlib.metadata.version(library) not in shown, text
    assert platform.python_version() not in shown, text


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nContent-Length: x\r\n\r\n",
    ],
    ids=["TLS", "version", "target", "length"],
)
def test_what_is_no_http_is_answered_as_briefly(given: Given, sent: bytes) -> None:
    found = urlsplit(given.server.url)
    with socket.create_connection((found.hostname, found.port), timeout=30) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while part := connection.recv(4096):
            received += part
    assert_is_discreet(received.decode("latin-1"))


def test_what_checks_find_in_answers_is_what_they_look_for() -> None:
    for leak in (
        'File "/app/service/wire.py", line 7, in read',
        "/opt/venv/lib/site-packages",
        "cannot read /srv/models/a/1",
        "onnxruntime 1.20",
        "gather.cc:154",
        f"Python {platform.python_version()}",
        "<Batcher object at 0x7f3a2c1d>",
        "https://errors.pydantic.dev/2.11/v/missing",
    ):
        with pytest.raises(AssertionError):
            assert_is_discreet(leak)
