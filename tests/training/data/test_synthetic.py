"""Synthetic series: finite, of the length asked for, the same for the same seed, and what their kind says."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from training.data.synthetic import make_series
from training.recipe import SyntheticKind

LENGTH, SEASON = 500, 24


@pytest.mark.parametrize("kind", get_args(SyntheticKind))
def test_series_are_finite_differ_and_come_again_with_their_seed(kind: SyntheticKind) -> None:
    found = [make_series(kind, LENGTH, SEASON, np.random.default_rng(seed)) for seed in (*range(20), 0)]
    assert all(values.shape == (LENGTH,) and np.isfinite(values).all() for values in found)
    assert np.array_equal(found[0], found[-1])
    assert not np.array_equal(found[0], found[1])
    assert sum(values.std() > 0 for values in found) > 15


def test_counts_are_whole_numbers_and_some_long_seasons_are_exact() -> None:
    counts = [make_series("counts", LENGTH, SEASON, np.random.default_rng(seed)) for seed in range(10)]
    assert all(np.array_equal(values, values.round()) and values.min() >= 0 for values in counts)
    weeks = [make_series("seasonal", LENGTH, SEASON, np.random.default_rng(seed)) for seed in range(20)]
    errors = [np.abs(values[7 * SEASON :] - values[: -7 * SEASON]).max() / np.abs(values).max() for values in weeks]
    assert 4 < sum(error < 1e-12 for error in errors) < 16
