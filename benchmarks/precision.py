"""Rows per second of every graph of a folder, on one thread, interleaved: whether int8 is worth its loss on this processor.

python -m benchmarks.precision models/sentiment-en/1 200
python -m benchmarks.precision 64 168     # two untrained LSTM layers of 64 units

Counts the thread's own processor time, which other processes disturb less; no server, no JSON.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import numpy as np

from service.runtime.base import Runtime
from service.runtime.onnx_runtime import open_runtime
from service.runtime.tensors import Tensors
from service.tasks.registry import built_in_tasks

BATCH_SIZES = (1, 4, 16, 32)
DURATION_S = 4.0


def rows_of(runtime: Runtime, num_steps: int, batch_size: int) -> Tensors:
    """A batch of random rows of `num_steps` steps; token ids are small, states are zeros."""
    random = np.random.default_rng(0)
    tensors: Tensors = {}
    for spec in runtime.inputs:
        shape = [batch_size, *(num_steps if isinstance(size, str) else size for size in spec.shape[1:])]
        if spec.name == "lengths":
            tensors[spec.name] = np.full(batch_size, num_steps, np.int64)
        elif spec.datatype == "INT64":
            tensors[spec.name] = random.integers(0, 1000, shape)
        elif len(shape) > 2:
            tensors[spec.name] = random.uniform(50, 150, shape).astype(np.float32)
        else:
            tensors[spec.name] = np.zeros(shape, np.float32)
    return tensors


def measure(runtimes: dict[str, Runtime], rows: Tensors, duration_s: float = DURATION_S) -> dict[str, float]:
    """Rows per second of each graph: medians of interleaved runs."""
    times: dict[str, list[float]] = {name: [] for name in runtimes}
    num_rows = len(next(iter(rows.values())))
    end = time.perf_counter() + duration_s
    while time.perf_counter() < end or not times[next(iter(times))]:
        for name, runtime in runtimes.items():
            started = time.thread_time()
            runtime.run(rows)
            times[name].append(time.thread_time() - started)
    return {name: num_rows / statistics.median(taken) for name, taken in times.items()}


def graphs_of(source: str) -> dict[str, bytes]:
    """The graphs of a folder by precision; for a number, those of two LSTM layers with so many units."""
    if not source.isdigit():
        manifest = built_in_tasks().read_manifest(Path(source))
        return {graph.precision: (Path(source) / graph.file).read_bytes() for graph in manifest.graphs}
    from training.export.graph import write_graph
    from training.export.int8_graph import find_ranged_tensors, quantize_graph
    from training.layers.scaling import ScalingConfig
    from training.network.heads.forecast import ForecastSpec
    from training.network.network import Network

    lstm = {"type": "lstm", "units": int(source)}
    layers = ({**lstm, "return_sequences": True}, lstm, {"type": "dense"})
    network = Network(ForecastSpec(layers=layers, scaling=ScalingConfig(kind="none")))
    graph = write_graph(network).SerializeToString()
    return {
        "fp32": graph,
        "int8": quantize_graph(graph, {tensor.values: (-4.0, 4.0) for tensor in find_ranged_tensors(graph)}).payload,
    }


def main(source: str, num_steps: int) -> None:
    """Print one line per batch size: rows per second of each graph, and the ratio to the first."""
    runtimes = {precision: open_runtime(graph, "cpu") for precision, graph in graphs_of(source).items()}
    first = next(iter(runtimes))
    for batch_size in BATCH_SIZES:
        rates = measure(runtimes, rows_of(runtimes[first], num_steps, batch_size))
        line = ", ".join(f"{name} {rate:.0f} rows/s ({rate / rates[first]:.2f})" for name, rate in rates.items())
        print(f"batch {batch_size:2}: {line}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
