"""The ceiling of the graph: rows per second of one graph in a loop on one thread, at each batch size. No server, no JSON.

python -m benchmarks.bare_graph models/forecast-hourly/1/model.onnx 336
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from service.runtime import Runtime, open_runtime
from service.tensors import Tensors

BATCH_SIZES = (1, 4, 8, 16, 32, 64)


def rows_per_s(runtime: Runtime, num_steps: int, batch_size: int, duration_s: float) -> float:
    """Rows of `num_steps` steps that the graph runs per second, `batch_size` at a time."""
    random = np.random.default_rng(0)
    tensors: Tensors = {
        "history": random.uniform(50, 150, (batch_size, num_steps, 1)).astype(np.float32),
        "lengths": np.full(batch_size, num_steps, np.int64),
    }
    for spec in runtime.inputs:
        if spec.name not in tensors:  # a state, which starts from zeros
            tensors[spec.name] = np.zeros((batch_size, *(int(size) for size in spec.shape[1:])), np.float32)
    runtime.run(tensors)
    num_runs, started = 0, time.perf_counter()
    while time.perf_counter() - started < duration_s:
        runtime.run(tensors)
        num_runs += 1
    return num_runs * batch_size / (time.perf_counter() - started)


def best(graph: Path, num_steps: int, duration_s: float = 0.3) -> tuple[float, int]:
    """Rows per second at the best batch size, and that size."""
    runtime = open_runtime(graph, "cpu")
    return max((rows_per_s(runtime, num_steps, size, duration_s), size) for size in BATCH_SIZES)


if __name__ == "__main__":
    rate, size = best(Path(sys.argv[1]), int(sys.argv[2]))
    print(f"{rate:.0f} rows/s at batch {size}")
