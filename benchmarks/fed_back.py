"""What the 80 % band holds beyond a model's own horizon, run by run, with and without the widening of fed-back forecasts.

    SLUICE_DATA=... python -m benchmarks.fed_back

Runs the bundled graphs themselves on series whose last values are kept aside: M4's hourly ones, the hourly sets of
`benchmarks.transfer` from twelve origins each, and M3's. Runs behind the first read what the ones before them forecast.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.servers import ROOT
from benchmarks.transfer import series_of
from service.runtime.base import Runtime
from service.runtime.onnx_runtime import open_runtime
from service.tasks.widening import join_runs
from training.evaluation.competitions import M3_PARTS, M4_HOURLY, read_part
from training.evaluation.naive import Floats

NUM_RUNS = 4
NUM_ORIGINS = 12
ROWS = 64
"""In a run of the graph."""


def main() -> None:
    """Print the table."""
    folder = Path(os.environ["SLUICE_DATA"]) if os.environ.get("SLUICE_DATA") else None
    print("| set | model | series | " + " | ".join(f"run {number + 1}" for number in range(NUM_RUNS)) + " |")
    print("|---|---|---:|" + "---:|" * NUM_RUNS)
    for name, model, series in cases(folder):
        count, cells = coverage(model, series)
        print(f"| {name} | {model} | {count:,} | {' | '.join(cells)} |", flush=True)


def cases(folder: Path | None) -> Iterator[tuple[str, str, Sequence[Floats]]]:
    """Names of sets, the models that forecast them, and whole series."""
    histories, truth = read_part(M4_HOURLY, folder)
    yield "m4-hourly", "forecast-hourly", [np.concatenate(pair) for pair in zip(histories, truth, strict=True)]
    for name in ("etth1", "bike-sharing", "air-valencia", "pjm-zones"):
        assert folder is not None
        columns = [np.asarray(values, np.float64) for values in series_of(name, folder).values()]
        ends = [np.linspace(0.75 * len(values), len(values), NUM_ORIGINS).astype(int) for values in columns]
        yield name, "forecast-hourly", [values[:end] for values, each in zip(columns, ends, strict=True) for end in each]
    for part in M3_PARTS:
        if part.name != "other":
            histories, truth = read_part(part, folder)
            series = [np.concatenate(pair) for pair in zip(histories, truth, strict=True)]
            yield f"m3 {part.name}", f"forecast-{part.name}", series


def coverage(model: str, series: Sequence[Floats]) -> tuple[int, list[str]]:
    """How many series are long enough, and of each run the share inside in percent, widened (and as the graph has it)."""
    folder = ROOT / "models" / model / "1"
    spec = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["forecast"]
    horizon, context, shortest = spec["horizon"], spec["context_length"], spec["min_length"]
    num_runs = NUM_RUNS
    while num_runs > 1 and sum(len(values) >= shortest + num_runs * horizon for values in series) < len(series) / 3:
        num_runs -= 1
    long_enough = [values for values in series if len(values) >= shortest + num_runs * horizon]
    truth = np.stack([values[-num_runs * horizon :] for values in long_enough])
    fed = [values[: -num_runs * horizon][-context:] for values in long_enough]
    never_negative = [bool((values >= 0).all()) for values in fed]
    levels = spec["quantiles"]
    median = levels.index(0.5)
    runtime = open_runtime(folder / "model.onnx")
    runs = []
    for _ in range(num_runs):
        quantiles = np.concatenate([_run(runtime, fed[first : first + ROWS]) for first in range(0, len(fed), ROWS)])
        runs.append(quantiles)
        fed = [np.concatenate([values, row[median]])[-context:] for values, row in zip(fed, quantiles, strict=True)]
    plain = np.concatenate(runs, axis=2)
    rows = [[np.concatenate([run[row, [median]], run[row]]) for run in runs] for row in range(len(truth))]
    are_correlated = spec.get("recursive_errors") == "correlated"
    joined = [
        join_runs(row, levels, is_never_negative=each, are_correlated=are_correlated)[1:]
        for row, each in zip(rows, never_negative, strict=True)
    ]
    widened = np.stack(joined)
    shares = []
    for bands in (widened, plain):
        inside = (truth >= bands[:, 0]) & (truth <= bands[:, -1])
        shares.append(100 * inside.reshape(len(truth), num_runs, horizon).mean(axis=(0, 2)))
    cells = [f"{with_it:.0f} ({without:.0f})" for with_it, without in zip(*shares, strict=True)]
    return len(truth), [*cells, *["" for _ in range(NUM_RUNS - num_runs)]]


def _run(runtime: Runtime, histories: Sequence[Floats]) -> Floats:
    """Quantiles (rows, levels, horizon)."""
    lengths = np.array([len(values) for values in histories])
    rows = np.zeros((len(histories), lengths.max(), 1), np.float32)
    for row, values in zip(rows, histories, strict=True):
        row[: len(values), 0] = values
    found: Floats = runtime.run({"history": rows, "lengths": lengths})["quantiles"][:, :, 0].transpose(0, 2, 1)
    return found


if __name__ == "__main__":
    main()
