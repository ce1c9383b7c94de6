"""Baselines answer the same question from the same past, and never fail a run."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from training.data.series import Series, evaluation_windows
from training.data.texts import Texts
from training.recipe import Forecast
from training.scoring import baselines
from training.scoring.baselines import classify_baseline, forecast_baseline

FORECAST = Forecast(context_length=24, horizon=6, season_length=6)


def make_series(values: npt.NDArray[np.float64]) -> Series:
    return Series(("a",), (values,), ("y",), ("y",), validation_length=6, test_length=12)


def seasonal(length: int = 72) -> npt.NDArray[np.float64]:
    steps = np.arange(length)
    values: npt.NDArray[np.float64] = 10 + np.sin(2 * np.pi * steps / 6) + 0.05 * steps
    return values[:, None]


def test_seasonal_naive_repeats_the_last_season_before_each_window() -> None:
    series = make_series(seasonal())
    forecasts = forecast_baseline("seasonal_naive", series, FORECAST)
    assert forecasts is not None
    assert forecasts.shape == (2, 6, 1)
    np.testing.assert_allclose(forecasts[0, :, 0], series.values[0][54:60, 0])
    np.testing.assert_allclose(forecasts[1, :, 0], series.values[0][60:66, 0])


def test_last_value_repeats_what_came_before_each_window() -> None:
    series = make_series(seasonal())
    forecasts = forecast_baseline("last_value", series, FORECAST)
    assert forecasts is not None
    np.testing.assert_allclose(forecasts[:, :, 0], np.repeat(series.values[0][[59, 65], 0][:, None], 6, 1))


def test_linear_learns_any_fixed_pattern_from_the_training_part_alone() -> None:
    values = seasonal()
    forecasts = forecast_baseline("linear", make_series(values), FORECAST)
    assert forecasts is not None
    np.testing.assert_allclose(forecasts[..., 0].reshape(-1), values[60:, 0], atol=1e-6)
    changed = values.copy()
    changed[60:] = 0  # what comes after the first window's past is not seen
    again = forecast_baseline("linear", make_series(changed), FORECAST)
    assert again is not None
    np.testing.assert_allclose(again[0], forecasts[0])


def test_linear_takes_histories_shorter_than_its_window() -> None:
    series = make_series(seasonal(40))
    short = Forecast(context_length=36, horizon=6, season_length=6)
    forecasts = forecast_baseline("linear", series, short)
    assert forecasts is not None
    assert np.isfinite(forecasts).all()


@pytest.mark.parametrize("name", ["theta", "auto_ets"])
def test_strong_baselines_follow_season_and_trend(name: str) -> None:
    series = make_series(seasonal())
    truth = evaluation_windows(series, FORECAST, "test").future
    naive, strong = (forecast_baseline(each, series, FORECAST) for each in ("seasonal_naive", name))
    assert naive is not None
    assert strong is not None
    assert np.abs(strong - truth).mean() < 0.7 * np.abs(naive - truth).mean()


def test_each_series_and_target_gets_its_own_forecast_and_progress() -> None:
    values = np.concatenate([seasonal(), 100 * seasonal()], axis=1)
    series = Series(("a", "b"), (values, values + 5), ("x", "y"), ("y",), validation_length=6, test_length=12)
    steps: list[int] = []
    forecasts = forecast_baseline("seasonal_naive", series, FORECAST, 3, lambda: steps.append(1))
    assert forecasts is not None
    assert forecasts.shape == (2 * 3, 6, 1)
    assert len(steps) == 6
    np.testing.assert_allclose(forecasts[3, :, 0], series.values[1][54:60, 1])


def test_a_series_that_a_model_cannot_fit_falls_back_to_the_naive_forecast() -> None:
    constant = make_series(np.full((30, 1), 3.0))
    for name in baselines.FORECASTERS:
        forecasts = forecast_baseline(name, constant, FORECAST)
        assert forecasts is not None
        np.testing.assert_allclose(forecasts, 3.0, rtol=1e-3)


def test_a_strong_baseline_is_left_out_where_it_would_take_hours() -> None:
    series = make_series(seasonal(72))
    many = Series(tuple(map(str, range(1001))), series.values * 1001, ("y",), ("y",), validation_length=6, test_length=12)
    assert forecast_baseline("theta", many, FORECAST) is None


TRAIN = Texts(("good film", "a good plot", "nice and good", "bad film", "a bad plot") * 10, np.array([1, 1, 1, 0, 0] * 10))
TEST = {"t": Texts(("good", "bad"), np.array([1, 0]))}


def test_the_majority_answers_the_shares_of_the_labels() -> None:
    np.testing.assert_allclose(classify_baseline("majority", TRAIN, TEST, 2, {})["t"], [[0.4, 0.6]] * 2)


def test_tfidf_reads_words_and_knows_labels_that_training_lacks() -> None:
    probabilities = classify_baseline("tfidf_logistic", TRAIN, TEST, 3, {"<br />": " "})["t"]
    assert probabilities.argmax(1).tolist() == [1, 0]
    np.testing.assert_allclose(probabilities[:, 2], 0)
    np.testing.assert_allclose(probabilities.sum(1), 1)


def test_tfidf_reads_characters_where_words_are_not_separated() -> None:
    train = Texts(("房间很好", "服务很好", "房间很差", "服务太差") * 5, np.array([1, 1, 0, 0] * 5))
    test = {"t": Texts(("早餐很好", "早餐太差"), np.array([1, 0]))}
    assert classify_baseline("tfidf_logistic", train, test, 2, {})["t"].argmax(1).tolist() == [1, 0]
