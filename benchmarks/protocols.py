"""What the other protocols cost beside `/predict` and beside the bare graph: processor time of the server per request.

    python -m benchmarks.protocols
    python -m benchmarks.protocols --model models/forecast-hourly --rounds 15 --seconds 0.5

One connection, one request at a time, one process with the default settings. Each round sends every kind of request in turn, and
runs the bare graph on one thread of this process; a ratio is computed within each round, the table has the medians. Linux only.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.processes import cpu_seconds
from benchmarks.reference import reference_folder
from benchmarks.servers import Server, sluice
from service.runtime.onnx_runtime import open_runtime
from service.runtime.tensors import Tensors

NUM_ROWS, NUM_STEPS = 64, 168
CLOCK_TICKS = 20
"""The kernel counts hundredths of a second: a turn lasts until so many have passed, however short it was to be."""


class Kind(NamedTuple):
    """One kind of request."""

    name: str
    path: str
    body: bytes
    headers: dict[str, str]


def kinds(model: str) -> list[Kind]:
    """A row as `/predict` and as `infer` take it, and many rows as binary data and as JSON."""
    steps = np.arange(NUM_STEPS, dtype=np.float32)
    rows = np.stack([10 + np.sin(steps / 4 + row) for row in range(NUM_ROWS)]).astype(np.float32)[:, :, None]
    infer, json_type = f"/v2/models/{model}/infer", {"Content-Type": "application/json"}
    data = rows.tobytes()

    def tensor(count: int, **content: Any) -> dict[str, Any]:
        return {"inputs": [{"name": "history", "datatype": "FP32", "shape": [count, NUM_STEPS, 1], **content}]}

    head = json.dumps(tensor(NUM_ROWS, parameters={"binary_data_size": len(data)}) | {"parameters": {"binary_data_output": True}})
    sizes = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
    one, many = rows[0].ravel().tolist(), rows.ravel().tolist()
    instances = [{"history": one}]
    return [
        Kind("/predict, a row", "/predict", json.dumps({"model": model, "instances": instances}).encode(), json_type),
        Kind("infer, a row as JSON", infer, json.dumps(tensor(1, data=one)).encode(), json_type),
        Kind("v1, a row", f"/v1/models/{model}:predict", json.dumps({"instances": instances}).encode(), json_type),
        Kind(f"infer, {NUM_ROWS} rows as binary data", infer, head.encode() + data, sizes),
        Kind(f"infer, {NUM_ROWS} rows as JSON", infer, json.dumps(tensor(NUM_ROWS, data=many)).encode(), json_type),
    ]


def repeat(call: Callable[[], object], cpu_s: Callable[[], float], seconds: float) -> float:
    """Microseconds of processor time of one call, repeated for some seconds, and for enough ticks of the kernel's clock."""
    count, started, cpu_before = 0, time.perf_counter(), cpu_s()
    while time.perf_counter() - started < seconds or cpu_s() - cpu_before < CLOCK_TICKS / 100:
        call()
        count += 1
    return (cpu_s() - cpu_before) / count * 1e6


def measure(server: Server, model: Path, num_rounds: int, seconds: float) -> dict[str, list[float]]:
    """Microseconds per request of each kind, and per run of the bare graph, one of each round."""
    pids = [process.pid for process in server.members()]
    runtime = open_runtime(model / "1" / "model.onnx")
    requests = kinds(model.name)
    body = requests[3].body
    rows = np.frombuffer(body[-NUM_ROWS * NUM_STEPS * 4 :], np.float32).reshape(NUM_ROWS, NUM_STEPS, 1)
    tensors: Tensors = {"history": rows, "lengths": np.full(NUM_ROWS, NUM_STEPS, np.int64)}
    found: dict[str, list[float]] = {}
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)) as connection:

        def send(kind: Kind) -> None:
            connection.request("POST", kind.path, kind.body, kind.headers)
            answer = connection.getresponse()
            content = answer.read()
            if answer.status != 200:
                raise RuntimeError(f"{kind.name}: {answer.status}: {content[:300]!r}")

        def server_cpu_s() -> float:
            return sum(map(cpu_seconds, pids))

        for turn in range(num_rounds + 1):
            costs = {kind.name: repeat(lambda kind=kind: send(kind), server_cpu_s, seconds) for kind in requests}  # type: ignore[misc]
            costs["bare graph"] = repeat(lambda: runtime.run(tensors), time.process_time, seconds)
            if turn > 0:  # the first warms up
                for name, cost in costs.items():
                    found.setdefault(name, []).append(cost)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=Path, help="folder of a forecasting model of one feature; the reference network if absent"
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.5, help="length of one turn of one kind")
    options = parser.parse_args()
    folder: Path = options.model or reference_folder().parent
    with sluice(folder.parent) as server:
        found = measure(server, folder, options.rounds, options.seconds)
    predict, bare = found["/predict, a row"], found["bare graph"]
    print("| | µs | beside `/predict` | beside the bare graph |\n|---|---:|---:|---:|")
    for name, costs in found.items():
        of_rows = name == "bare graph" or str(NUM_ROWS) in name
        ratio = statistics.median(cost / base for cost, base in zip(costs, bare if of_rows else predict, strict=True))
        shown = f"| | {ratio:.2f} |" if of_rows else f"| {ratio:.2f} | |"
        print(f"| {name} | {statistics.median(costs):,.0f} {shown}")


if __name__ == "__main__":
    main()
