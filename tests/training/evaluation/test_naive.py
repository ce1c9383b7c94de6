"""Forecasts without learning: as they are defined, and at the scores that the competitions published."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from statsforecast.models import Theta

from training.evaluation.competitions import M3_PARTS, TOURISM_PARTS, mape, read_part, smape
from training.evaluation.naive import is_seasonal, naive, naive2, seasonal_factors, seasonal_naive, smooth, theta

SEASON = np.array([0.8, 1.1, 1.3, 0.8])


def test_naive_and_seasonal_naive_repeat_what_was() -> None:
    history = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    assert naive(history, 2).tolist() == [5, 5]
    assert seasonal_naive(history, 5, 3).tolist() == [3, 4, 5, 3, 4]
    assert seasonal_naive(history, 2, 6).tolist() == [5, 5]


def test_a_season_is_found_where_there_is_one() -> None:
    history = 100 * np.tile(SEASON, 6)
    assert is_seasonal(history, 4)
    np.testing.assert_allclose(seasonal_factors(history, 4), SEASON)
    np.testing.assert_allclose(naive2(history, 6, 4), 100 * SEASON[[0, 1, 2, 3, 0, 1]])
    np.testing.assert_allclose(theta(history, 4, 4), 100 * SEASON, rtol=1e-6)


@pytest.mark.parametrize(
    "history", [np.full(24, 5.0), np.tile(SEASON, 2), np.arange(24.0) - 3], ids=["constant", "short", "below zero"]
)
def test_where_there_is_none_factors_are_ones(history: np.ndarray) -> None:
    assert seasonal_factors(history, 4).tolist() == [1, 1, 1, 1]


def test_theta_goes_on_with_half_of_the_slope() -> None:
    found = theta(10 + 2 * np.arange(30.0), 3, 1)
    np.testing.assert_allclose(np.diff(found), 1, rtol=1e-6)


def test_smoothing_takes_the_rate_that_forecasts_best() -> None:
    assert smooth(np.array([1.0, 1.0, 9.0, 9.0, 9.0, 9.0])) == pytest.approx(9, abs=0.2)
    assert smooth(np.tile([1.0, -1.0], 100)) == pytest.approx(0, abs=0.2)


@pytest.mark.data
def test_published_scores_are_reached(data_folder: Path) -> None:
    """Naive of yearly and other series, and seasonal naive of tourism."""
    for part, published in ((M3_PARTS[0], 17.88), (M3_PARTS[3], 6.30)):
        histories, truth = read_part(part, data_folder)
        found = np.stack([naive(history, truth.shape[1]) for history in histories])
        assert smape(truth, found).mean() == pytest.approx(published, abs=0.01)
    for part, published in zip(TOURISM_PARTS, (23.61, 16.46, 22.56), strict=True):
        histories, truth = read_part(part, data_folder)
        found = np.stack([seasonal_naive(history, truth.shape[1], part.season_length) for history in histories])
        assert np.nanmean(mape(truth, found)) == pytest.approx(published, abs=0.01)


def test_theta_is_statsforecasts() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        history = 100 + np.cumsum(rng.normal(1, 3, 40))
        expected = Theta(season_length=1).forecast(y=history, h=6)["mean"]
        np.testing.assert_allclose(theta(history, 6, 1), expected, rtol=5e-3)
