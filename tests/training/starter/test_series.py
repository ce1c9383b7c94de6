"""A starter recipe for series fits their frequency and length, and a table that cannot be learned from is refused."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from training.data.sources import DataError
from training.recipe import ForecastRecipe, read_recipe
from training.starter.recipe_file import write_starter
from training.starter.series import FREQUENCIES, SeriesStarter, choose_lengths

DAYS = [f"{datetime(2024, 1, 1) + timedelta(days=i):%Y-%m-%d}" for i in range(120)]


def write(folder: Path, rows: list[str], header: str = "date,sales") -> Path:
    file = folder / "sales.csv"
    file.write_text("\n".join([header, *rows]) + "\n")
    return file


def starter(**changes: object) -> SeriesStarter:
    return SeriesStarter(**{"time": "date", "values": ("sales",), "frequency": "D", **changes})  # type: ignore[arg-type]


def recipe_of(file: Path, chosen: SeriesStarter) -> ForecastRecipe:
    recipe = read_recipe(write_starter(file, chosen, folder=file.parent))
    assert isinstance(recipe, ForecastRecipe)
    return recipe


def test_daily_sales_get_lengths_of_whole_weeks(tmp_path: Path) -> None:
    recipe = recipe_of(write(tmp_path, [f"{day},{i}" for i, day in enumerate(DAYS)]), starter())
    forecast = recipe.forecast
    assert (forecast.horizon, forecast.season_length, forecast.seasonal_lag, forecast.step) == (14, 7, 7, 7)
    assert (forecast.context_length, forecast.frequencies) == (28, ["D"])
    assert (recipe.data.validation_length, recipe.data.test_length) == (14, 14)
    assert (recipe.name, recipe.data.train[0].values) == ("sales", ["sales"])


def test_several_series_are_read_in_long_form_and_short_ones_counted(tmp_path: Path) -> None:
    rows = [f"{store},{day},{i}" for store in "abcdefghij" for i, day in enumerate(DAYS)]
    rows += [f"new,{day},1" for day in DAYS[:5]]
    file = write(tmp_path, rows, "store,date,sales")
    recipe = recipe_of(file, starter(series="store"))
    assert (recipe.data.train[0].format, recipe.data.train[0].id) == ("long", "store")
    text = (tmp_path / "sales.toml").read_text()
    assert "sales.csv holds 11 series of 5 to 120 rows, one day apart. 1 series have fewer than 49 rows" in " ".join(
        text.replace("#", "").split()
    )


def test_missing_values_are_counted_and_a_horizon_is_kept(tmp_path: Path) -> None:
    recipe = recipe_of(write(tmp_path, [f"{day},{i if i % 50 else ''}" for i, day in enumerate(DAYS)]), starter(horizon=3))
    assert recipe.forecast.horizon == 3
    assert "3 values are missing: they are interpolated." in " ".join((tmp_path / "sales.toml").read_text().split())


@pytest.mark.parametrize("code", FREQUENCIES)
@pytest.mark.parametrize("num_rows", [20, 25, 40, 80, 130, 300, 2000, 50_000])
def test_chosen_lengths_leave_windows_to_learn_from(code: str, num_rows: int) -> None:
    frequency = FREQUENCIES[code]
    lengths = choose_lengths(num_rows, frequency, None)
    training = num_rows - 2 * lengths.held_out
    assert training - lengths.season - lengths.horizon + 1 >= 8
    assert lengths.season <= lengths.context <= training
    assert lengths.held_out % lengths.horizon == 0
    assert lengths.context % lengths.fold == lengths.season % lengths.fold == 0
    assert lengths.season in (1, frequency.season_length)


@pytest.mark.parametrize(
    ("code", "times"),
    [
        ("H", ["2024-01-01 00:00", "2024-01-01 01:00", "2024-01-01 02:00"]),
        ("T", ["2024-01-01T23:59:00", "2024-01-02T00:00:00", "2024-01-02T00:01:00"]),
        ("H", ["2024-03-31T00:00:00+01:00", "2024-03-31T01:00:00+01:00", "2024-03-31T03:00:00+02:00"]),
        ("M", ["2023-12-31", "2024-01-31", "2024-02-29"]),
        ("M", ["2023-11", "2023-12", "2024-01"]),
        ("Q", ["2023-10-01", "2024-01-01", "2024-04-01"]),
        ("W", ["2024-01-01", "2024-01-08", "2024-01-15"]),
        ("Y", ["2022", "2023", "2024"]),
    ],
)
def test_times_of_every_frequency_are_read(tmp_path: Path, code: str, times: list[str]) -> None:
    """Three rows are too few to learn from, which is looked at after the steps."""
    file = write(tmp_path, [f"{time},1" for time in times])
    with pytest.raises(DataError, match="20 rows are the fewest to learn from, the series have 3"):
        write_starter(file, starter(frequency=code), folder=tmp_path)


REGULAR = [f"{day},1" for day in DAYS]


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        (REGULAR, {"time": "day"}, '--time: sales.csv: has no column "day"; there are date, sales'),
        (REGULAR, {"values": ("sold",)}, '--value: sales.csv: has no column "sold"; there are date, sales'),
        (REGULAR, {"values": ("sales", "sales")}, "--value: expected different columns beside date, got sales, sales"),
        (REGULAR, {"values": ("date",)}, "--value: expected different columns beside date, got date"),
        (REGULAR, {"series": "shop"}, '--series: sales.csv: has no column "shop"; there are date, sales'),
        (REGULAR, {"frequency": "B"}, '--frequency: there is no "B"; there are S (second), T (minute)'),
        (["yesterday,1", *REGULAR], {}, "column \"date\": row 1: 'yesterday' is no time; expected ISO 8601, as 2024-01-31"),
        (["31.12.2023,1", *REGULAR], {}, "row 1: '31.12.2023' is no time"),
        ([",1", *REGULAR], {}, 'column "date": row 1 has no time'),
        ([f"{day},much" for day in DAYS], {}, "'much' is not a number"),
        ([f"{day}," for day in DAYS], {}, "a value column has no value at all"),
        (REGULAR[::-1], {}, "the rows go back in time between 2024-04-29 and 2024-04-28: sort them, the oldest first"),
        (REGULAR[:1] + REGULAR, {}, "two rows have the time 2024-01-01"),
        (REGULAR[:9] + REGULAR[10:], {}, "2024-01-09 and 2024-01-11 are not one day apart (--frequency D); add the missing rows"),
        (REGULAR, {"frequency": "H"}, "not one hour apart (--frequency H); the rows are one day apart, which is --frequency D"),
        (REGULAR[:12], {}, "20 rows are the fewest to learn from, the series have 12"),
        (REGULAR[:40], {"horizon": 14}, "a horizon of 14 needs 50 rows, the series have 40: give a smaller --horizon"),
        (REGULAR, {"horizon": 0}, "--horizon: expected 1 or more, got 0"),
    ],
)
def test_a_table_that_cannot_be_learned_from_is_refused(
    tmp_path: Path, rows: list[str], changes: dict[str, object], message: str
) -> None:
    file = write(tmp_path, rows)
    with pytest.raises(DataError) as caught:
        write_starter(file, starter(**changes), folder=tmp_path)
    assert message in str(caught.value)
    assert not (tmp_path / "sales.toml").exists()


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ([f"{day},{store},1,0.5" for day in DAYS for store in "ab"], f"two rows have the time {DAYS[0]}"),
        (
            [f"{day},{store},1,0.5" for store in "ab" for day in DAYS],
            f"the rows go back in time between {DAYS[-1]} and {DAYS[0]}",
        ),
    ],
)
def test_the_times_of_several_series_hint_at_the_column_of_their_names(tmp_path: Path, rows: list[str], found: str) -> None:
    file = write(tmp_path, rows, "date,store,sales,price")
    with pytest.raises(DataError, match=f"{found}.*; if the file holds several series, give --series store$"):
        write_starter(file, starter(), folder=tmp_path)


def test_long_series_get_baselines_that_take_no_minutes(tmp_path: Path) -> None:
    hours = [f"{datetime(2024, 1, 1) + timedelta(hours=i):%Y-%m-%d %H:%M},{i % 24}" for i in range(6000)]
    recipe = recipe_of(write(tmp_path, hours), starter(frequency="H"))
    assert recipe.baselines == ("seasonal_naive", "linear")
