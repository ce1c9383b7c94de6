"""The pictures of a forecasting run: its losses, and forecasts of the test part beside the true values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from training.data.series import Series
from training.fitting.fit import FitResult
from training.recipe import ForecastRecipe

UNITS = {
    "S": "seconds",
    "T": "minutes",
    "H": "hours",
    "D": "days",
    "W": "weeks",
    "M": "months",
    "Q": "quarters",
    "Y": "years",
}
MAX_PANELS = 3


def forecast_pictures(recipe: ForecastRecipe, series: Series, fitted: FitResult, answers: Mapping[str, Any]) -> dict[str, bytes]:
    """loss.png and forecast.png; `answers` are the graph's for all test windows, by series, then by time."""
    # Matplotlib takes a second to import: only a run that draws needs it.
    from training.reporting import plots

    forecast = recipe.forecast
    pictures = {"loss.png": plots.loss_picture(recipe.name, recipe.fit.loss, fitted)}
    per_series = len(answers["forecast"]) // len(series.ids)
    # Windows that follow one another without a gap; of those that overlap, and never meet, the first alone.
    stride = recipe.evaluate.stride or forecast.horizon
    every = forecast.horizon // stride if forecast.horizon % stride == 0 else per_series
    places = [(index, column) for index in range(len(series.ids)) for column in range(len(series.targets))]
    chosen = [places[round(at)] for at in np.linspace(0, len(places) - 1, min(MAX_PANELS, len(places)))]
    panels = []
    for index, column in chosen:
        rows = np.arange(index * per_series, (index + 1) * per_series, max(1, every))
        mean = answers["forecast"][rows, :, column].reshape(-1)
        quantiles = answers["quantiles"][rows, :, column].reshape(len(mean), -1) if forecast.quantiles else None
        start = series.test_start(index)
        shown = max(3 * forecast.season_length, len(mean) // 4, min(forecast.context_length, 4 * forecast.horizon))
        first = max(0, start - shown)
        values = series.values[index][first : start + len(mean), series.target_indices[column]]
        times = None if series.times is None else series.times[first : start + len(mean)]
        names = [series.ids[index]] * (len(series.ids) > 1) + [series.targets[column]] * (len(series.targets) > 1)
        past, truth = values[: start - first], values[start - first :]
        mean = mean[: len(truth)]  # a test part may be shorter than the horizon
        bands = _bands(None if quantiles is None else quantiles[: len(truth)], forecast.quantiles)
        panels.append(plots.Panel(", ".join(names), past, truth, mean, bands, times))
        if len(mean) > 200 and len(chosen) == 1:
            panels.append(panels[0].last(100))
    unit = UNITS[forecast.frequencies[0]] if len(forecast.frequencies) == 1 else "steps"
    ahead = f"{forecast.horizon} {unit if forecast.horizon > 1 else unit[:-1]} ahead"
    # "y" is the name of a series without one.
    names = (
        [name for name in (*series.targets[:2], recipe.data.unit) if name not in ("", "y")] if len(series.targets) == 1 else []
    )
    ylabel = ", ".join(names) or recipe.data.unit or "value"
    title = f"{recipe.name}: the test part, forecast {ahead}"
    pictures["forecast.png"] = plots.forecasts(panels, title, ylabel, f"{unit} from the start of the test part")
    return pictures


def _bands(quantiles: Any, levels: list[float]) -> list[tuple[str, Any, Any]]:
    """The widest band, and one about half as wide where there are levels for it."""
    if len(levels) < 3:
        return []
    pairs = [(0, len(levels) - 1)] + ([(len(levels) // 4, len(levels) - 1 - len(levels) // 4)] if len(levels) > 4 else [])
    return [
        (f"{100 * levels[low]:.3g} to {100 * levels[high]:.3g} %", quantiles[:, low], quantiles[:, high]) for low, high in pairs
    ]
