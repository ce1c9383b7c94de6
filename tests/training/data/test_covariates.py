"""Covariates of tables: columns that are known ahead, texts as numbers, and what the calendar says of the times."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.data.covariates import calendar_columns, moments_from
from training.data.series import evaluation_windows, read_series, sample_windows, windows_in_order
from training.data.sources import DataError
from training.recipe import ForecastRecipe, RecipeError, parse_recipe

RECIPE = """
task = "forecast"
name = "toy"
[[data.train]]
path = "toy.csv"
format = "table"
[forecast]
context_length = 6
min_length = 4
horizon = 3
frequencies = ["H"]
covariates = ["warm", "sky"]
calendar = ["hour", "day_of_week"]
[forecast.categories]
sky = ["clear", "rain"]
[[layers]]
type = "lstm"
units = 2
[[layers]]
type = "decoder_input"
[[layers]]
type = "dense"
[fit]
loss = "mae"
"""


def table(columns: Mapping[str, list[Any]] | None = None) -> str:
    num_rows = 30
    start = np.datetime64("2024-02-28T22:00:00")
    found: dict[str, list[Any]] = {
        "ds": [str(start + np.timedelta64(step, "h")) for step in range(num_rows)],
        "y": list(range(num_rows)),
        "warm": [step / 10 for step in range(num_rows)],
        "sky": ["rain" if step % 3 else "clear" for step in range(num_rows)],
        **(columns or {}),
    }
    return "\n".join([",".join(found), *(",".join(map(str, row)) for row in zip(*found.values(), strict=True))])


def read(folder: Path, text: str, *changes: str) -> tuple[Any, ForecastRecipe]:
    (folder / "toy.csv").write_text(text)
    recipe = parse_recipe(RECIPE, changes)
    assert isinstance(recipe, ForecastRecipe)
    return read_series(recipe.data, recipe.forecast, folder), recipe


def test_covariates_are_no_features_and_come_before_the_calendar(tmp_path: Path) -> None:
    series, _ = read(tmp_path, table())
    assert series.features == ("y",)
    assert series.covariates[0][:4].tolist() == [[0, 0, 22, 2], [0.1, 1, 23, 2], [0.2, 1, 0, 3], [0.3, 0, 1, 3]]
    assert series.training_values().shape == (24, 5)


def test_windows_hold_what_is_known_of_both_sides_of_their_origin(tmp_path: Path) -> None:
    series, recipe = read(tmp_path, table())
    windows = evaluation_windows(series, recipe.forecast, "test")
    assert windows.past_covariates is not None
    assert windows.future_covariates is not None
    assert windows.history[0, :, 0].tolist() == [21, 22, 23, 24, 25, 26]
    np.testing.assert_allclose(windows.past_covariates[0, :, 0], [2.1, 2.2, 2.3, 2.4, 2.5, 2.6])
    np.testing.assert_allclose(windows.future_covariates[0, :, 0], [2.7, 2.8, 2.9])
    assert set(windows.inputs) == {"history", "lengths", "past_covariates", "future_covariates"}
    (ordered, *_) = windows_in_order(series, recipe.forecast, batch_size=4)
    assert ordered.past_covariates is not None
    assert (ordered.past_covariates[0, 4:] == 0).all()
    rng = np.random.default_rng(0)
    for batch in sample_windows(series, recipe.forecast, batch_size=3, num_batches=4, short_share=0.5, rng=rng):
        assert batch.past_covariates is not None
        assert batch.future_covariates is not None
        for row, length in enumerate(batch.lengths):
            np.testing.assert_allclose(batch.past_covariates[row, :length, 0] * 10, batch.history[row, :length, 0], atol=1e-5)
            np.testing.assert_allclose(batch.future_covariates[row, :, 0] * 10, batch.future[row, :, 0], atol=1e-5)


def test_behind_the_end_of_a_series_its_last_covariates_are_repeated(tmp_path: Path) -> None:
    series, recipe = read(tmp_path, table(), "data.min_future=1", "data.test_length=1")
    windows = evaluation_windows(series, recipe.forecast, "test")
    assert windows.future_covariates is not None
    np.testing.assert_allclose(windows.future_covariates[0, :, 0], [2.9, 2.9, 2.9])
    assert np.isnan(windows.future[0, 1:]).all()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"sky": ["snow"] * 30}, r'column "sky": \'snow\' is none of its categories \[\'clear\', \'rain\'\]'),
        ({"warm": ["x"] * 30}, r'column "warm": \'x\' is not a number'),
        ({"ds": [f"day {step}" for step in range(30)]}, r'column "ds"'),
    ],
)
def test_columns_that_cannot_be_read_are_named(tmp_path: Path, columns: dict[str, list[Any]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, table(columns))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('forecast.covariates=["wind","sky"]', 'has no column "wind"'),
        ("forecast.categories={}", r'column "sky": \'clear\' is not a number'),
        ('data.train.0.format="wide"', "is wide: it has no columns for covariates"),
    ],
)
def test_covariates_that_the_table_does_not_have_are_named(tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises((DataError, RecipeError), match=message):
        read(tmp_path, table(), change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('forecast.covariates=["warm","warm","sky"]', "covariates must differ"),
        ('forecast.covariates=["warm"]', "categories are of covariates, 'sky' is none of"),
        ('forecast.calendar=["minute"]', "Input should be 'hour'|expected"),
        ("forecast.frequencies=[]", "calendar needs one entry in frequencies"),
        ('data.train.0.values=["warm"]', "'warm' is among the values of toy.csv and among the covariates"),
    ],
)
def test_a_recipe_whose_covariates_do_not_fit_is_refused(change: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_recipe(RECIPE, [change])


def test_the_calendar_is_that_of_the_gregorian_year() -> None:
    moments = np.array(["1999-12-31T23:30", "2024-02-29T00:00", "2023-12-31T12:00"], "datetime64[us]")
    fields = calendar_columns(moments, ["hour", "day_of_week", "month", "day_of_year"])
    assert fields.tolist() == [[23, 4, 12, 365], [0, 3, 2, 60], [12, 6, 12, 365]]


def test_months_keep_their_day_or_take_the_last_one() -> None:
    found = moments_from("2024-01-31T06:00:00", "M", 3)
    assert found.astype("datetime64[h]").astype(str).tolist() == ["2024-01-31T06", "2024-02-29T06", "2024-03-31T06"]
    assert moments_from("2024-01-31", "T", 2)[1] == np.datetime64("2024-01-31T00:01")
