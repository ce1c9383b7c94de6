"""Time series: read from files, cut by time into training, validation and test, and made into windows.

Values stay raw: scaling is part of the network. Nothing here knows torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from training.data.columns import expect_columns, expect_rows
from training.data.covariates import calendar_columns, read_covariates
from training.data.disturbances import disturb
from training.data.sources import Content, DataError, read_table, with_location
from training.data.synthetic import make_series
from training.data.times import TimeError, Times, count_steps, find_step_back, read_times
from training.recipe import ForecastSettings, SeriesData, SeriesSource

Array = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
MOST_FILLED = 10
"""Missing steps that are filled, for each row at most: one wrong year would else make a file of millions."""


@dataclass(frozen=True)
class Series:
    """Series with common features, all values finite. The last `test_length` steps of each are the test part.

    The `validation_length` steps before those are the validation part, everything earlier the training part. `test_lengths` has
    the lengths one by one where they differ. A window's future has `min_future` steps at least (None: the horizon); what is
    missing of the horizon is NaN.
    """

    ids: tuple[str, ...]
    values: tuple[Array, ...]  # each (time, features)
    features: tuple[str, ...]
    targets: tuple[str, ...]
    validation_length: int
    test_length: int
    num_interpolated: int = 0
    num_left_out: int = 0
    contents: tuple[Content, ...] = ()
    times: Times | None = None  # of the steps, where there is one series and a column of dates
    num_missing: int = 0  # steps of the calendar without a row, which were filled or are left out
    first_missing: str = ""  # where the first of them is
    test_lengths: tuple[int, ...] = ()
    min_future: int | None = None
    covariates: tuple[Array, ...] = ()  # each (time, covariates and calendar), where there are any
    moments: tuple[npt.NDArray[np.datetime64], ...] = ()  # of the steps of each series, where there is a calendar
    learns_validation: bool = False  # whether windows of the training part reach to the end of the validation part
    sets: tuple[str, ...] = ()  # per series the name that its file's scores have; empty where no file has one
    further: tuple[Array, ...] = ()  # series to learn from whole, (time, 1) each; neither validated nor tested
    weights: tuple[float, ...] = ()  # how often each of `further` is drawn, the series themselves once each

    @property
    def target_indices(self) -> list[int]:
        """Where the targets stand among the features."""
        return [self.features.index(target) for target in self.targets]

    def test_start(self, index: int) -> int:
        """First step of the test part of series `index`."""
        return len(self.values[index]) - (self.test_lengths[index] if self.test_lengths else self.test_length)

    def training_end(self, index: int) -> int:
        """First step after the training part of series `index`."""
        return self.test_start(index) - self.validation_length

    def learning_end(self, index: int) -> int:
        """First step of series `index` that no training window may hold."""
        return self.test_start(index) if self.learns_validation else self.training_end(index)

    def fewest_ahead(self, forecast: ForecastSettings) -> int:
        """The fewest steps of a window's future."""
        return _fewest_ahead(self.min_future, forecast)

    def training_values(self) -> Array:
        """All training parts one after the other, (steps, features and covariates): what preprocessing is fitted on."""
        ends = [self.learning_end(i) for i in range(len(self.ids))]
        values = np.concatenate([*(values[:end] for values, end in zip(self.values, ends, strict=True)), *self.further])
        if not self.covariates:
            return values
        known = np.concatenate([columns[:end] for columns, end in zip(self.covariates, ends, strict=True)])
        return np.concatenate([values, known], axis=1)

    @property
    def learned(self) -> Series:
        """What training windows are drawn from: the learning parts of the series, and the further ones whole."""
        if not self.further:
            return self
        parts = [values[: self.learning_end(i)] for i, values in enumerate(self.values)]
        return replace(
            self,
            values=(*parts, *self.further),
            further=(),
            weights=(*(1.0 for _ in parts), *self.weights),
            ids=(*self.ids, *(f"further {number}" for number in range(len(self.further)))),
            test_length=0,
            validation_length=0,
            test_lengths=(),
        )

    def __repr__(self) -> str:
        steps = sum(map(len, self.values))
        return f"Series({len(self.ids)} series, {steps:,} steps, targets {list(self.targets)})"


@dataclass(frozen=True)
class Windows:
    """A batch of windows: histories padded with zeros at the end, and the future of each, NaN where there is none.

    Of covariates, those of the history's steps and of the future's; behind the end of a series its last ones are repeated.
    """

    history: Float32  # (B, T, F)
    lengths: Int64  # (B,)
    future: Float32  # (B, horizon, targets)
    past_covariates: Float32 | None = None  # (B, T, C)
    future_covariates: Float32 | None = None  # (B, horizon, C)

    @property
    def inputs(self) -> dict[str, Float32 | Int64]:
        """What the graph reads of them, by the names of its inputs."""
        inputs: dict[str, Float32 | Int64] = {"history": self.history, "lengths": self.lengths}
        if self.past_covariates is not None and self.future_covariates is not None:
            inputs |= {"past_covariates": self.past_covariates, "future_covariates": self.future_covariates}
        return inputs

    def __len__(self) -> int:
        return len(self.lengths)

    def rows(self, part: slice) -> Windows:
        """Some of the rows, padded no further than they need."""
        lengths = self.lengths[part]
        longest = lengths.max()
        past = None if self.past_covariates is None else self.past_covariates[part, :longest]
        future = None if self.future_covariates is None else self.future_covariates[part]
        return Windows(self.history[part, :longest], lengths, self.future[part], past, future)


def read_series(data: SeriesData, forecast: ForecastSettings, folder: Path | None, *, seed: int = 0) -> Series:
    """The series of a recipe, synthetic ones by `seed`. Series too short for one training window are left out and counted.

    Raises DataError: a missing file or column, a value that is no number, or nothing long enough to learn from.
    """
    contents: list[Content] = []
    found = _read_files(data, forecast, folder, contents)
    features, test_lengths, times = found.features, found.test_lengths, found.times
    test_length, validation_length = _part_lengths(data, forecast, found)
    whole = {key: np.concatenate(arrays) for key, arrays in found.parts.items()}
    long_enough = _long_enough(data, forecast, whole, test_lengths, test_length, validation_length)
    if (data.further or data.synthetic) and len(features) > 1:
        raise DataError(f"needs series of one feature, got {list(features)}", location=("data", "further"))
    further = [*_read_further(data, forecast, folder, contents), *_make_synthetic(data, forecast, seed)]
    fewest = forecast.shortest + _fewest_ahead(data.min_future, forecast)
    further = [(values, weight) for values, weight in further if len(values) >= fewest]
    targets = tuple(data.targets) or features
    num_features, has_known_future = len(features), forecast.has_known_future
    for target in targets:
        if target not in features:
            raise DataError(f'target "{target}" is not among the features {list(features)}', location=("data", "targets"))
    return Series(
        ids=tuple(long_enough),
        values=tuple(values[:, :num_features] for values in long_enough.values()),
        covariates=tuple(values[:, num_features:] for values in long_enough.values()) if has_known_future else (),
        moments=tuple(moments for key in long_enough if (moments := _dates(times[key])) is not None) if forecast.calendar else (),
        features=features,
        targets=targets,
        validation_length=validation_length,
        test_length=test_length,
        num_interpolated=found.num_interpolated,
        num_left_out=len(whole) - len(long_enough),
        contents=tuple(contents),
        times=_dates(next(iter(times.values()))) if len(whole) == 1 else None,
        num_missing=found.num_missing,
        first_missing=found.first_missing,
        test_lengths=tuple(test_lengths[key] for key in long_enough) if len(set(test_lengths.values())) > 1 else (),
        min_future=data.min_future,
        learns_validation=data.train_on_validation,
        sets=tuple(found.sets[key] for key in long_enough) if any(found.sets.values()) else (),
        further=tuple(values for values, _ in further),
        weights=tuple(weight for _, weight in further),
    )


def _read_files(data: SeriesData, forecast: ForecastSettings, folder: Path | None, contents: list[Content]) -> _Found:
    """The series of the training and test files, whose contents are added to `contents`. Raises DataError."""
    result = _Found()
    excluded = {key for source in data.train for key in source.exclude}
    for role, sources in (("train", data.train), ("test", data.test)):
        for number, source in enumerate(sources):
            location = ("data", role, number)
            with with_location(*location):
                table, name = read_table(source, folder, contents)
                found, columns = _arrays(table if data.rows is None else table.head(data.rows), source, name, data, forecast)
            if result.features and columns != result.features:
                message = f"{name}: has the features {list(columns)}, the other files {list(result.features)}"
                raise DataError(message, location=location)
            result.features = columns
            for key, rows in found.items():
                if key in excluded:
                    continue
                with with_location(*location):
                    _expect_later(result.times.get(key, []), rows.times, f'{name}: series "{key}"')
                if role == "test" and key not in result.parts:
                    raise DataError(f'{name}: series "{key}" is not in the training files', location=location)
                num_steps = result.add(key, rows, source.name)
                if role == "test":
                    result.test_lengths[key] = result.test_lengths.get(key, 0) + num_steps
    return result


def _part_lengths(data: SeriesData, forecast: ForecastSettings, found: _Found) -> tuple[int, int]:
    """Steps of the test part, the longest where they differ, and of the validation part. Raises DataError: too few."""
    test_lengths = found.test_lengths
    if test_lengths:
        missing_ids = [key for key in found.parts if key not in test_lengths]
        if missing_ids:
            raise DataError(f'series "{missing_ids[0]}" is in the training files, but not in the test files')
        if len({max(length, forecast.horizon) for length in test_lengths.values()}) > 1 or (
            len(set(test_lengths.values())) > 1 and data.min_future is None
        ):
            shortest = min(test_lengths, key=test_lengths.__getitem__)
            raise DataError(f'the test parts differ in length: series "{shortest}" has {test_lengths[shortest]} values')
    test_length = max(test_lengths.values(), default=data.test_length or forecast.horizon)
    validation_length = data.validation_length or forecast.horizon
    fewest = _fewest_ahead(data.min_future, forecast)
    for part, length in (("test", min(test_lengths.values(), default=test_length)), ("validation", validation_length)):
        if length < fewest:
            needs = (
                f"the horizon {forecast.horizon} needs as many at least" if data.min_future is None else f"{fewest} are needed"
            )
            raise DataError(f"the {part} part has {length} steps, {needs}", location=("forecast", "horizon"))
    return test_length, validation_length


def _long_enough(
    data: SeriesData,
    forecast: ForecastSettings,
    whole: Mapping[str, Array],
    test_lengths: Mapping[str, int],
    test_length: int,
    validation_length: int,
) -> dict[str, Array]:
    """The series that have a training window before their held-back parts. Raises DataError where none has."""
    fewest = _fewest_ahead(data.min_future, forecast)
    held_back = 0 if data.train_on_validation else validation_length
    before_test = forecast.shortest + fewest + held_back
    found = {key: values for key, values in whole.items() if len(values) - test_lengths.get(key, test_length) >= before_test}
    if not found:
        longest = max(whole, key=lambda key: len(whole[key]))
        needed = before_test + test_length
        raise DataError(
            f'no series is long enough: the longest, "{longest}", has {len(whole[longest])} steps; {needed} are needed '
            f"(history {forecast.shortest} + horizon {fewest} to learn from, validation {held_back}, test {test_length})",
            location=("forecast", "context_length" if forecast.min_length is None else "min_length"),
        )
    return found


def _fewest_ahead(min_future: int | None, forecast: ForecastSettings) -> int:
    """The fewest steps of a window's future."""
    return forecast.horizon if min_future is None else min(min_future, forecast.horizon)


def _read_further(
    data: SeriesData, forecast: ForecastSettings, folder: Path | None, contents: list[Content]
) -> list[tuple[Array, float]]:
    """The series of `data.further`, (time, 1) each, with their weights. Raises DataError."""
    series: list[tuple[Array, float]] = []
    for number, source in enumerate(data.further):
        with with_location("data", "further", number):
            table, name = read_table(source, folder, contents)
            found, _ = _arrays(table if source.rows is None else table.head(source.rows), source, name, data, forecast)
            for rows in found.values():
                filled, _ = interpolate(rows.values)
                whole = filled[: len(filled) // source.mean_of * source.mean_of]
                means = whole.reshape(-1, source.mean_of, whole.shape[1]).mean(1)
                series += [(column[:, None], source.weight) for column in means.T]
    return series


def _make_synthetic(data: SeriesData, forecast: ForecastSettings, seed: int) -> list[tuple[Array, float]]:
    """The series of `data.synthetic`, (time, 1) each, as long as a whole window and three seasons, with their weights."""
    rng = np.random.default_rng([seed, len(data.synthetic)])
    length = forecast.context_length + forecast.horizon + 3 * forecast.season_length
    return [
        (make_series(source.kind, length, forecast.season_length, rng)[:, None], source.weight)
        for source in data.synthetic
        for _ in range(source.count)
    ]


def describe_calendar(series: Series, missing_steps: str) -> list[str]:
    """What a run prints of steps that have no row; nothing where each has one."""
    if not series.num_missing:
        return []
    how = "were filled" if missing_steps == "fill" else 'are left out (data.missing_steps = "fill" fills them)'
    return [f"{series.num_missing:,} steps of the calendar have no row and {how}: {series.first_missing}"]


def interpolate(values: Array) -> tuple[Array, int]:
    """Fill gaps (NaN) linearly, the ends with the nearest value; also how many values were filled.

    Raises DataError if a column has no value at all.
    """
    missing = ~np.isfinite(values)
    count = int(missing.sum())
    if not count:
        return values, 0
    filled = values.copy()
    steps = np.arange(len(values))
    for column in range(values.shape[1]):
        gaps = missing[:, column]
        if gaps.all():
            raise DataError(f"column {column} of a series has no value at all")
        filled[gaps, column] = np.interp(steps[gaps], steps[~gaps], values[~gaps, column])
    return filled, count


def sample_windows(
    series: Series,
    forecast: ForecastSettings,
    *,
    batch_size: int,
    num_batches: int | None,
    short_share: float,
    rng: np.random.Generator,
    short_lengths: Literal["uniform", "log"] = "uniform",
    disturbed_share: float = 0.0,
) -> Iterator[Windows]:
    """Batches of random windows of the training parts: a random series (by weight), a random place in it.

    A share of the histories is cut to a random shorter length, so that the network meets short ones, and a share of them is
    disturbed (`disturbances.py`). With `num_batches` None, every place is taken once, in random order.
    """
    series = series.learned
    flat, starts = _flatten(series)
    first, last, ends = _training_bounds(series, forecast, starts)
    if num_batches is None:
        order = rng.permutation(_places(first, last))
        batches = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
    else:
        shares = np.array(series.weights) / sum(series.weights)
        batches = []
        for _ in range(num_batches):
            chosen = (
                rng.choice(len(starts), batch_size, p=shares) if series.weights else rng.integers(len(starts), size=batch_size)
            )
            batches.append(np.stack([chosen, rng.integers(first[chosen], last[chosen] + 1)], axis=1))
    for batch in batches:
        chosen, origins = batch[:, 0], batch[:, 1]
        lengths = np.minimum(origins - starts[chosen], forecast.context_length)
        is_short = rng.random(len(lengths)) < short_share
        shorter = rng.integers(forecast.shortest, lengths + 1)
        if short_lengths == "log":
            shorter = np.exp(rng.uniform(np.log(forecast.shortest), np.log(lengths + 1))).astype(np.int64)
        lengths = np.where(is_short, shorter.clip(forecast.shortest, lengths), lengths)
        windows = _gather(series, flat, origins, lengths, ends[chosen], forecast.horizon)
        if disturbed_share:
            disturb(
                windows.history,
                lengths,
                windows.future,
                share=disturbed_share,
                season_length=forecast.season_length,
                rng=rng,
            )
        yield windows


def windows_in_order(series: Series, forecast: ForecastSettings, *, batch_size: int) -> Iterator[Windows]:
    """Batches of all training windows in time order, one step apart, series after series; the last may be smaller."""
    series = series.learned
    flat, starts = _flatten(series)
    first, last, ends = _training_bounds(series, forecast, starts)
    order = _places(first, last)
    for at in range(0, len(order), batch_size):
        chosen, origins = order[at : at + batch_size].T
        lengths = np.minimum(origins - starts[chosen], forecast.context_length)
        yield _gather(series, flat, origins, lengths, ends[chosen], forecast.horizon)


def num_windows(series: Series, forecast: ForecastSettings) -> int:
    """Places of training windows in all series."""
    series = series.learned
    ends = (series.learning_end(i) for i in range(len(series.ids)))
    return sum(end - series.fewest_ahead(forecast) - forecast.shortest + 1 for end in ends)


def evaluation_windows(series: Series, forecast: ForecastSettings, part: str, stride: int | None = None) -> Windows:
    """The windows whose futures tile the validation or test part, `stride` (default one horizon) apart.

    Rows are ordered by series, then by time; histories may reach back into earlier parts, as they do in real use. A part that is
    shorter than the horizon has one window. Series of which too little precedes the validation part have none there.
    """
    flat, starts = _flatten(series)
    origins: list[int] = []
    lengths: list[int] = []
    ends: list[int] = []
    for i, start in enumerate(starts):
        begin, end = series.test_start(i), len(series.values[i])
        if part == "validation":
            begin, end = series.training_end(i), begin
            if begin < forecast.shortest:
                continue
        for origin in _origins(begin, end, forecast, stride):
            origins.append(start + origin)
            lengths.append(min(origin, forecast.context_length))
            ends.append(start + end)
    if not origins:
        message = f"no series has {forecast.shortest} steps before the {part} part"
        raise DataError(message, location=("data", "validation_length"))
    return _gather(series, flat, np.array(origins), np.array(lengths), np.array(ends), forecast.horizon)


def evaluation_origins(series: Series, forecast: ForecastSettings, stride: int | None = None) -> list[tuple[int, int]]:
    """(series index, first step forecast) of each test window, in the order of `evaluation_windows`."""
    return [
        (i, origin)
        for i, values in enumerate(series.values)
        for origin in _origins(series.test_start(i), len(values), forecast, stride)
    ]


def known_futures(series: Series, forecast: ForecastSettings, stride: int | None = None) -> Array:
    """The targets behind each origin of `evaluation_origins`, as they stand in the files: (N, horizon, targets), NaN beyond."""
    origins = evaluation_origins(series, forecast, stride)
    futures = np.full((len(origins), forecast.horizon, len(series.targets)), np.nan)
    for row, (index, origin) in enumerate(origins):
        found = series.values[index][origin : origin + forecast.horizon, series.target_indices]
        futures[row, : len(found)] = found
    return futures


def _origins(begin: int, end: int, forecast: ForecastSettings, stride: int | None) -> range:
    """The first steps of the futures that tile a part; one where the part is shorter than the horizon."""
    return range(begin, max(end - forecast.horizon, begin) + 1, stride or forecast.horizon)


class _Flat(NamedTuple):
    """All series one behind the other."""

    values: Float32  # (steps, features)
    covariates: Float32 | None  # (steps, covariates)


def _flatten(series: Series) -> tuple[_Flat, Int64]:
    """All series, and where each begins."""
    lengths = np.array([len(values) for values in series.values], dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    covariates = np.concatenate(series.covariates).astype(np.float32) if series.covariates else None
    return _Flat(np.concatenate(series.values).astype(np.float32), covariates), starts


def _training_bounds(series: Series, forecast: ForecastSettings, starts: Int64) -> tuple[Int64, Int64, Int64]:
    """First and last place of a training future in each series, and where it must end, counted over all series."""
    ends = starts + np.array([series.learning_end(i) for i in range(len(series.ids))])
    return starts + forecast.shortest, ends - series.fewest_ahead(forecast), ends


def _places(first: Int64, last: Int64) -> Int64:
    """(series index, place) of every window, (N, 2), in order."""
    places = [(i, origin) for i in range(len(first)) for origin in range(first[i], last[i] + 1)]
    return np.array(places, dtype=np.int64)


def _gather(series: Series, flat: _Flat, origins: Int64, lengths: Int64, ends: Int64, horizon: int) -> Windows:
    """Cut the histories that end before `origins` and the futures that begin there, and know nothing from `ends` on."""
    steps = np.arange(lengths.max())
    is_real = steps[None, :] < lengths[:, None]  # (B, T)
    places = np.where(is_real, (origins - lengths)[:, None] + steps[None, :], 0)
    history = flat.values[places]  # (B, T, F)
    history[~is_real] = 0.0
    ahead = origins[:, None] + np.arange(horizon)[None, :]
    is_known = ahead < ends[:, None]
    future = flat.values[np.where(is_known, ahead, 0)][:, :, series.target_indices]  # (B, horizon, targets)
    future[~is_known] = np.nan
    if flat.covariates is None:
        return Windows(history, lengths.astype(np.int64), future)
    past_covariates = flat.covariates[places]  # (B, T, C)
    past_covariates[~is_real] = 0.0
    future_covariates = flat.covariates[np.minimum(ahead, ends[:, None] - 1)]  # (B, horizon, C)
    return Windows(history, lengths.astype(np.int64), future, past_covariates, future_covariates)


_AnyTimes = Times | npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Rows:
    """The rows of one series in one file, in their order, and the steps of its calendar that have none."""

    values: Array  # (time, features), NaN where a value is missing
    times: _AnyTimes | None = None
    num_missing: int = 0
    first_missing: str = ""


@dataclass
class _Found:
    """What was read of the files of a recipe, by the names of the series."""

    features: tuple[str, ...] = ()
    parts: dict[str, list[Array]] = field(default_factory=dict)
    """(time, features and covariates) of each file that has some of a series, without gaps, in the order of the files."""
    times: dict[str, list[_AnyTimes | None]] = field(default_factory=dict)
    test_lengths: dict[str, int] = field(default_factory=dict)
    """Steps in the test files; empty where there are none."""
    sets: dict[str, str] = field(default_factory=dict)
    num_interpolated: int = 0
    num_missing: int = 0
    first_missing: str = ""

    def add(self, key: str, rows: _Rows, set_name: str) -> int:
        """A further file's rows of a series; returns how many steps they are."""
        filled, num_interpolated = interpolate(rows.values)
        self.sets.setdefault(key, set_name)
        self.parts.setdefault(key, []).append(filled)
        self.times.setdefault(key, []).append(rows.times)
        self.num_interpolated += num_interpolated
        self.num_missing += rows.num_missing
        self.first_missing = self.first_missing or rows.first_missing
        return len(filled)


def _dates(parts: Sequence[_AnyTimes | None]) -> Times | None:
    """The times of a series' files as one array; None if they are no dates, or not of every step."""
    if any(part is None or not np.issubdtype(part.dtype, np.datetime64) or np.isnan(part).any() for part in parts):
        return None
    times: Times = np.concatenate([part for part in parts if part is not None])
    return times


def _expect_later(before: Sequence[_AnyTimes | None], times: _AnyTimes | None, name: str) -> None:
    """Raise DataError where a file of a series begins before the end of the one that it continues."""
    last = before[-1] if before else None
    if last is None or times is None or last.dtype != times.dtype or not len(last) or not len(times):
        return
    begin: Any = np.nanmin(times)
    end: Any = np.nanmax(last)
    if end > begin:
        raise DataError(f"{name}: begins at {_show(begin)}, the file before it ends at {_show(end)}")


def _arrays(
    table: pl.DataFrame, source: SeriesSource, name: str, data: SeriesData, forecast: ForecastSettings
) -> tuple[dict[str, _Rows], tuple[str, ...]]:
    """Each series of a table, with what is known of its steps, and the features' names."""
    expect_rows(table, name)
    kind = source.format if source.format != "auto" else _guess(table, source)
    if kind == "wide":
        if forecast.has_known_future:
            raise DataError(f"{name}: is wide, one series per row: it has no columns for covariates and times", option="format")
        matrix = numbers(table.select(table.columns[1:]), name)
        rows = {}
        for key, row in zip(table.to_series(0).cast(pl.String).to_list(), matrix, strict=True):
            present = np.flatnonzero(np.isfinite(row))
            if len(present) == 0:
                raise DataError(f'{name}: series "{key}" has no values')
            rows[key] = _Rows(row[: present[-1] + 1, None])
        return rows, ("y",)
    if kind == "long":
        columns = source.values or ["y"]
        expect_columns(table, [source.id], name, "id")
        expect_columns(table, columns, name, "values")
        found = {}
        for part in table.partition_by(source.id, maintain_order=True):
            key = str(part[source.id][0])
            found[key] = _with_known(part, columns, source, f'{name}: series "{key}"', name, data, forecast)
        return found, tuple(columns)
    others = {source.time, *forecast.covariates}
    columns = source.values or [c for c in table.columns if c not in others and table[c].dtype.is_numeric()]
    expect_columns(table, columns, name, "values")
    if not columns:
        raise DataError(f"{name}: has no column of numbers; there are {table.columns}")
    return {Path(name).name.split(".")[0]: _with_known(table, columns, source, name, name, data, forecast)}, tuple(columns)


def _with_known(
    table: pl.DataFrame,
    columns: Sequence[str],
    source: SeriesSource,
    place: str,
    name: str,
    data: SeriesData,
    forecast: ForecastSettings,
) -> _Rows:
    """The rows of one series, behind the features its covariates and what the calendar says. Raises DataError."""
    both = [column for column in columns if column in forecast.covariates]
    if both:
        raise DataError(f'{name}: column "{both[0]}" is a value and a covariate', location=("forecast", "covariates"))
    known = read_covariates(table, forecast.covariates, forecast.categories, name)
    rows = _rows_in_order(table, [*table.select(columns), *known], source, place, name, data.missing_steps)
    values = rows.values.copy()
    for number, covariate in enumerate(forecast.covariates, len(columns)):
        if covariate in forecast.categories:  # a step that was filled has the text of the one before it
            values[:, number] = pl.Series(values[:, number]).fill_nan(None).forward_fill().to_numpy()
    rows = replace(rows, values=values)
    if not forecast.calendar:
        return rows
    times = _dates([rows.times])
    if times is None:
        message = f'{place}: column "{source.time}" is not a date and time in every row, which the calendar is taken from'
        raise DataError(message, option="time")
    return replace(rows, values=np.concatenate([rows.values, calendar_columns(times, forecast.calendar)], axis=1))


def _rows_in_order(
    table: pl.DataFrame, columns: Sequence[pl.Series], source: SeriesSource, place: str, name: str, missing_steps: str
) -> _Rows:
    """The rows of one series. Raises DataError: they go back in time, or lack steps of the calendar that may not be missing."""
    values = numbers(pl.DataFrame(columns), name)
    column = _time_column(table, source, name)
    if column is None:
        return _Rows(values)
    where = f'{place}: column "{column}"'
    try:
        times = read_times(table[column], source.time_format)
    except TimeError as exc:
        hint = 'give the form of its times, as time_format = "%d %B %Y", or time = "" where the rows are in order without one'
        raise DataError(f"{place}: {exc}; {hint}", option="time_format" if source.time_format else "time") from exc
    if times is None:
        return _Rows(values)
    row = find_step_back(times)
    if row is not None:
        texts = table[column]
        before = next(texts[i] for i in range(row - 1, -1, -1) if texts[i] is not None)
        hint = "" if source.time == column else f'. If "{column}" is not the time, name the column that is, or give time = ""'
        message = f"{where} goes back in time, from {before} to {texts[row]}: sort the rows, the oldest first{hint}"
        raise DataError(message, option="time")
    calendar = count_steps(times)
    missing = np.zeros(len(times), np.int64) if calendar is None else calendar.missing
    total = int(missing.sum())
    if calendar is None or not total:
        return _Rows(values, times)
    row = int(np.flatnonzero(missing)[0])
    first = f"{place}: {int(missing[row]):,} between {_show(times[row - 1])} and {_show(times[row])}"
    if missing_steps == "refuse":
        raise DataError(
            f"{where}: {total:,} steps of one {calendar.name} are missing; {first}", location=("data", "missing_steps")
        )
    if missing_steps == "report":
        return _Rows(values, times, total, first)
    if total > MOST_FILLED * len(times):
        raise DataError(
            f"{where}: {total:,} steps of one {calendar.name} are missing, more than can be filled between {len(times):,} rows; "
            f"{first}",
            location=("data", "missing_steps"),
        )
    rows = np.arange(len(times)) + np.cumsum(missing)
    filled = np.full((len(times) + total, values.shape[1]), np.nan)
    filled[rows] = values
    return _Rows(filled, _times_between(times, rows, len(filled)), total, first)


def _times_between(times: _AnyTimes, rows: Int64, num_rows: int) -> _AnyTimes:
    """The times of all rows, where those at `rows` are known: others stand evenly between them."""
    steps = np.arange(num_rows)
    start = times[0]
    passed = np.interp(steps, rows, (times - start).astype(np.float64))
    if np.issubdtype(times.dtype, np.datetime64):
        found: _AnyTimes = start + np.rint(passed).astype(np.int64).astype("timedelta64[us]")
        return found
    return np.asarray(start + passed)


def _time_column(table: pl.DataFrame, source: SeriesSource, name: str) -> str | None:
    """The column of times: the source's own, or where that is not named the first of dates; None where there is none."""
    if not source.time:
        return None
    if source.time in table.columns or "time" in source.model_fields_set:
        expect_columns(table, [source.time], name, "time")
        return source.time
    for column in table:
        if column.dtype in (pl.Date, pl.Datetime):
            return column.name
        if column.dtype == pl.String:
            try:
                if read_times(column) is not None:
                    return column.name
            except TimeError:
                continue
    return None


def _show(time: np.datetime64 | np.float64) -> str:
    if isinstance(time, np.datetime64):
        return str(time.astype("datetime64[s]")).replace("T00:00:00", "").replace("T", " ")
    return f"{time:g}"


def _guess(table: pl.DataFrame, source: SeriesSource) -> str:
    if source.id in table.columns and set(source.values or ["y"]) <= set(table.columns):
        return "long"
    is_wide = not source.values and table.width > 30 and not table.to_series(0).dtype.is_numeric()
    return "wide" if is_wide else "table"


def numbers(table: pl.DataFrame, name: str) -> Array:
    """All columns as float64, missing values as NaN. Raises DataError naming the column and the value that is no number."""
    try:
        return table.cast(pl.Float64, strict=True).fill_null(float("nan")).to_numpy()
    except pl.exceptions.PolarsError:
        for column in table:
            bad = column.filter(column.is_not_null() & column.cast(pl.Float64, strict=False).is_null())
            if len(bad):
                raise DataError(f'{name}: column "{column.name}": {bad[0]!r} is not a number', option="values") from None
        raise
