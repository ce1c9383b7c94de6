"""What the bundled hourly forecaster makes of histories that are no textbook's: it is run as the server runs it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from service.runtime.base import Runtime
from service.runtime.onnx_runtime import open_runtime

FOLDER = Path(__file__).parents[2] / "models" / "forecast-hourly" / "1"
HORIZON, DAY, WEEK = 48, 24, 168
Floats = NDArray[np.float64]


@cache
def graph() -> Runtime:
    return open_runtime(FOLDER / "model.onnx")


def quantiles(*histories: Floats) -> Floats:
    """(rows, horizon, levels)"""
    lengths = np.array([len(history) for history in histories])
    values = np.zeros((len(histories), lengths.max(), 1), np.float32)
    for row, history in enumerate(histories):
        values[row, : len(history), 0] = history
    found: NDArray[Any] = graph().run({"history": values, "lengths": lengths})["quantiles"]
    return found[:, :, 0].astype(np.float64)


def forecast(*histories: Floats) -> Floats:
    return quantiles(*histories)[:, :, 4]


def load(num_hours: int = 1344, seed: int = 0) -> Floats:
    """Days and weeks with noise, about 100."""
    hours = np.arange(num_hours)
    is_weekend = hours // DAY % 7 >= 5
    day = np.sin(2 * np.pi * hours / DAY) * np.where(is_weekend, 8, 20)
    noise = np.random.default_rng(seed).normal(size=num_hours)
    return np.asarray(100 + day - 10 * is_weekend + 2 * noise)


def change(history: Floats) -> float:
    return float(np.abs(history[DAY:] - history[:-DAY]).mean())


@pytest.mark.parametrize("length", [48, 49, 100, 168, 169, 500, 1344])
@pytest.mark.parametrize("value", [0.0, 7.0, -3.0, 1e6, -1e-6])
def test_a_constant_history_goes_on(length: int, value: float) -> None:
    found = quantiles(np.full(length, value))
    np.testing.assert_allclose(found, value, rtol=1e-3, atol=1e-30)


@pytest.mark.parametrize("weeks", [3, 8])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_an_exact_week_is_taken_over(weeks: int, offset: float) -> None:
    week = np.random.default_rng(1).uniform(5, 10, WEEK) + offset
    found = forecast(np.tile(week, weeks))[0]
    assert np.abs(found - week[:HORIZON]).max() < 0.01 * np.abs(week - week.mean()).mean() + 1e-5 * offset


@pytest.mark.parametrize("offset", [1e4, -500.0])
def test_a_level_far_from_zero_changes_little_but_the_level(offset: float) -> None:
    history = load()
    assert np.abs(forecast(history + offset) - offset - forecast(history)).max() < 0.1 * change(history)


@pytest.mark.parametrize("factor", [1e-6, 1e-2, 1e6])
def test_the_unit_of_the_values_does_not_matter(factor: float) -> None:
    history = load()
    np.testing.assert_allclose(quantiles(history * factor) / factor, quantiles(history), rtol=1e-3)


@pytest.mark.parametrize(("length", "place"), [(72, -1), (72, -24), (1344, -1), (1344, -24), (1344, -200)])
def test_one_value_a_hundred_times_too_large_does_not_return(length: int, place: int) -> None:
    usual = load()[-length:]
    hit = usual.copy()
    hit[place] *= 100
    assert np.abs(forecast(hit) - forecast(usual)).max() < 0.02 * hit.max()


def test_a_level_shift_a_day_ago_is_followed() -> None:
    history = load()
    history[-DAY:] += 100
    following = load(1344 + HORIZON)[-HORIZON:] + 100
    found = forecast(history)[0]
    assert np.abs(found - following).mean() < 35  # the mean error of no shift at all would be 100


def test_no_forecast_of_counts_or_rates_is_negative() -> None:
    rng = np.random.default_rng(3)
    rows = [rng.poisson(rate, 700).astype(float) for rate in (0.05, 0.5, 5)]
    rows += [np.maximum(load() - 100, 0), np.exp(2 * rng.normal(size=300))]
    assert quantiles(*rows).min() >= 0


def test_bands_of_white_noise_hold() -> None:
    rng = np.random.default_rng(4)
    rows = rng.normal(50, 5, (40, 700 + HORIZON))
    found = quantiles(*rows[:, :700])
    inside = np.mean((rows[:, 700:] >= found[..., 0]) & (rows[:, 700:] <= found[..., -1]))
    assert 0.7 < inside < 0.9


def test_an_outage_of_a_day_does_not_become_the_forecast() -> None:
    history = load()
    history[-3 * DAY : -2 * DAY] = 0
    assert np.abs(forecast(history) - forecast(load())).mean() < 12  # of a fall by 100


def test_a_series_below_zero_has_forecasts_below_zero() -> None:
    assert forecast(load() - 1000).max() < -800
