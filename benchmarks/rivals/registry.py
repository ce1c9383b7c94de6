"""The servers people would use instead of Sluice: how each is installed and configured, its requests and responses. Starts none.

Each serves the same graph of a Sluice model folder, with the settings that its own documentation advises for throughput; its
server file names the pages. `hand-written` is the endpoint that most would write first, `hand-written tuned` what it becomes in
experienced hands; both run in Sluice's own environment.

`NOT_MEASURED` lists those that are missing, and why.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.rivals.options import Batching, Options
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

    `start(options, python, port)` is its command line, with the interpreter that `environment(rival)` returns. `batching` and
    `num_threads` (of onnxruntime, in each process; None: its default, one per core) are part of those options: what is written
    here is what the server runs with. `instances` are as POST /predict takes them: for the task "forecast" {"history": [..]}, for
    "classify" texts. `predictions(response)` are the graph's outputs, one dict per instance.
    """

    name: str
    packages: tuple[str, ...]
    start: Callable[[Options, Path, int], Command]
    ready_path: str
    batching: Batching | None
    num_threads: int | None
    path: str = "/predict"
    body: Callable[[str, Sequence[Any]], bytes] = _instances
    predictions: Callable[[bytes], list[dict[str, Any]]] = _predictions

    def command(self, python: Path, folder: Path, port: int, num_processes: int) -> Command:
        """Start the server on a model folder (absolute), with `num_processes` processes that run the graph."""
        return self.start(Options(folder, num_processes, self.num_threads, self.batching), python, port)


def _env(options: Options, **variables: object) -> dict[str, str]:
    """The options, the variables, and the checkout on the path: the environments do not hold the server files."""
    return {"PYTHONPATH": str(ROOT), **options.to_environ(), **{name: str(value) for name, value in variables.items()}}


def _handwritten(options: Options, python: Path, port: int) -> Command:
    argv = [str(python), "-m", "uvicorn", "--factory", "benchmarks.rivals.handwritten:create_app", "--port", str(port)]
    argv += ["--workers", str(options.num_processes), "--no-access-log", "--log-level", "warning"]
    return argv, _env(options)


def _handwritten_tuned(options: Options, python: Path, port: int) -> Command:
    argv = [str(python), "-m", "uvicorn", "--factory", "benchmarks.rivals.handwritten_tuned:create_app", "--port", str(port)]
    argv += ["--workers", str(options.num_processes), "--loop", "uvloop", "--http", "httptools", "--ws", "none"]
    argv += ["--no-access-log", "--log-level", "warning", "--no-server-header", "--no-date-header"]
    # One thread per process, in the tokenizer as well.
    return argv, _env(options, TOKENIZERS_PARALLELISM="false")


def _litserve(options: Options, python: Path, port: int) -> Command:
    return [str(python), "-m", "benchmarks.rivals.litserve_server", str(port)], _env(options)


def _bentoml(options: Options, python: Path, port: int) -> Command:
    argv = [str(python), "-m", "bentoml", "serve", "benchmarks.rivals.bentoml_server:GraphService"]
    argv += ["--host", "127.0.0.1", "--port", str(port)]
    home = WORK / "bentoml"
    return argv, _env(options, BENTOML_HOME=home, BENTOML_DO_NOT_TRACK=True)


def _mlserver(options: Options, python: Path, port: int) -> Command:
    assert options.batching is not None
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
        "parallel_workers": options.num_processes,
        "model_name": "graph",
        "model_implementation": "benchmarks.rivals.mlserver_server.GraphModel",
        "model_uri": options.folder,
        "model_max_batch_size": options.batching.max_batch_size,
        "model_max_batch_time": options.batching.max_delay_ms / 1000,
    }
    env = _env(options, **{f"MLSERVER_{name.upper()}": value for name, value in settings.items()})
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


def _ray(options: Options, python: Path, port: int) -> Command:
    env = _env(
        options,
        RAY_SERVE_THROUGHPUT_OPTIMIZED=1,
        RAY_SERVE_ENABLE_HA_PROXY=1,
        RAY_SERVE_HAPROXY_METRICS_PORT=free_port(),
        RAY_SERVE_HAPROXY_STATS_PORT=free_port(),
        RAY_USAGE_STATS_ENABLED=0,
        RAY_AUTH_TOKEN=uuid.uuid4().hex,  # else Ray writes one into the home folder
    )
    return [str(python), "-m", "benchmarks.rivals.ray_server", str(port)], env


RIVALS = (
    Rival("hand-written", (), _handwritten, "/health/ready", batching=None, num_threads=None),
    Rival("hand-written tuned", (), _handwritten_tuned, "/health/ready", batching=None, num_threads=1),
    Rival("LitServe", ("litserve==0.2.19", *RUNTIME), _litserve, "/health", Batching(32, "requests", 5), num_threads=1),
    Rival(
        "BentoML",
        ("bentoml==1.4.39", *RUNTIME),
        _bentoml,
        "/readyz",
        # BentoML's default latency: it cancels requests that would take longer, and chooses its wait from measured times.
        Batching(32, "instances", 60_000, is_adaptive=True),
        num_threads=1,
        predictions=json.loads,
    ),
    Rival(
        "MLServer",
        # Its workers get the running loop from uvloop where there is none; uvloop 0.22 raises then.
        ("mlserver==1.7.1", "uvloop==0.21.0", *RUNTIME),
        _mlserver,
        "/v2/models/graph/ready",
        Batching(32, "requests", 2),
        num_threads=1,
        path="/v2/models/graph/infer",
        body=_v2,
        predictions=_v2_predictions,
    ),
    Rival("Ray Serve", ("ray[serve]==2.60.0", *RUNTIME), _ray, "/predict", Batching(32, "requests", 2), num_threads=1),
)

NOT_MEASURED = {
    "Triton Inference Server": "it comes as a container image or from a build of its sources, and this comparison installs every "
    "server with pip, to run without containers. Its dynamic batcher joins requests of equal shapes only, unless the graph takes "
    "ragged inputs in Triton's own form: `python -m benchmarks.equal_shapes` measures that policy in Sluice's batcher.",
    "PyTriton": "it installs with pip and puts Triton in front of a Python function in a process of its own, in which the graph "
    "would run. It was not tried.",
    "TorchServe": "its repository was archived in August 2025; no fixes are planned, not for security either.",
    "TensorFlow Serving": "it serves TensorFlow's SavedModel, not ONNX: the graph would be another one.",
    "OpenVINO Model Server": "it comes as a container image or as binaries, and runs the graph in OpenVINO: the comparison would "
    "be one of two runtimes.",
    "KServe and Seldon Core": "they deploy servers on Kubernetes; the server in the pod is MLServer, which is measured, or "
    "Triton.",
}
"""Servers that a reader may look for, each with the reason why it is not measured."""
