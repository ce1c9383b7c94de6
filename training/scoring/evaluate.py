"""Scores of the graph itself, run as the service will run it, and of any forecasts or probabilities beside it.

Fits nothing. Forecast measures are utilsforecast's, classification measures torchmetrics'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import polars as pl
import torch
from torchmetrics.functional import classification
from utilsforecast import losses

from training.data.series import Array, Float32, Int64, Series, Windows
from training.data.texts import collate
from training.recipe import Evaluate, Forecast

Scores = dict[str, float]


class Graph:
    """A serialised ONNX model, ready to run on the CPU."""

    def __init__(self, payload: bytes, *, num_threads: int = 0) -> None:
        """`num_threads` 0: as many as there are cores."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = num_threads
        self._session = onnxruntime.InferenceSession(payload, options, providers=["CPUExecutionProvider"])
        self._names = [output.name for output in self._session.get_outputs()]
        self._inputs = {entry.name: entry.shape for entry in self._session.get_inputs()}

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Outputs by name; recurrent state, the inputs that are not given, starts from zeros."""
        num_rows = len(next(iter(inputs.values())))
        states = {name: np.zeros((num_rows, shape[1]), np.float32) for name, shape in self._inputs.items() if name not in inputs}
        return dict(zip(self._names, self._session.run(None, {**inputs, **states}), strict=True))

    def forecast(self, windows: Windows, batch_size: int) -> dict[str, Float32]:
        """`forecast` (N, horizon, targets) and, with quantiles, `quantiles` (N, horizon, targets, Q) of all windows."""
        parts = []
        for start in range(0, len(windows), batch_size):
            part = windows.rows(slice(start, start + batch_size))
            parts.append(self.run({"history": part.history, "lengths": part.lengths}))
        return {name: np.concatenate([part[name] for part in parts]) for name in ("forecast", "quantiles") if name in parts[0]}

    def classify(self, rows: Sequence[Int64], batch_size: int) -> Float32:
        """Probabilities (N, labels) of token rows, batched by length, in the order given."""
        order = np.argsort([len(row) for row in rows], kind="stable")
        probabilities: Float32 | None = None
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = collate([rows[i] for i in chosen], np.zeros(len(chosen), np.int64))
            answer = self.run({"tokens": batch.tokens, "lengths": batch.lengths})["probabilities"]
            if probabilities is None:
                probabilities = np.empty((len(rows), answer.shape[1]), np.float32)
            probabilities[chosen] = answer
        assert probabilities is not None, "no rows"
        return probabilities


def score_forecast(
    series: Series,
    forecast: Forecast,
    evaluate: Evaluate,
    truth: Windows,
    mean: npt.NDArray[Any],
    quantiles: npt.NDArray[Any] | None = None,
) -> Scores:
    """Measures of forecasts of the test windows, each the mean over series and targets.

    smape in percent (0 to 200) and mase as the M4 competition takes them; mae and rmse in the series' own units; with the
    official Naive2 totals also owa; pinball is the mean quantile loss, coverage the share of values between the
    outermost quantiles. Measures that are undefined (mase of constant series) are left out.
    """
    num_windows, horizon, num_targets = truth.future.shape
    per_series = num_windows // len(series.ids)
    names = np.array([f"{index}/{target}" for index in range(len(series.ids)) for target in range(num_targets)])
    ids = np.repeat(names.reshape(len(series.ids), 1, 1, num_targets), per_series, axis=1)
    ids = np.broadcast_to(ids, (len(series.ids), per_series, horizon, num_targets)).reshape(-1)
    # The futures come from float32: what is scored are the values of the files.
    columns: dict[str, Any] = {"unique_id": ids, "y": _futures(series, truth, evaluate.stride or forecast.horizon), "model": mean}
    levels = list(forecast.quantiles)
    if quantiles is not None:
        columns |= {f"q{level}": quantiles[..., i] for i, level in enumerate(levels)}
    frame = pl.DataFrame({name: np.asarray(v).reshape(-1) for name, v in columns.items()})
    scores = {
        "smape": 200 * _mean(losses.smape(frame, ["model"])),
        "mae": _mean(losses.mae(frame, ["model"])),
        "rmse": _mean(losses.rmse(frame, ["model"])),
    }
    insample = _insample(series, names, num_targets)
    scores["mase"] = _mean(losses.mase(frame, ["model"], forecast.season_length, insample))
    if evaluate.naive2_smape and evaluate.naive2_mase:
        scores["owa"] = (scores["smape"] / evaluate.naive2_smape + scores["mase"] / evaluate.naive2_mase) / 2
    if quantiles is not None:
        models = {"model": [f"q{level}" for level in levels]}
        scores["pinball"] = _mean(losses.mqloss(frame, models, np.array(levels)))
        inside = (frame["y"] >= frame[f"q{levels[0]}"]) & (frame["y"] <= frame[f"q{levels[-1]}"])
        scores[f"coverage_{round(100 * (levels[-1] - levels[0]))}"] = float(inside.to_numpy().mean())
    return {name: float(score) for name, score in scores.items() if np.isfinite(score)}


def score_classify(labels: Int64, probabilities: npt.NDArray[Any]) -> Scores:
    """accuracy, f1 (mean over labels) and auroc (mean over labels), all 0 to 1."""
    num_labels = probabilities.shape[1]
    predicted, truth = torch.from_numpy(np.asarray(probabilities, np.float32)), torch.from_numpy(labels)
    scores = {
        "accuracy": classification.multiclass_accuracy(predicted, truth, num_labels, average="micro"),
        "f1": classification.multiclass_f1_score(predicted, truth, num_labels, average="macro"),
    }
    if len(torch.unique(truth)) == num_labels:  # else some label's curve is undefined
        scores["auroc"] = classification.multiclass_auroc(predicted, truth, num_labels, average="macro")
    return {name: float(score) for name, score in scores.items()}


def confusion_counts(labels: Int64, probabilities: npt.NDArray[Any]) -> Int64:
    """How many rows of each label (row) were taken for each label (column)."""
    num_labels = probabilities.shape[1]
    counts = np.bincount(labels * num_labels + probabilities.argmax(1), minlength=num_labels**2)
    return counts.reshape(num_labels, num_labels).astype(np.int64)


def score_numbers(truth: npt.NDArray[Any], answers: npt.NDArray[Any], targets: Sequence[str]) -> Scores:
    """mae, rmse and r2 of (N, targets), each the mean over the targets, and mae of each where there are several."""
    error = answers.astype(np.float64) - truth
    spread = np.maximum(truth.astype(np.float64).var(0), np.finfo(np.float64).tiny)
    scores = {
        "mae": float(np.abs(error).mean()),
        "rmse": float(np.sqrt((error**2).mean(0)).mean()),
        "r2": float((1 - (error**2).mean(0) / spread).mean()),
    }
    if len(targets) > 1:
        scores |= {f"mae_{target}": float(found) for target, found in zip(targets, np.abs(error).mean(0), strict=True)}
    return scores


def _futures(series: Series, truth: Windows, stride: int) -> Array:
    """The windows' futures in float64, (N, horizon, targets)."""
    horizon = truth.future.shape[1]
    futures = [
        values[origin : origin + horizon][:, series.target_indices]
        for index, values in enumerate(series.values)
        for origin in range(series.test_start(index), len(values) - horizon + 1, stride)
    ]
    return np.stack(futures)


def _insample(series: Series, names: npt.NDArray[Any], num_targets: int) -> pl.DataFrame:
    """What came before the test part, by the same ids as the forecasts: mase divides by its seasonal changes."""
    parts = [
        (names[index * num_targets + column], values[: series.test_start(index), feature])
        for index, values in enumerate(series.values)
        for column, feature in enumerate(series.target_indices)
    ]
    return pl.DataFrame(
        {
            "unique_id": np.concatenate([np.full(len(values), name) for name, values in parts]),
            "y": np.concatenate([values for _, values in parts]),
        }
    )


def _mean(scores: pl.DataFrame) -> float:
    values = scores["model"].to_numpy()
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else float("nan")
