"""Seven measurements of an electricity transformer (ETTh1), four days ahead: the field's standard for long horizons.

Of values standardised by the training part (twelve months of 30 days), over all windows of the test part (the last four of
twenty), one hour apart; none is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from training.evaluation.benchmark import Benchmark, Evaluation, File, Row
from training.evaluation.client import NotServed, Service
from training.evaluation.naive import Floats

NAME = "ett"
MODEL = "forecast-ett"
"""What a model of the seven measurements has to be called, to be scored."""
FILE = File(
    "ett/ETTh1.csv",
    "f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066",
    origin="https://github.com/zhouhaoyi/ETDataset",
)
TRAINING, TEST, END = 8_640, 11_520, 14_400
CONTEXT, HORIZON, DAY = 336, 96, 24
HISTORY = 480
"""Hours that a request holds; the linear baseline reads `CONTEXT` of them, as its published forms do."""
BATCH_SIZE = 16
"""Instances of a request: 54,000 numbers."""
PUBLISHED: Mapping[str, Mapping[str, float]] = {
    "MSE": {"DLinear": 0.375, "PatchTST/64": 0.370, "SegRNN": 0.368},
    "MAE": {"DLinear": 0.399, "PatchTST/64": 0.400, "SegRNN": 0.395},
}
"""They read 336, 512 and 96 hours (Zeng et al. 2023, table 2; Nie et al. 2023, table 3; the repository of Lin et al. 2023)."""


@dataclass(frozen=True)
class Measurements:
    """The hours of the set, (hours, features): the first are the training part, the last the test part."""

    values: Floats
    num_training: int = TRAINING
    num_test: int = END - TEST

    @cached_property
    def level(self) -> Floats:
        """(features,), the mean of the training part."""
        return np.asarray(self.values[: self.num_training].mean(0))

    @cached_property
    def spread(self) -> Floats:
        """(features,), the standard deviation of the training part."""
        return np.asarray(self.values[: self.num_training].std(0))

    @property
    def origins(self) -> range:
        """The first hours of what is forecast."""
        return range(len(self.values) - self.num_test, len(self.values) - HORIZON + 1)

    @property
    def truth(self) -> Floats:
        """(windows, horizon, features), standardised."""
        return self.standardized(self.windows(HORIZON, self.origins))

    def windows(self, length: int, starts: range) -> Floats:
        """(windows, length, features)"""
        views = np.lib.stride_tricks.sliding_window_view(self.values, length, axis=0)
        return np.asarray(views[starts.start : starts.stop].transpose(0, 2, 1))

    def standardized(self, values: Floats) -> Floats:
        return (values - self.level) / self.spread


def read_measurements(folder: Path | None) -> Measurements:
    """The set. Raises DataError."""
    table = pl.read_csv(FILE.read(folder).payload)
    return Measurements(table.select(table.columns[1:]).to_numpy().astype(float)[:END])


def baselines(measurements: Measurements) -> dict[str, Floats]:
    """Forecasts of the test windows, standardised (windows, horizon, features)."""
    origins = measurements.origins
    scaled = measurements.standardized(measurements.values)
    last = scaled[origins.start - 1 : origins.stop - 1, None, :]
    days = measurements.standardized(measurements.windows(DAY, range(origins.start - DAY, origins.stop - DAY)))
    return {
        "last value": np.repeat(last, HORIZON, axis=1),
        "day before": np.tile(days, (1, HORIZON // DAY, 1)),
        "linear": _linear(scaled, measurements.num_training, origins),
    }


def _linear(scaled: Floats, num_training: int, origins: range) -> Floats:
    """Least squares from two weeks, less their last value, to what follows, less it; one for all features (NLinear).

    Of standardised values (hours, features), whose first `num_training` hours are learned; (windows, horizon, features).
    """
    views = np.lib.stride_tricks.sliding_window_view(scaled, CONTEXT + HORIZON, axis=0)  # (hours, features, CONTEXT + HORIZON)
    num_learned = num_training - CONTEXT - HORIZON + 1
    pairs = views[:num_learned].reshape(-1, CONTEXT + HORIZON)
    pairs = pairs - pairs[:, CONTEXT - 1 : CONTEXT]
    past = np.append(pairs[:, : CONTEXT - 1], np.ones((len(pairs), 1)), axis=1)
    gram = past.T @ past + 1e-6 * len(past) * np.eye(CONTEXT)
    weights = np.linalg.solve(gram, past.T @ pairs[:, CONTEXT:])
    found = views[origins.start - CONTEXT : origins.stop - CONTEXT]
    last = found[..., CONTEXT - 1 : CONTEXT]
    rows = np.append(found[..., : CONTEXT - 1] - last, np.ones((*found.shape[:2], 1)), axis=2)
    return np.asarray((rows @ weights + last).transpose(0, 2, 1))


def _mean_square(errors: Floats) -> float:
    return float((errors**2).mean())


def _mean_magnitude(errors: Floats) -> float:
    return float(np.abs(errors).mean())


def score(service: Service, folder: Path | None) -> Evaluation:
    """`score_measurements` of the set itself. Raises DataError too."""
    return score_measurements(service, read_measurements(folder))


def score_measurements(service: Service, measurements: Measurements) -> Evaluation:
    """Mean square and mean absolute error over all windows, hours and features."""
    truth = measurements.truth
    errors = {name: found - truth for name, found in baselines(measurements).items()}
    histories = measurements.windows(HISTORY, range(measurements.origins.start - HISTORY, measurements.origins.stop - HISTORY))
    note, own = "", None
    try:
        instances = [{"history": history.tolist()} for history in histories]
        answers = service.predict("/predict/forecast", instances, {"horizon": HORIZON}, model=MODEL, batch_size=BATCH_SIZE)
        own = measurements.standardized(np.array([answer["forecast"] for answer in answers], float)) - truth
    except NotServed as exc:
        note = str(exc)
    rows = [
        Row(
            "96 hours",
            measure,
            None if own is None else mean(own),
            {name: mean(error) for name, error in errors.items()},
            PUBLISHED[measure],
            note=note,
        )
        for measure, mean in (("MSE", _mean_square), ("MAE", _mean_magnitude))
    ]
    return Evaluation(NAME, rows, list(service.models), service.rows, service.seconds)


BENCHMARKS = (Benchmark(NAME, "an electricity transformer's seven measurements (ETTh1), 96 hours ahead; MSE and MAE", score),)
