"""The bare graph of a model folder on each device of this machine: rows per second and latency against the batch size.

    python -m benchmarks.gpu models/forecast-hourly/1
    python -m benchmarks.gpu models/sentiment-en/1 --steps 100 --devices cpu cuda tensorrt

No server and no JSON: synthetic rows, batches one after the other from one thread, as a worker thread of the server runs them.
A device is compared with the CPU first, as the server does before a model is READY.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from service.errors import ServiceError, StartError
from service.manifest import Manifest
from service.models.device_check import find_difference
from service.runtime.base import CPU, Device, Runtime
from service.runtime.onnx_runtime import GpuOptions, open_runtime
from service.runtime.synthetic import USUAL_STEPS, synthetic
from service.runtime.tensors import Signature, TensorSpec
from service.tasks.registry import built_in_tasks

BATCH_SIZES = (1, 4, 16, 64, 256, 1024)
MIN_RUNS, MAX_RUNS = 3, 2000


@dataclass(frozen=True)
class Timing:
    """One batch size: rows per second over all runs, and the time of one run in milliseconds."""

    rows_per_s: float
    p50_ms: float
    p99_ms: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a version folder, as models/forecast-hourly/1")
    parser.add_argument("--devices", nargs="+", choices=("cpu", "cuda", "tensorrt"), default=("cpu", "cuda", "tensorrt"))
    parser.add_argument("--device-id", type=int, default=0)
    parser.add_argument("--steps", type=int, help="length of every row; the model's longest if absent")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each batch size on each device")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=BATCH_SIZES)
    options = parser.parse_args()

    manifest = built_in_tasks().read_manifest(options.folder)
    num_steps = options.steps or max_steps(manifest)
    signature = signature_of(manifest)
    print(f"{manifest.name}/{manifest.version}, rows of {num_steps} steps, {platform.processor() or platform.machine()}\n")
    print("| device | rows | rows/s | p50 ms | p99 ms |\n|---|---:|---:|---:|---:|")
    graph = options.folder / manifest.graphs[0].file
    reference = open_runtime(graph, "cpu")
    for device in options.devices:
        for line in measure_device(
            device, graph, reference, signature, num_steps, options.batch_sizes, options.seconds, options.device_id
        ):
            print(line, flush=True)


def measure_device(
    device: Device,
    graph: Path,
    reference: Runtime,
    signature: Signature,
    num_steps: int,
    batch_sizes: Sequence[int],
    duration_s: float,
    device_id: int,
) -> list[str]:
    """The rows of the table for one device; one row with the reason where it cannot be used."""
    try:
        runtime = open_runtime(graph, device, gpu=GpuOptions(device_id))
    except StartError as exc:
        return [f"| {device} | | not measured: {exc.message} | | |"]
    if runtime.provider != CPU and (found := find_difference(runtime, reference, signature, num_steps)):
        return [f"| {device} | | not measured, its outputs are wrong: {found} | | |"]
    table = []
    for rows in batch_sizes:
        try:
            timing = time_runs(runtime, signature, rows, num_steps, duration_s)
        except ServiceError as exc:
            table.append(f"| {device} | {rows} | {exc.message} | | |")
            break
        table.append(f"| {device} | {rows} | {timing.rows_per_s:.0f} | {timing.p50_ms:.2f} | {timing.p99_ms:.2f} |")
    return table


def time_runs(
    runtime: Runtime,
    signature: Signature,
    rows: int,
    num_steps: int,
    duration_s: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Run one batch repeatedly for `duration_s`, `MIN_RUNS` to `MAX_RUNS` times."""
    batch = synthetic(signature, [num_steps] * rows)
    runtime.run(batch)  # the first one allocates memory, and on TensorRT may build the engine
    times: list[float] = []
    while len(times) < MIN_RUNS or (sum(times) < duration_s and len(times) < MAX_RUNS):
        started = clock()
        runtime.run(batch)
        times.append(clock() - started)
    p50_s, p99_s = (float(value) for value in np.percentile(times, (50, 99)))
    return Timing(rows * len(times) / sum(times), p50_s * 1000, p99_s * 1000)


def max_steps(manifest: Manifest) -> int:
    """The steps of the longest row that the model accepts, by its manifest."""
    return built_in_tasks()[manifest.task].longest_row(manifest) or USUAL_STEPS


def signature_of(manifest: Manifest) -> Signature:
    """The graph's inputs and outputs, by the manifest."""
    inputs, outputs = (
        tuple(TensorSpec(tensor.name, tensor.datatype, tuple(tensor.shape)) for tensor in tensors)
        for tensors in (manifest.inputs, manifest.outputs)
    )
    return Signature(inputs, outputs, tuple((pair.input, pair.output) for pair in manifest.state))


if __name__ == "__main__":
    main()
