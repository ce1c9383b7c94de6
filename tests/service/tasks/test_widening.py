"""Quantiles beyond the model's own horizon: what is uncertain adds, by its squares or itself, and nothing else changes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from service.runtime.tensors import Array
from service.tasks.history import FLOAT32_MAX
from service.tasks.widening import join_runs

LEVELS = (0.1, 0.5, 0.9)


def run(*rows: list[float]) -> Array:
    """A point forecast that is the median, and quantiles."""
    low, median, high = rows
    return np.array([median, low, median, high], np.float32)


def test_the_squares_of_the_distances_from_the_median_add() -> None:
    joined = join_runs([run([7, 7], [10, 10], [14, 14]), run([16, 17], [20, 20], [23, 20])], LEVELS, is_never_negative=True)
    assert joined[:, :2].tolist() == [[10, 10], [7, 7], [10, 10], [14, 14]]
    expected = np.array([[20, 20], [15, 20 - math.sqrt(18)], [20, 20], [25, 24]])
    np.testing.assert_allclose(joined[:, 2:], expected, rtol=1e-6)


def test_correlated_errors_add_themselves() -> None:
    runs = [run([7, 7], [10, 10], [14, 14]), run([16, 17], [20, 20], [23, 20])]
    joined = join_runs(runs, LEVELS, is_never_negative=True, are_correlated=True)
    assert joined[:, 2:].tolist() == [[20, 20], [13, 14], [20, 20], [27, 24]]


def test_a_third_run_begins_with_what_the_second_was_widened_to() -> None:
    part = run([9], [10], [11])
    joined = join_runs([part, part, part, part], LEVELS, is_never_negative=False)
    np.testing.assert_allclose(joined[3], 10 + np.sqrt([1, 2, 3, 4]), rtol=1e-6)
    np.testing.assert_allclose(joined[1], 10 - np.sqrt([1, 2, 3, 4]), rtol=1e-6)


def test_the_origin_is_as_uncertain_as_its_run_was_on_average_at_least() -> None:
    joined = join_runs([run([4, 10], [10, 10], [16, 10]), run([10, 10], [10, 10], [10, 10])], LEVELS, is_never_negative=False)
    assert joined[1, 2:].tolist() == [7, 7]
    assert joined[3, 2:].tolist() == [13, 13]


@pytest.mark.parametrize(("is_never_negative", "lowest"), [(True, 0.0), (False, -2.0)])
def test_no_quantile_of_a_history_without_negative_values_is_moved_below_zero(is_never_negative: bool, lowest: float) -> None:
    joined = join_runs([run([1], [5], [9]), run([1], [4], [5])], LEVELS, is_never_negative=is_never_negative)
    assert joined[1, 1] == pytest.approx(max(lowest, 4 - (16 + 9) ** 0.5))
    own = join_runs([run([1], [5], [9]), run([-8], [4], [5])], LEVELS, is_never_negative=True)
    assert own[1, 1] == -8  # what the model itself says stays


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("are_correlated", [False, True])
def test_quantiles_stay_in_their_order_and_the_points_as_they_are(seed: int, are_correlated: bool) -> None:
    random = np.random.default_rng(seed)
    levels = (0.05, 0.3, 0.5, 0.6, 0.95)
    runs = []
    for _ in range(4):
        quantiles = np.sort(random.normal(size=(5, 7, 2)) * random.choice([0, 1, 100], size=(1, 7, 2)), axis=0)
        runs.append(np.concatenate([quantiles[2:3], quantiles, random.normal(size=(1, 7, 2))]).astype(np.float32))
    joined = join_runs(runs, levels, is_never_negative=False, are_correlated=are_correlated)
    assert (np.diff(joined[1:6], axis=0) >= 0).all()
    for row in (0, 3, 6):
        np.testing.assert_array_equal(joined[row], np.concatenate(runs, axis=1)[row])


def test_quantiles_without_a_median_lie_about_the_point_forecast() -> None:
    part = np.array([[10.0], [9.0], [12.0]], np.float32)
    joined = join_runs([part, part], (0.25, 0.75), is_never_negative=False)
    np.testing.assert_allclose(joined[:, 1], [10, 10 - math.sqrt(2), 10 + math.sqrt(8)], rtol=1e-6)


def test_a_forecast_without_quantiles_is_put_together() -> None:
    assert join_runs([np.array([[1.0]]), np.array([[2.0]])], (), is_never_negative=False).tolist() == [[1, 2]]


def test_the_largest_values_stay_finite() -> None:
    large = 0.9 * FLOAT32_MAX
    joined = join_runs([run([-large], [0], [large]), run([-large], [large], [large])], LEVELS, is_never_negative=False)
    assert np.isfinite(joined).all()
    assert joined[3, 1] == np.float32(FLOAT32_MAX)
