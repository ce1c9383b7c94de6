"""The servers people would use instead of Sluice: how each is installed and started, its requests and responses. Starts none.

Each serves the same graph of a Sluice model folder, with the settings that its own documentation advises for throughput; its
server file names the pages. `hand-written` is the endpoint that anyone can write, and runs in Sluice's own environment.

Triton is absent: with its ONNX backend it comes as the vendor's container or from a build of its sources. What pip installs,
`nvidia-pytriton`, puts the server in front of a Python function in a process of its own; it was not tried here.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.servers import ROOT, WORK, free_port

Command = tuple[list[str], dict[str, str]]
"""The arguments and the environment variables of a server's first process."""

# The same runtime for all, and the pins that each needs to work. Everything else is pip's choice.
RUNTIME = ("onnxruntime==1.31.1", "tokenizers==0.23.3", "numpy==2.4.6")


def _instances(task: str, instances: Sequence[Any]) -> bytes:
    return json.dumps({"instances": list(instances)}).encode()


def _predictions(response: bytes) -> list[dict[str, Any]]:
    predictions: list[dict[str, Any]] = json.loads(response)["predictions"]
    return predictions


@dataclass(frozen=True)
class Rival:
    """One server. POST `body(task, instances)` to `path` once GET `ready_path` answers 200.

    `command(python, folder, port, num_processes)` starts it with the interpreter that `environment(rival)` returns, on a model
    folder (absolute), with so many processes that run the graph. `instances` are as POST /predict takes them: for the task
    "forecast" {"history": [..]}, for "classify" texts. `predictions(response)` are the graph's outputs, one dict per instance.
    """

    name: str
    packages: tuple[str, ...]
    command: Callable[[Path, Path, int, int], Command]
    ready_path: str
    path: str = "/predict"
    body: Callable[[str, Sequence[Any]], bytes] = _instances
    predictions: Callable[[bytes], list[dict[str, Any]]] = _predictions


def _env(**variables: object) -> dict[str, str]:
    """The variables, and the checkout on the path: it holds the server files, and the environments do not hold it."""
    return {"PYTHONPATH": str(ROOT), **{name: str(value) for name, value in variables.items()}}


def _handwritten(python: Path, folder: Path, port: int, num_processes: int) -> Command:
    argv = [str(python), "-m", "uvicorn", "--factory", "benchmarks.rivals.handwritten:create_app", "--port", str(port)]
    argv += ["--workers", str(num_processes), "--no-access-log", "--log-level", "warning"]
    return argv, _env(MODEL_FOLDER=folder)


def _litserve(python: Path, folder: Path, port: int, num_processes: int) -> Command:
    return [str(python), "-m", "benchmarks.rivals.litserve_server", str(folder), str(port), str(num_processes)], _env()


def _bentoml(python: Path, folder: Path, port: int, num_processes: int) -> Command:
    argv = [str(python), "-m", "bentoml", "serve", "benchmarks.rivals.bentoml_server:GraphService"]
    argv += ["--host", "127.0.0.1", "--port", str(port)]
    home = WORK / "bentoml"
    return argv, _env(MODEL_FOLDER=folder, NUM_WORKERS=num_processes, BENTOML_HOME=home, BENTOML_DO_NOT_TRACK=True)


def _mlserver(python: Path, folder: Path, port: int, num_processes: int) -> Command:
    home = WORK / "mlserver"  # stays empty: without files there, MLServer reads the one model from the environment
    home.mkdir(parents=True, exist_ok=True)
    settings = {
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": free_port(),
        "metrics_port": free_port(),
        "metrics_dir": WORK / "mlserver-metrics",
        "environments_dir": WORK / "mlserver-environments",
        "debug": "false",
        "parallel_workers": num_processes,
        "model_name": "graph",
        "model_implementation": "benchmarks.rivals.mlserver_server.GraphModel",
        "model_uri": folder,
        "model_max_batch_size": 32,
        "model_max_batch_time": 0.002,  # seconds
    }
    env = _env(**{f"MLSERVER_{name.upper()}": value for name, value in settings.items()})
    return [str(python.parent / "mlserver"), "start", str(home)], env


def _v2(task: str, instances: Sequence[Any]) -> bytes:
    """The Open Inference Protocol. Histories are sent flat: see `mlserver_server` for why."""
    num = len(instances)
    if task == "classify":
        tensors = [{"name": "text", "datatype": "BYTES", "shape": [num], "data": list(instances)}]
    else:
        histories = [instance["history"] for instance in instances]
        values = [value for history in histories for value in history]
        tensors = [
            {"name": "history", "datatype": "FP32", "shape": [len(values)], "data": values},
            {"name": "lengths", "datatype": "INT64", "shape": [num], "data": [len(history) for history in histories]},
        ]
    return json.dumps({"inputs": tensors}).encode()


def _v2_predictions(response: bytes) -> list[dict[str, Any]]:
    outputs = json.loads(response)["outputs"]
    return [
        {output["name"]: _row(output["data"], output["shape"], index) for output in outputs}
        for index in range(outputs[0]["shape"][0])
    ]


def _row(data: list[float], shape: list[int], index: int) -> list[Any]:
    """One row of flat data in row-major order, nested as `shape[1:]` says."""
    size = len(data) // shape[0]
    row: list[Any] = data[index * size : (index + 1) * size]
    for width in reversed(shape[2:]):
        row = [row[start : start + width] for start in range(0, len(row), width)]
    return row


def _ray(python: Path, folder: Path, port: int, num_processes: int) -> Command:
    env = _env(
        RAY_SERVE_THROUGHPUT_OPTIMIZED=1,
        RAY_SERVE_ENABLE_HA_PROXY=1,
        RAY_SERVE_HAPROXY_METRICS_PORT=free_port(),
        RAY_SERVE_HAPROXY_STATS_PORT=free_port(),
        RAY_USAGE_STATS_ENABLED=0,
        RAY_AUTH_TOKEN=uuid.uuid4().hex,  # else Ray writes one into the home folder
    )
    return [str(python), "-m", "benchmarks.rivals.ray_server", str(folder), str(port), str(num_processes)], env


RIVALS = (
    Rival("hand-written", (), _handwritten, "/health/ready"),
    Rival("LitServe", ("litserve==0.2.19", *RUNTIME), _litserve, "/health"),
    Rival("BentoML", ("bentoml==1.4.39", *RUNTIME), _bentoml, "/readyz", predictions=json.loads),
    Rival(
        "MLServer",
        # Its workers get the running loop from uvloop where there is none; uvloop 0.22 raises then.
        ("mlserver==1.7.1", "uvloop==0.21.0", *RUNTIME),
        _mlserver,
        "/v2/models/graph/ready",
        "/v2/models/graph/infer",
        _v2,
        _v2_predictions,
    ),
    Rival("Ray Serve", ("ray[serve]==2.60.0", *RUNTIME), _ray, "/predict"),
)
