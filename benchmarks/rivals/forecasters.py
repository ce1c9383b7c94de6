"""Forecasters of other libraries, trained on one file of series. Runs in an environment of its own and imports nothing of ours.

    python benchmarks/rivals/forecasters.py NAME TRAIN.csv OUT.npz --seconds 400 --threads 1

TRAIN.csv holds a series per row, its id first. OUT.npz gets `quantiles`, (series, horizon, levels).
"""

from __future__ import annotations

import argparse
import csv
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

HORIZON, CONTEXT, SEASON = 48, 336, 24
LEVELS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
SEED = 1


def neuralforecast_lstm(histories: list[np.ndarray], seconds: float) -> np.ndarray:
    """neuralforecast's LSTM with its own sizes, a loss of quantiles, and every series scaled robustly."""
    import pandas as pd
    from neuralforecast import NeuralForecast
    from neuralforecast.losses.pytorch import MQLoss
    from neuralforecast.models import LSTM

    frames = [
        pd.DataFrame({"unique_id": f"{row:04}", "ds": np.arange(len(history)), "y": history})
        for row, history in enumerate(histories)
    ]
    model = LSTM(
        h=HORIZON,
        input_size=CONTEXT,
        loss=MQLoss(quantiles=LEVELS),
        scaler_type="robust",
        max_steps=1_000_000,
        random_seed=SEED,
        max_time={"seconds": seconds},
        enable_progress_bar=False,
        logger=False,
        enable_checkpointing=False,
    )
    forecaster = NeuralForecast(models=[model], freq=1)
    forecaster.fit(pd.concat(frames))
    found = forecaster.predict().sort_values(["unique_id", "ds"])
    columns = [name for name in found.columns if name not in ("unique_id", "ds")]
    assert len(columns) == len(LEVELS), columns
    values: np.ndarray = found[columns].to_numpy().reshape(len(histories), HORIZON, len(LEVELS))
    return values


def gluonts_deepar(histories: list[np.ndarray], seconds: float) -> np.ndarray:
    """gluonts' DeepAR (Salinas et al. 2020) with its own sizes; quantiles of 200 sample paths."""
    import pandas as pd
    from gluonts.dataset.common import ListDataset
    from gluonts.torch import DeepAREstimator
    from lightning import seed_everything

    seed_everything(SEED)
    start = pd.Period("2015-07-01 00:00", freq="h")
    data = ListDataset([{"start": start, "target": history} for history in histories], freq="h")
    estimator = DeepAREstimator(
        freq="h",
        prediction_length=HORIZON,
        context_length=CONTEXT,
        trainer_kwargs={
            "max_epochs": 1_000_000,
            "max_time": {"seconds": seconds},
            "enable_progress_bar": False,
            "logger": False,
            "accelerator": "cpu",
        },
    )
    predictor = estimator.train(data)
    forecasts = predictor.predict(data, num_samples=200)
    return np.stack([np.stack([forecast.quantile(level) for level in LEVELS], axis=-1) for forecast in forecasts])


FORECASTERS: dict[str, Callable[[list[np.ndarray], float], np.ndarray]] = {
    "neuralforecast-lstm": neuralforecast_lstm,
    "gluonts-deepar": gluonts_deepar,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=FORECASTERS)
    parser.add_argument("train", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    logging.getLogger("lightning").setLevel(logging.WARNING)
    with options.train.open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    histories = [np.array([float(value) for value in row[1:] if value], dtype=np.float32) for row in rows]
    np.savez_compressed(options.out, quantiles=FORECASTERS[options.name](histories, options.seconds))


if __name__ == "__main__":
    main()
