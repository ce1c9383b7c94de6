"""A starter recipe for time series: rows of a regular frequency, of one series or of several in long form.

Looks at the columns and the steps between the rows, and chooses lengths that fit the series and a network that trains in about
a minute on one core.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

import numpy as np
import polars as pl

from training.data.columns import expect_columns
from training.data.series import numbers
from training.data.sources import DataError
from training.starter.recipe_text import RecipeText

MIN_ROWS = 20
MIN_WINDOWS = 8  # training windows of a series, at least
MAX_EVALUATED = 10  # forecasts in the validation and the test part of a series, at most
MAX_VALUES_OF_THETA = 50_000  # that theta reads for all its forecasts: above it takes minutes, where the network takes one


@dataclass(frozen=True)
class Frequency:
    """One of the codes of the recipe key `frequencies`, and what is usual for series of it."""

    unit: str
    step: timedelta | int  # an int counts months
    season_length: int
    season: str
    horizon: int
    num_seasons: int  # of history
    fold: bool = False  # whether a season is one recurrent step: long seasons are slow step by step

    def index(self, time: datetime) -> float:
        """The time in steps."""
        if isinstance(self.step, int):
            return (12 * time.year + time.month - 1) / self.step
        return (time - datetime(1970, 1, 1)) / self.step


FREQUENCIES = {
    "S": Frequency("second", timedelta(seconds=1), 60, "a minute", 60, 6, fold=True),
    "T": Frequency("minute", timedelta(minutes=1), 60, "an hour", 60, 6, fold=True),
    "H": Frequency("hour", timedelta(hours=1), 24, "a day", 24, 7, fold=True),
    "D": Frequency("day", timedelta(days=1), 7, "a week", 14, 4, fold=True),
    "W": Frequency("week", timedelta(weeks=1), 52, "a year", 8, 2),
    "M": Frequency("month", 1, 12, "a year", 12, 3),
    "Q": Frequency("quarter", 3, 4, "a year", 4, 3),
    "Y": Frequency("year", 12, 1, "", 3, 8),
}


@dataclass(frozen=True)
class Lengths:
    """Lengths in time steps."""

    season: int
    horizon: int
    context: int
    held_out: int  # of the validation part and of the test part each
    fold: int

    @property
    def min_rows(self) -> int:
        """Rows that a series must have to be learned from."""
        return self.season + self.horizon + 2 * self.held_out


@dataclass(frozen=True)
class SeriesStarter:
    """The columns of a table of series: of time, of values, and of the series' names where there are several."""

    time: str
    values: Sequence[str]
    frequency: str
    series: str | None = None
    horizon: int | None = None

    def compose(self, table: pl.DataFrame, path: str, name: str, command: str) -> str:
        """The recipe in TOML. Raises DataError: a missing column, times that are no dates or irregular, too few rows."""
        file = path.rsplit("/", 1)[-1]
        if self.frequency not in FREQUENCIES:
            known = ", ".join(f"{code} ({frequency.unit})" for code, frequency in FREQUENCIES.items())
            raise DataError(f'--frequency: there is no "{self.frequency}"; there are {known}')
        frequency = FREQUENCIES[self.frequency]
        for option, columns in (("--time", [self.time]), ("--value", self.values), ("--series", [self.series])):
            expect_columns(table, [column for column in columns if column is not None], f"{option}: {file}", "")
        if len(set(self.values)) < len(self.values) or self.time in self.values:
            raise DataError(f"--value: expected different columns beside {self.time}, got {', '.join(self.values)}")
        values = numbers(table.select(self.values), file)
        times = read_times(table[self.time], file)
        parts = _split_by_series(table, self.series, file)
        for label, rows in parts.items():
            self._check_steps(label, [times[row] for row in rows], frequency, table, file)
            if not np.isfinite(values[rows]).any(axis=0).all():
                raise DataError(f"{file}: {_place(label)}a value column has no value at all")
        counts = {label: len(rows) for label, rows in parts.items()}
        # Nearly all series shall be long enough; a few that are shorter are left out.
        num_rows = int(np.quantile(list(counts.values()), 0.1, method="lower"))
        lengths = choose_lengths(num_rows, frequency, self.horizon, file)
        notes = []
        if num_missing := int((~np.isfinite(values)).sum()):
            notes.append(f"{num_missing:,} values are missing: they are interpolated.")
        if num_short := sum(count < lengths.min_rows for count in counts.values()):
            notes.append(f"{num_short:,} series have fewer than {lengths.min_rows:,} rows: they are left out.")
        return self._text(path, name, command, lengths, list(counts.values()), notes)

    def _check_steps(self, label: str, times: Sequence[datetime], frequency: Frequency, table: pl.DataFrame, file: str) -> None:
        """Raise DataError unless each time follows the one before by one step."""
        places = [frequency.index(time) for time in times]
        for before, after, i in zip(places, places[1:], range(1, len(places)), strict=False):
            if round(after - before, 6) == 1:
                continue
            pair = f"{_show(times[i - 1])} and {_show(times[i])}"
            place = f"{file}: {_place(label)}"
            if after == before and times[i] == times[i - 1]:
                hint = self._hint_of_series(table)
                raise DataError(f"{place}two rows have the time {_show(times[i])}{hint}")
            if after < before:
                hint = self._hint_of_series(table)
                raise DataError(f"{place}the rows go back in time between {pair}: sort them, the oldest first{hint}")
            fitting = [code for code, other in FREQUENCIES.items() if _is_regular(times, other)]
            if fitting:
                hint = f"the rows are one {FREQUENCIES[fitting[0]].unit} apart, which is --frequency {fitting[0]}"
            else:
                hint = "add the missing rows with empty values, which training interpolates"
            raise DataError(f"{place}{pair} are not one {frequency.unit} apart (--frequency {self.frequency}); {hint}")

    def _hint_of_series(self, table: pl.DataFrame) -> str:
        """Which columns may name the series, where none was given."""
        if self.series is not None:
            return ""
        others = [column for column in table.columns if column not in (self.time, *self.values)]
        named = [column for column in others if not table[column].dtype.is_float()]
        if not named:
            return ""
        option = f"--series {named[0]}" if len(named) == 1 else f"--series, one of {', '.join(named)}"
        return f"; if the file holds several series, give {option}"

    def _text(self, path: str, name: str, command: str, lengths: Lengths, counts: Sequence[int], notes: Sequence[str]) -> str:
        frequency = FREQUENCIES[self.frequency]
        unit, season, horizon = frequency.unit, lengths.season, lengths.horizon
        ahead = f"{', '.join(self.values)}, {_count(horizon, unit)} ahead"
        has_season = season > 1
        rows = f"{min(counts):,}" if min(counts) == max(counts) else f"{min(counts):,} to {max(counts):,}"
        rows = f"{len(counts):,} series of {rows}" if self.series is not None else rows
        recipe = RecipeText()
        recipe.comment(f"{ahead}. {path} holds {rows} rows, one {unit} apart. {' '.join(notes)}".strip())
        recipe.comment(f"Train and publish it: {command}")
        recipe.comment("`--set fit.epochs=5` changes a value for one run. All keys: docs/reference/recipe.md")
        recipe.key("task", "forecast")
        recipe.key("name", name)
        recipe.key("description", ahead)
        recipe.key("licence", "", "of the data; it is published with the model")
        recipe.key("seed", 1)

        recipe.table("[[data.train]]")
        recipe.key("path", path)
        recipe.key("format", "table" if self.series is None else "long")
        if self.series is not None:
            recipe.key("id", self.series)
        recipe.key("time", self.time)
        recipe.key("values", list(self.values))

        recipe.table("[data]")
        num_evaluated = lengths.held_out // horizon
        recipe.comment(
            f"The last {unit}s of each series are held back: {_count(num_evaluated, 'horizon')} to choose the best epoch, and as "
            "many for the scores. More give surer scores, and leave less to learn from."
        )
        recipe.key("validation_length", lengths.held_out)
        recipe.key("test_length", lengths.held_out)
        recipe.key("unit", "", "of the values, for the pictures")

        recipe.table("[forecast]")
        recipe.key("horizon", horizon, f"{unit}s that are forecast")
        recipe.key("context_length", lengths.context, f"{unit}s of history that the model reads at most")
        no_season = "no season, or the series are too short for one"
        why = f"{frequency.season}; the baseline seasonal_naive repeats it" if has_season else no_season
        recipe.key("season_length", season, why)
        recipe.key("min_length", season, f"{unit}s of history that a request needs at least")
        before = f"{frequency.season} earlier" if has_season else "before"
        recipe.key("seasonal_lag", season, f"the network learns what to add to the value {before}; 0: nothing is given")
        if lengths.fold > 1:
            recipe.key("step", lengths.fold, f"one recurrent step reads {frequency.season}, which trains faster; 1: one {unit}")
        recipe.key("frequencies", [self.frequency])
        recipe.key("quantiles", [0.1, 0.5, 0.9], "8 of 10 values shall lie between the outer ones; 0.5 is the forecast")

        recipe.table("[scaling]")
        recipe.key("kind", "window", 'by the level of each history, for series of any size; or "standard", "minmax"')
        if has_season:
            recipe.key("length", season, f"the level is the mean of the last {season} {unit}s")
        recipe.key("transform", "log", 'for values that grow in proportion; or "asinh", "none"')

        recipe.table("[[layers]]")
        recipe.key("type", "lstm", 'or "gru", "simple_rnn"; `compare` trains each of them')
        recipe.key("units", 32, "more for many or long series")
        recipe.table("[[layers]]")
        recipe.key("type", "dropout")
        recipe.key("rate", 0.1)
        recipe.table("[[layers]]")
        recipe.key("type", "dense", "gives the forecast: its units follow from horizon and quantiles")

        recipe.table("[fit]")
        recipe.key("loss", "quantile")
        recipe.key("learning_rate", 0.003)
        recipe.key("clip_norm", 1.0)
        recipe.key("epochs", 30, "at most")
        recipe.key("patience", 6, "epochs without a better validation loss before it stops")
        recipe.key("batch_size", 64)
        recipe.key("steps_per_epoch", 50, "leave it out to read every window in every epoch")

        if sum(counts) * num_evaluated > MAX_VALUES_OF_THETA:
            recipe.table("[evaluate]")
            baselines = ["seasonal_naive" if has_season else "last_value", "linear"]
            recipe.key("baselines", list(baselines), "theta and auto_ets would take minutes on series of this length")
        return str(recipe)


def choose_lengths(num_rows: int, frequency: Frequency, horizon: int | None, file: str = "the series") -> Lengths:
    """Lengths for series of `num_rows`. Raises DataError where they are too short."""
    if num_rows < MIN_ROWS:
        raise DataError(f"{file}: {MIN_ROWS} rows are the fewest to learn from, the series have {num_rows}")
    if horizon is not None and horizon < 1:
        raise DataError(f"--horizon: expected 1 or more, got {horizon}")
    ahead = horizon or max(1, min(frequency.horizon, num_rows // 6))
    # Four seasons and what is held out: enough to see that a season returns.
    season = frequency.season_length if num_rows >= 4 * frequency.season_length + 2 * ahead else 1
    needed = season + 3 * ahead + MIN_WINDOWS - 1
    if num_rows < needed:
        raise DataError(f"{file}: a horizon of {ahead} needs {needed} rows, the series have {num_rows}: give a smaller --horizon")
    num_evaluated = min(MAX_EVALUATED, max(1, num_rows // (10 * ahead)))
    fold = season if frequency.fold and season > 1 else 1
    longest = num_rows - 2 * num_evaluated * ahead - ahead - MIN_WINDOWS + 1
    wanted = max(frequency.num_seasons * frequency.season_length, 2 * ahead) if season > 1 else max(8, 2 * ahead)
    context = max(season, min(wanted, longest) // fold * fold)
    return Lengths(season, ahead, context, num_evaluated * ahead, fold)


def read_times(column: pl.Series, file: str) -> list[datetime]:
    """The times of all rows, without their zone. Raises DataError that names the first which is none."""
    place = f'{file}: column "{column.name}"'
    if column.null_count():
        raise DataError(f"{place}: row {int(column.is_null().arg_true()[0]) + 1} has no time")
    if column.dtype.is_temporal() and column.dtype in (pl.Date, pl.Datetime):
        return [_naive(value) for value in column.to_list()]
    texts = column.cast(pl.String).str.strip_chars()
    times: list[datetime] = []
    for row, text in enumerate(texts.to_list(), start=1):
        try:
            times.append(_parse_time(text))
        except ValueError as exc:
            expected = "2024-01-31, 2024-01-31 13:00, 2024-01 or 2024"
            raise DataError(f"{place}: row {row}: {text!r} is no time; expected ISO 8601, as {expected}") from exc
    return times


def _parse_time(text: str) -> datetime:
    if len(text) == 4 and text.isdigit():
        return datetime(int(text), 1, 1)
    if len(text) == 7 and text[4] in "-/":
        return datetime(int(text[:4]), int(text[5:]), 1)
    return _naive(datetime.fromisoformat(text.replace("/", "-")))


def _naive(value: date | datetime) -> datetime:
    if isinstance(value, datetime):
        # Of zones with summer time the clock jumps, universal time does not.
        return value if value.tzinfo is None else (value - (value.utcoffset() or timedelta())).replace(tzinfo=None)
    return datetime(value.year, value.month, value.day)


def _split_by_series(table: pl.DataFrame, column: str | None, file: str) -> dict[str, list[int]]:
    """Row numbers of each series by its name, in the file's order; one series without a name where there is no column."""
    if column is None:
        return {"": list(range(table.height))}
    if table[column].null_count():
        row = int(table[column].is_null().arg_true()[0]) + 1
        raise DataError(f'{file}: column "{column}": row {row} names no series')
    rows: dict[str, list[int]] = {}
    for row, label in enumerate(table[column].cast(pl.String).to_list()):
        rows.setdefault(label, []).append(row)
    return rows


def _is_regular(times: Sequence[datetime], frequency: Frequency) -> bool:
    places = np.array([frequency.index(time) for time in times])
    return bool(np.allclose(np.diff(places), 1, atol=1e-6))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number > 1)}"


def _place(label: str) -> str:
    return f'series "{label}": ' if label else ""


def _show(time: datetime) -> str:
    return str(time.date()) if time == datetime(time.year, time.month, time.day) else str(time)
