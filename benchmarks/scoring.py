"""Scoring a file (`sluice score`) beside the bare graph on the same series, in one run, and the memory that it takes.

    python -m benchmarks.scoring
    python -m benchmarks.scoring --series 1000000 --rounds 1 --format parquet

Series of one length are written to a file in a temporary folder, and scored by `score_file` in a process of its own. The bare
graph is onnxruntime with the same number of threads, each on batches of the size that tuning chose, which are made before the
clock starts: no file is read, nothing is checked or written. Both take turns. Wall-clock ratios count where nothing else runs;
the ratio of processor time holds on a busy machine too. Peak memory is the highest resident set of the scoring process; what it
has when the model is loaded is beside it. Linux only.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from benchmarks.memory import memory_of
from benchmarks.servers import ROOT
from service.models.folder import ModelOptions
from service.models.model import Model
from service.process.machine import num_cores
from service.runtime.tensors import Tensors
from service.scoring.run import find_model, score_file
from service.tasks.tables import TableOptions

START_US, HOUR_US = 1_704_067_200_000_000, 3_600_000_000
SERIES_AT_ONCE = 2000
BARE_SERIES = 16_384
FORMATS = ("parquet", "csv", "ndjson")
HOURLY = TableOptions(parameters={"frequency": "H"})


@dataclass(frozen=True)
class Cost:
    """What one pass over the series took."""

    num_series: int
    wall_s: float
    cpu_s: float

    @property
    def per_s(self) -> float:
        return self.num_series / self.wall_s

    @property
    def cpu_us(self) -> float:
        """Processor time of one series."""
        return self.cpu_s / self.num_series * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="forecast-hourly", help="its name, or its folder (default: %(default)s)")
    parser.add_argument("--series", type=int, default=50_000, help="how many (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of which medians are shown (default: %(default)s)")
    parser.add_argument("--format", choices=FORMATS, default="parquet", help="of input and output (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where files are written (default: a temporary one)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        print(measure(options.model, Path(name), options.series, options.rounds, options.format))


def measure(model_name: str, folder: Path, num_series: int, num_rounds: int, form: str) -> str:
    """Both in turns, and a table."""
    model = load(model_name)
    length = model.manifest.model_dump()["forecast"]["context_length"]
    source, target = folder / f"input.{form}", folder / f"output.{form}"
    write_series(source, num_series, length)
    run_bare = bare_graph(model, length)
    run_bare()
    pairs: list[tuple[Cost, Cost]] = []
    peaks: list[tuple[float, float]] = []
    for _ in range(num_rounds):
        bare = run_bare()
        cost, loaded_mb, peak_mb = run_apart(model_name, source, target)
        pairs.append((bare, cost))
        peaks.append((loaded_mb, peak_mb))
    num_threads = model.options.num_workers
    bare_per_s = statistics.median(bare.per_s for bare, _ in pairs)
    score_per_s = statistics.median(cost.per_s for _, cost in pairs)
    bare_us = statistics.median(bare.cpu_us for bare, _ in pairs)
    score_us = statistics.median(cost.cpu_us for _, cost in pairs)
    lines = [
        f"{model.name}: {num_series} series of {length} values as {form}, {source.stat().st_size / 1e6:.0f} MB; "
        f"{num_threads} threads, {num_rounds} rounds, medians",
        "",
        "| | series/s | processor time of a series, µs |",
        "|---|---:|---:|",
        f"| bare graph | {bare_per_s:.0f} | {bare_us:.1f} |",
        f"| sluice score | {score_per_s:.0f} | {score_us:.1f} |",
        f"| ratio | {statistics.median(cost.per_s / bare.per_s for bare, cost in pairs):.2f} "
        f"| {statistics.median(bare.cpu_us / cost.cpu_us for bare, cost in pairs):.2f} |",
        "",
        f"memory: {peaks[-1][0]:.0f} MB with the model loaded, {max(peak for _, peak in peaks):.0f} MB at the peak",
    ]
    return "\n".join(lines)


def load(name: str) -> Model:
    """The model, on all cores."""
    return find_model(name, [ROOT / "models"], ModelOptions("cpu", num_cores(), measure_s=0.1))


def write_series(path: Path, num: int, length: int) -> None:
    """Hourly series with a daily wave and noise, in the long form."""
    random = np.random.default_rng(0)
    schema = pa.schema([("unique_id", pa.string()), ("ds", pa.timestamp("us")), ("y", pa.float64())])
    writer = None if path.suffix == ".ndjson" else _open_table(path, schema)
    with path.open("ab") as text:
        for start in range(0, num, SERIES_AT_ONCE):
            count = min(SERIES_AT_ONCE, num - start)
            hours = np.tile(np.arange(length), count)
            values = (300 + 80 * np.sin(2 * np.pi * hours / 24) + 10 * random.normal(size=len(hours))).round(2)
            names = np.repeat([f"series-{number:07d}" for number in range(start, start + count)], length)
            if writer is not None:
                times = pa.array(START_US + hours * HOUR_US).cast(pa.timestamp("us"))
                writer.write_table(pa.table({"unique_id": pa.array(names), "ds": times, "y": values}, schema=schema))
                continue
            times = np.datetime_as_string((START_US + hours * HOUR_US).view("M8[us]"), unit="s")
            for row in zip(names.tolist(), times.tolist(), values.tolist(), strict=True):
                text.write(json.dumps(dict(zip(schema.names, row, strict=True))).encode() + b"\n")
    if writer is not None:
        writer.close()


def _open_table(path: Path, schema: pa.Schema) -> pq.ParquetWriter | pa.csv.CSVWriter:
    return pq.ParquetWriter(path, schema) if path.suffix == ".parquet" else pa.csv.CSVWriter(path, schema)


def bare_graph(model: Model, length: int) -> Callable[[], Cost]:
    """A function that runs the graph once over BARE_SERIES rows on all threads."""
    size = min(model.limits.max_batch_size, max(1, model.limits.max_padded_steps // length))
    random = np.random.default_rng(0)
    batches: list[Tensors] = []
    for _ in range(BARE_SERIES // size):
        tensors: Tensors = {
            "history": (300 + 80 * random.normal(size=(size, length, 1))).astype(np.float32),
            "lengths": np.full(size, length, np.int64),
        }
        tensors |= {spec.name: np.zeros((size, *map(int, spec.shape[1:])), np.float32) for spec in model.signature.state_specs}
        batches.append(tensors)

    def run() -> Cost:
        started, cpu = time.perf_counter(), time.process_time()
        with ThreadPoolExecutor(model.options.num_workers) as pool:
            for _ in pool.map(model.runtime.run, batches):
                pass
        return Cost(len(batches) * size, time.perf_counter() - started, time.process_time() - cpu)

    return run


def run_apart(model_name: str, source: Path, target: Path) -> tuple[Cost, float, float]:
    """Score in a process of its own: the cost, and its memory in MB, with the model loaded and at its highest."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_score, args=(sender, model_name, source, target))
    process.start()
    sender.close()
    try:
        num, wall_s, cpu_s, loaded_mb, peak_mb = receiver.recv()
    finally:
        process.join()
        receiver.close()
    return Cost(num, wall_s, cpu_s), loaded_mb, peak_mb


def _score(sender: Connection, model_name: str, source: Path, target: Path) -> None:
    model = load(model_name)
    with tempfile.TemporaryDirectory() as name:  # what is imported at the first call, and takes memory once, is there before
        warm = Path(name) / source.name
        write_series(warm, 2, model.manifest.model_dump()["forecast"]["context_length"])
        score_file(model, warm, warm.with_name(target.name), HOURLY)
    loaded = memory_of([multiprocessing.current_process().pid or 0]).resident
    started, cpu = time.perf_counter(), time.process_time()
    summary = score_file(model, source, target, HOURLY, overwrite=True)
    wall_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    assert summary.num_rejected == 0, "every series is good"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    sender.send((summary.num_records, wall_s, cpu_s, loaded / 1e6, peak / 1e6))
    sender.close()


if __name__ == "__main__":
    main()
