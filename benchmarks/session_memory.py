"""What a graph that each process opens for itself takes, by how its weights are given to onnxruntime: memory and time of a run.

    python -m benchmarks.session_memory
    python -m benchmarks.session_memory --units 128 --layers 1 --rows 64

Processes that are forked from one another open the same graph, run it, and stay; the table shows the memory that they take
together beyond that of as many that open nothing, in shares of the weights of one, and the time of a run beside the first row's.
`copies` is how a version is opened that comes while the server runs. Linux only.

* copies: the graph as bytes, as read
* mapped: weights in a file of their own that every process maps; onnxruntime packs them anew for its kernels
* mapped, unpacked: the same, without packing
* packed once: weights as the kernels read them, written by one process, mapped by all
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from benchmarks.memory import memory_of
from service.process.memory import configure_malloc, trim_heap

NUM_PROCESSES, NUM_RUNS, NUM_STEPS = 3, 7, 16
UNPACKED = {"session.disable_prepacking": "1"}

Source = bytes | str
"""A graph as bytes, or the path of its file."""


def write_lstm(units: int, layers: int) -> onnx.ModelProto:
    """Layers of LSTM with drawn weights: a graph's memory and speed do not depend on them."""
    random = np.random.default_rng(1)
    nodes, weights = [], []
    before = "x"
    for layer in range(layers):
        names = [f"{name}{layer}" for name in "WR"]
        for name in names:
            weights.append(numpy_helper.from_array((random.normal(size=(1, 4 * units, units)) * 0.05).astype(np.float32), name))
        nodes.append(helper.make_node("LSTM", [before, *names], [f"all{layer}"], hidden_size=units))
        nodes.append(helper.make_node("Squeeze", [f"all{layer}", "one"], [f"y{layer}"]))
        before = f"y{layer}"
    weights.append(numpy_helper.from_array(np.array([1], np.int64), "one"))
    shape: list[str | int | None] = ["time", "batch", units]
    graph = helper.make_graph(
        nodes,
        "lstm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(before, TensorProto.FLOAT, shape)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def options(entries: Mapping[str, str] | None = None) -> ort.SessionOptions:
    """As the server has them, and these entries."""
    made = ort.SessionOptions()
    made.intra_op_num_threads = made.inter_op_num_threads = 1
    made.enable_cpu_mem_arena = made.enable_mem_pattern = False
    made.log_severity_level = 4
    for name, value in (entries or {}).items():
        made.add_session_config_entry(name, value)
    return made


def open_session(source: Source, entries: Mapping[str, str] | None = None) -> ort.InferenceSession:
    return ort.InferenceSession(source, options(entries), providers=["CPUExecutionProvider"])


def write_packed(source: Source, folder: Path) -> str:
    """The graph with its weights as the kernels read them, in a file beside it."""
    made = options(
        {
            "session.optimized_model_external_initializers_file_name": "packed.bin",
            "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
            "session.save_external_prepacked_constant_initializers": "1",
        }
    )
    made.optimized_model_filepath = str(folder / "packed.onnx")
    ort.InferenceSession(source, made, providers=["CPUExecutionProvider"])
    return str(folder / "packed.onnx")


def hold(open_it: Callable[[], ort.InferenceSession] | None, tensors: Mapping[str, Any], report: Connection) -> None:
    """Open, run, tell the time of a run, return unused memory as an idle worker does, and stay until told to end."""
    configure_malloc()
    times = [0.0]
    if open_it is not None:
        session = open_it()
        times = []
        for _ in range(NUM_RUNS):
            started = time.process_time()
            session.run(None, dict(tensors))
            times.append(time.process_time() - started)
    trim_heap()
    report.send(statistics.median(times))
    report.recv()


def measure(open_it: Callable[[], ort.InferenceSession] | None, tensors: Mapping[str, Any]) -> tuple[int, float]:
    """Anonymous bytes of the processes together, and the seconds of a run in the middle of them."""
    context = multiprocessing.get_context("fork")
    pairs = [context.Pipe() for _ in range(NUM_PROCESSES)]
    processes = [context.Process(target=hold, args=(open_it, tensors, theirs)) for _, theirs in pairs]
    try:
        times = []
        for process, (ours, _) in zip(processes, pairs, strict=True):
            process.start()
            times.append(ours.recv())
        pids = [process.pid for process in processes if process.pid is not None]
        return memory_of(pids).anonymous, statistics.median(times)
    finally:
        for process, (ours, _) in zip(processes, pairs, strict=True):
            if process.is_alive():
                ours.send(None)
            process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=512)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rows", type=int, default=8)
    chosen = parser.parse_args()
    model = write_lstm(chosen.units, chosen.layers)
    weight_bytes = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    tensors = {"x": np.ones((NUM_STEPS, chosen.rows, chosen.units), np.float32)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole, apart = folder / "whole.onnx", folder / "apart.onnx"
        onnx.save(model, whole)
        onnx.save(model, apart, save_as_external_data=True, location="apart.bin", size_threshold=1024)
        packed = write_packed(str(whole), folder)
        ways: dict[str, Callable[[], ort.InferenceSession]] = {
            "copies": lambda: open_session(whole.read_bytes()),
            "mapped": lambda: open_session(str(apart)),
            "mapped, unpacked": lambda: open_session(str(apart), UNPACKED),
            "packed once": lambda: open_session(packed),
        }
        nothing, _ = measure(None, tensors)
        found = {name: measure(way, tensors) for name, way in ways.items()}
    print(f"{NUM_PROCESSES} processes, weights of {weight_bytes / 1e6:.1f} MB, runs of {chosen.rows} rows x {NUM_STEPS} steps")
    print("| weights | memory, of the weights of one | ms of a run | beside copies |\n|---|---:|---:|---:|")
    for name, (taken, run_s) in found.items():
        shares = (taken - nothing) / weight_bytes
        print(f"| {name} | {shares:.2f} | {1000 * run_s:.2f} | {run_s / found['copies'][1]:.2f} |")


if __name__ == "__main__":
    main()
