"""Forecasts of the test windows, by the graph and by baselines without any network, and their scores.

The measures are utilsforecast's, the models statsforecast's; all see only what comes before each window.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from statsforecast.models import AutoETS, DynamicOptimizedTheta, SeasonalNaive
from utilsforecast import losses

from training.data.series import Float32, Series, Windows, evaluation_origins, known_futures
from training.recipe import ForecastEvaluation, ForecastSettings
from training.scoring.evaluate import Graph, Scores

# The strong baselines take some 0.04 s (theta) to 3 s (auto_ets) per forecast of a thousand hourly values.
MAX_WINDOWS = 2000

Advance = Callable[[], None]


def forecast_windows(graph: Graph, windows: Windows, batch_size: int) -> dict[str, Float32]:
    """`forecast` (N, horizon, targets) and, with quantiles, `quantiles` (N, horizon, targets, Q) of all windows."""
    parts = []
    for start in range(0, len(windows), batch_size):
        part = windows.rows(slice(start, start + batch_size))
        parts.append(graph.run(part.inputs))
    return {name: np.concatenate([part[name] for part in parts]) for name in ("forecast", "quantiles") if name in parts[0]}


def score_forecast(
    series: Series,
    forecast: ForecastSettings,
    evaluate: ForecastEvaluation,
    truth: Windows,
    mean: npt.NDArray[Any],
    quantiles: npt.NDArray[Any] | None = None,
) -> Scores:
    """Measures of forecasts of the test windows, each the mean over series and targets.

    smape in percent (0 to 200) and mase as the M4 competition takes them; mae and rmse in the series' own units; with the
    official Naive2 totals also owa; pinball is the mean quantile loss, coverage the share of values between the
    outermost quantiles. `evaluate.standardized` adds errors in standard deviations of the training part. Where files have
    names, those of their series come too, as in m3_smape, and mape in percent. Measures that are undefined (mase of constant
    series) are left out.
    """
    num_windows, horizon, num_targets = truth.future.shape
    per_series = num_windows // len(series.ids)
    names = np.array([f"{index}/{target}" for index in range(len(series.ids)) for target in range(num_targets)])
    ids = np.repeat(names.reshape(len(series.ids), 1, 1, num_targets), per_series, axis=1)
    ids = np.broadcast_to(ids, (len(series.ids), per_series, horizon, num_targets)).reshape(-1)
    # The futures come from float32: what is scored are the values of the files.
    columns: dict[str, Any] = {"unique_id": ids, "y": known_futures(series, forecast, evaluate.stride), "model": mean}
    levels = list(forecast.quantiles)
    if quantiles is not None:
        columns |= {f"q{level}": quantiles[..., i] for i, level in enumerate(levels)}
    frame = pl.DataFrame({name: np.asarray(v).reshape(-1) for name, v in columns.items()})
    frame = frame.filter(pl.col("y").is_not_nan())
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
    if evaluate.standardized:
        scores |= _standardized(series, known_futures(series, forecast, evaluate.stride) - mean)
    for name in dict.fromkeys(filter(None, series.sets)):
        own = [
            f"{index}/{target}" for index in range(len(series.ids)) if series.sets[index] == name for target in range(num_targets)
        ]
        part = frame.filter(pl.col("unique_id").is_in(own))
        scores[f"{name}_smape"] = 200 * _mean(losses.smape(part, ["model"]))
        scores[f"{name}_mape"] = 100 * _mean(losses.mape(part, ["model"]))
    return {name: float(score) for name, score in scores.items() if np.isfinite(score)}


def _standardized(series: Series, errors: npt.NDArray[Any]) -> Scores:
    """Of errors (N, horizon, targets): mean square and mean magnitude, in standard deviations of each target's training part."""
    relative = errors / _deviations(series)
    return {"mse_standardized": float(np.nanmean(relative**2)), "mae_standardized": float(np.nanmean(np.abs(relative)))}


def score_windows(
    series: Series, forecast: ForecastSettings, stride: int | None, forecasts: Mapping[str, npt.NDArray[Any]]
) -> list[dict[str, Any]]:
    """MASE of forecasts (N, horizon, targets) by origin, oldest first: `{"first": ..., "mase": {name: score}}`.

    `first` is the time of the first step that is forecast where the series has times, else how many steps stand before it in the
    test part. A score is the mean over series and targets; constant ones, for which it is undefined, are left out.
    """
    truth = known_futures(series, forecast, stride)
    origins = evaluation_origins(series, forecast, stride)
    scales = []
    for index, values in enumerate(series.values):
        past = values[: series.test_start(index), series.target_indices]
        lag = min(forecast.season_length, len(past) - 1)
        scales.append(np.abs(past[lag:] - past[:-lag]).mean(0))
    scale = np.stack([scales[index] for index, _ in origins])  # (N, targets)
    scale = np.where(scale > 0, scale, np.nan)
    errors = {name: np.nanmean(np.abs(found - truth), 1) / scale for name, found in forecasts.items()}  # (N, targets)
    steps = np.array([origin - series.test_start(index) for index, origin in origins])
    table = []
    for step in dict.fromkeys(steps.tolist()):
        rows = steps == step
        first = step if series.times is None else str(series.times[series.test_start(0) + step].astype("datetime64[s]"))
        scores = {name: found[rows][np.isfinite(found[rows])] for name, found in errors.items()}
        table.append({"first": first, "mase": {name: float(found.mean()) for name, found in scores.items() if len(found)}})
    return table


def forecast_baseline(
    name: str, series: Series, forecast: ForecastSettings, stride: int | None = None, advance: Advance | None = None
) -> npt.NDArray[np.float64] | None:
    """The baseline's forecasts of all test windows, (N, horizon, targets), in the order of `evaluation_windows`.

    None where a strong baseline would have to be fitted more than `MAX_WINDOWS` times.
    """
    origins = evaluation_origins(series, forecast, stride)
    if name == "linear":
        return _linear(series, forecast, origins)
    if name not in ("seasonal_naive", "last_value") and len(origins) * len(series.targets) > MAX_WINDOWS:
        return None
    forecasts = np.empty((len(origins), forecast.horizon, len(series.targets)))
    for row, (index, origin) in enumerate(origins):
        for column, feature in enumerate(series.target_indices):
            past = series.values[index][:origin, feature]
            forecasts[row, :, column] = _forecast(name, past, forecast.horizon, forecast.season_length)
        if advance is not None:
            advance()
    return forecasts


def _forecast(name: str, past: npt.NDArray[np.float64], horizon: int, season_length: int) -> npt.NDArray[np.float64]:
    naive = SeasonalNaive(1 if name == "last_value" else season_length)
    if name in ("seasonal_naive", "last_value"):
        return np.asarray(naive.forecast(y=past, h=horizon)["mean"], dtype=np.float64)
    model = {"theta": DynamicOptimizedTheta, "auto_ets": AutoETS}[name](season_length)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # optimizers that do not converge on one series
        try:
            answer = model.forecast(y=past, h=horizon)["mean"]
        except Exception:  # statsforecast's models raise all kinds of errors on series too short or too constant
            answer = None
        if answer is None or not np.isfinite(answer).all():
            answer = naive.forecast(y=past, h=horizon)["mean"]
    return np.asarray(answer, dtype=np.float64)


def _deviations(series: Series) -> npt.NDArray[np.float64]:
    """Standard deviations of the training part, of each target; 1 where it is constant."""
    learned = np.concatenate([values[: series.training_end(index)] for index, values in enumerate(series.values)])
    deviations = learned[:, series.target_indices].std(0)
    return np.where(deviations > 0, deviations, 1.0)


def _linear(series: Series, forecast: ForecastSettings, origins: Sequence[tuple[int, int]]) -> npt.NDArray[np.float64]:
    """Least squares from a window, less its last value, to what follows, less that value (NLinear, Zeng et al. 2023).

    From all features to all targets; where features are forecast by themselves one regression for all of them, of values in
    units of the training part's standard deviations, as the paper has it.
    """
    ends = [series.training_end(index) for index in range(len(series.ids))]
    targets = list(series.target_indices)
    if not forecast.independent:
        return _regression(series.values, targets, ends, forecast, origins)
    units = _deviations(series)
    count = len(targets)
    columns = [column[:, None] for values in series.values for column in (values[:, targets] / units).T]
    places = [(index * count + column, origin) for index, origin in origins for column in range(count)]
    found = _regression(columns, [0], list(np.repeat(ends, count)), forecast, places)  # (origins · targets, horizon, 1)
    return found.reshape(len(origins), count, forecast.horizon).transpose(0, 2, 1) * units


def _regression(
    tables: Sequence[npt.NDArray[np.float64]],
    targets: Sequence[int],
    ends: Sequence[int],
    forecast: ForecastSettings,
    origins: Sequence[tuple[int, int]],
) -> npt.NDArray[np.float64]:
    """`_linear` of tables (T, F), fitted on the steps of each before its end: (origins, horizon, targets)."""
    length, horizon = forecast.context_length, forecast.horizon

    def window(index: int, origin: int) -> npt.NDArray[np.float64]:
        history = tables[index][max(0, origin - length) : origin]
        history = np.concatenate([np.repeat(history[:1], length - len(history), axis=0), history])
        return np.append((history[:-1] - history[-1]).ravel(), 1.0)

    def last(index: int, origin: int) -> npt.NDArray[np.float64]:
        return tables[index][origin - 1, targets]

    places = [
        (index, origin) for index, end in enumerate(ends) for origin in range(min(length, end - horizon), end - horizon + 1)
    ]
    places = places[:: 1 + len(places) // 50_000]
    x = np.stack([window(*place) for place in places])
    y = np.stack([(tables[i][o : o + horizon][:, targets] - last(i, o)).ravel() for i, o in places])
    weights, *_ = np.linalg.lstsq(x, y, rcond=1e-6)
    answers = np.stack([window(*place) for place in origins]) @ weights
    levels = np.stack([last(*place) for place in origins])
    found: npt.NDArray[np.float64] = answers.reshape(len(origins), horizon, -1) + levels[:, None, :]
    return found


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
