"""Scores of `forecast-hourly` on series it was not trained on: ETTh1's seven columns, 48 hours ahead, beside seasonal naive
forecasts.

    SLUICE_DATA=... python -m benchmarks.transfer

Runs the bundled graph itself, at every seventh hour of the standard test part (rows 11,520 to 14,400). Mean absolute errors
in the columns' own units, and the share of true values inside the 80 % interval.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from benchmarks.servers import ROOT
from service.runtime.onnx_runtime import open_runtime
from training.data.sources import read
from training.recipe import Source

CONTEXT, HORIZON, DAY, WEEK = 336, 48, 24, 168
FIRST, LAST, STRIDE = 11_520, 14_400, 7


def main() -> None:
    """Print one row per column as a Markdown table."""
    runtime = open_runtime(ROOT / "models" / "forecast-hourly" / "1" / "model.onnx")
    table = read(Source(path="ett/ETTh1.csv"), Path(os.environ["SLUICE_DATA"])).table()
    print("| column | forecast-hourly | last day | last week | inside the 80 % interval |\n|---|---:|---:|---:|---:|")
    for column in table.columns[1:]:
        values = table[column].to_numpy().astype(np.float32)
        starts = np.arange(FIRST, LAST - HORIZON, STRIDE)
        history = np.stack([values[start - CONTEXT : start] for start in starts])
        true = np.stack([values[start : start + HORIZON] for start in starts])
        outputs = runtime.run({"history": history[..., None], "lengths": np.full(len(starts), CONTEXT, np.int64)})
        point, quantiles = (array[:, :, 0] for array in outputs.values())
        inside = np.mean((true >= quantiles[..., 0]) & (true <= quantiles[..., -1]))
        forecasts = (point, np.tile(history[:, -DAY:], HORIZON // DAY), history[:, -WEEK : HORIZON - WEEK])
        errors = " | ".join(f"{np.abs(forecast - true).mean():.3f}" for forecast in forecasts)
        print(f"| {column} | {errors} | {100 * inside:.0f} % |")


if __name__ == "__main__":
    main()
