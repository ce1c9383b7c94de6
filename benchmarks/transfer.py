"""Scores of `forecast-hourly` on hourly series, beside naive forecasts and a linear regression on the request's own history.

    SLUICE_DATA=... python -m benchmarks.transfer [--graph FILE] [--context 1344] [SET ...]

Runs a graph itself, the bundled one unless `--graph` names another, on whole sets: `etth1` (the standard test part) and
`bike-sharing` (the last 30 %) are never trained on by the bundled model; of `air-valencia`, `electricity-victoria` and
`pjm-zones` (the last 30 %) it learned. 32 origins of each series. Mean absolute scaled errors: of each forecast, divided by the
mean absolute change over a day in the eight weeks before; and the share of true values inside the 80 % interval.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.servers import ROOT
from service.runtime.onnx_runtime import open_runtime
from training.data.series import interpolate, numbers
from training.data.sources import read
from training.recipe import Source

Floats = npt.NDArray[np.float64]
CONTEXT, HORIZON, DAY, WEEK = 1344, 48, 24, 168
NUM_ORIGINS = 32
PENALTY = 30.0
"""Of the ridge regression, on standardised values."""
UNSEEN = ("etth1", "bike-sharing")
SETS = (*UNSEEN, "air-valencia", "electricity-victoria", "pjm-zones")
BANDS = ((70.0, 90.0), (74.0, 86.0))


def series_of(name: str, folder: Path) -> Mapping[str, Floats]:
    """The hourly series of a set by their names."""
    paths = {"etth1": "ett/ETTh1.csv", "bike-sharing": "bike-sharing/hourly.csv"}
    table = read(Source(path=paths.get(name, f"hourly/{name}.csv")), folder).table()
    if name == "pjm-zones":
        return {str(part["unique_id"][0]): _filled(part, "y") for part in table.partition_by("unique_id", maintain_order=True)}
    if name == "electricity-victoria":
        return {column: _filled(table, column).reshape(-1, 2).mean(1) for column in ("Demand", "Temperature")}
    if name == "bike-sharing":
        return {column: _filled(table, column) for column in ("users", "temp", "hum", "windspeed")}
    return {column: _filled(table, column) for column in table.columns[1:]}


def _filled(table: object, column: str) -> Floats:
    values, _ = interpolate(numbers(table.select(column), column))  # type: ignore[attr-defined]  # polars, by its own types
    return values[:, 0]


def origins_of(name: str, length: int) -> npt.NDArray[np.int64]:
    """Where the forecasts of a series begin."""
    first, last = (11_520, 14_400) if name == "etth1" else (int(0.7 * length), length)
    return np.linspace(first, last - HORIZON, NUM_ORIGINS).astype(np.int64)


def ridge(history: Floats) -> Floats:
    """Ridge regression from a week to the next two days, on all such pairs of the history itself."""
    level, spread = history.mean(), history.std() + 1e-9
    scaled = (history - level) / spread
    past = np.lib.stride_tricks.sliding_window_view(scaled, WEEK)[: len(scaled) - WEEK - HORIZON + 1]
    future = np.lib.stride_tricks.sliding_window_view(scaled, HORIZON)[WEEK : WEEK + len(past)]
    weights = np.linalg.solve(past.T @ past + PENALTY * np.eye(WEEK), past.T @ future)
    return np.asarray(scaled[-WEEK:] @ weights * spread + level)


def main() -> None:
    """Print one row per series as a Markdown table, and the summary of each set and of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="SET", help=f"of {', '.join(SETS)}; left out: {', '.join(UNSEEN)}")
    parser.add_argument("--graph", type=Path, default=ROOT / "models" / "forecast-hourly" / "1" / "model.onnx")
    parser.add_argument("--context", type=int, default=CONTEXT, help="hours of each history that the graph is given")
    args = parser.parse_args()
    runtime = open_runtime(args.graph)
    print("| set | series | forecast-hourly | last day | last week | ridge | inside the 80 % interval |")
    print("|---|---|---:|---:|---:|---:|---:|")
    rows = []
    for name in args.sets or UNSEEN:
        for column, values in series_of(name, Path(os.environ["SLUICE_DATA"])).items():
            origins = origins_of(name, len(values))
            history = np.stack([values[origin - CONTEXT : origin] for origin in origins])
            true = np.stack([values[origin : origin + HORIZON] for origin in origins])
            given = history[:, -args.context :, None].astype(np.float32)
            outputs = runtime.run({"history": given, "lengths": np.full(len(origins), args.context, np.int64)})
            point, quantiles = (array[:, :, 0] for array in outputs.values())
            scale = np.abs(history[:, DAY:] - history[:, :-DAY]).mean(1).clip(min=1e-3 * np.abs(history).mean())
            forecasts = (
                point,
                np.tile(history[:, -DAY:], HORIZON // DAY),
                history[:, -WEEK : HORIZON - WEEK],
                np.stack([ridge(row) for row in history]),
            )
            inside = 100 * np.mean((true >= quantiles[..., 0]) & (true <= quantiles[..., -1]))
            rows.append([*((np.abs(found - true).mean(1) / scale).mean() for found in forecasts), inside])
            print(f"| {name} | {column} | " + " | ".join(f"{score:.3f}" for score in rows[-1][:-1]) + f" | {inside:.0f} % |")
    table = np.array(rows)
    means = " | ".join(f"{score:.3f}" for score in table[:, :-1].mean(0))
    print(f"| all | {len(table)} series | {means} | {table[:, -1].mean():.1f} % |\n")
    print(
        f"better than the last day on {100 * (table[:, 0] < table[:, 1]).mean():.0f} % of the series, than the ridge on ", end=""
    )
    print(f"{100 * (table[:, 0] < table[:, 3]).mean():.0f} %; inside between ", end="")
    shares = (
        f"{low:.0f} and {high:.0f} % on {100 * ((table[:, -1] >= low) & (table[:, -1] <= high)).mean():.0f} %"
        for low, high in BANDS
    )
    print(", ".join(shares))


if __name__ == "__main__":
    main()
