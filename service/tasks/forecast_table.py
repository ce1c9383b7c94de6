"""Series in the long form ↔ histories and forecasts: columns `unique_id`, `ds`, `y`, a row per step, series by series. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np

from service.errors import InvalidInput
from service.runtime.tensors import Array, Item, Tensors, is_all_finite
from service.tasks.forecast_request import MAX_HISTORY_VALUES, RequestDefaults
from service.tasks.forecast_spec import ForecastSpec
from service.tasks.frequencies import MONTHS, SECONDS, Frequency, is_one_step, step_times
from service.tasks.tables import (
    Chunk,
    Columns,
    Group,
    Moments,
    Reading,
    Record,
    Rejection,
    Repeated,
    TableError,
    TableForm,
    TableOptions,
    TimeUnit,
    name_columns,
)

ID, TIME, VALUE = "unique_id", "ds", "y"
DAY_US = 86_400_000_000
SMALLEST_MERGE = 2
"""A sorted part of the ids that were seen is merged with the next one where it is not so many times as large."""

Run = Callable[["Histories", RequestDefaults, Group], Generator[list[Item], list[Tensors], Any]]


class Series(NamedTuple):
    """What becomes a record: a checked history, and where its times lead."""

    values: Array
    """FP32 (rows, F): of many series, as they stand in a file, or of this one alone."""
    start: int
    end: int
    """Its history, as far as the network reads it, in `values`."""
    first_us: int
    num_steps: int
    """As the file has them."""
    is_at_end: bool


class Histories:
    """Checked histories without gaps, each a part of an array; most lie side by side in one."""

    def __init__(self, series: Sequence[Series]) -> None:
        self._values = [each.values for each in series]
        self._starts = np.array([each.start for each in series], np.int64)
        self._lengths = np.array([each.end - each.start for each in series], np.int64)
        self._has_one_array = len(set(map(id, self._values))) == 1

    def __len__(self) -> int:
        return len(self._values)

    @property
    def lengths(self) -> list[int]:
        """Of each, in steps."""
        found: list[int] = self._lengths.tolist()
        return found

    def each(self) -> list[Array]:
        """One by one, FP32 (T, F)."""
        bounds = zip(self._values, self._starts.tolist(), self._lengths.tolist(), strict=True)
        return [values[start : start + length] for values, start, length in bounds]

    def stack(self, indices: Sequence[int]) -> tuple[Array, Array]:
        """These ones as FP32 (B, T, F), zeros behind those that are shorter, and their lengths INT64 (B)."""
        places = np.array(indices, np.int64)
        starts, lengths = self._starts[places], self._lengths[places]
        longest = int(lengths.max())
        values = self._values[indices[0]]
        if self._has_one_array and int(lengths.min()) == longest:
            # Series of one length that follow each other, with what the network does not read between them, are a view.
            strides = np.diff(starts)
            stride = int(strides[0]) if len(strides) else longest
            first, num = int(starts[0]) + longest - stride, len(indices)
            if stride >= longest and first >= 0 and (strides == stride).all():
                stacked = values[first : first + num * stride].reshape(num, stride, values.shape[1])
                return np.ascontiguousarray(stacked[:, stride - longest :]), lengths
        padded = np.zeros((len(indices), longest, values.shape[1]), np.float32)
        bounds = zip(padded, indices, starts.tolist(), lengths.tolist(), strict=True)
        for row, index, start, length in bounds:
            row[:length] = self._values[index][start : start + length]
        return padded, lengths


class _Bounds(NamedTuple):
    """The series of a chunk, each INT64 (N) but the names: where they begin and end in it, and the numbers of these rows."""

    keys: Sequence[str | None]
    starts: Array
    ends: Array
    rows: Array
    behind: Array


def _row_of(record: Record) -> int:
    return record.row


@dataclass
class _Open:
    """A series whose last row may be still to come."""

    key: str | None
    row: int
    end: int
    values: list[Array]
    times: list[Array]
    num_steps: int
    problem: str | None
    has_gaps: bool


class LongForm(TableForm):
    """All rows of a series stand together, in the order of their times, a step of the frequency apart.

    A series that is not regular, or holds what is no number, is rejected with its first such row; a series whose rows do not
    stand together refuses the file, for what was read of it first was only a part.
    """

    def __init__(
        self,
        spec: ForecastSpec,
        defaults: RequestDefaults,
        options: TableOptions,
        run: Run,
        at_levels: Callable[[Array, tuple[float, ...], bool], Array],
    ) -> None:
        """`run` and `at_levels` are the task's. Raises TableError for columns without a use, and for a model of covariates.

        A file of series ends with their histories: it has no rows for what is known of the steps that are forecast.
        """
        if spec.num_known:
            known = ", ".join([*spec.covariates, *spec.calendar])
            raise TableError(
                f"the model reads what is known ahead ({known[:200]}), for which a file of series has no place: ask a server"
            )
        if options.keep:
            raise TableError("a forecast has rows of its own: there is nothing to keep of the rows of its history")
        self._features = (VALUE,) if len(spec.features) == 1 else tuple(spec.features)
        names = name_columns((ID, TIME, *self._features), options)
        self._id, self._time = names[ID], names[TIME]
        self._values = tuple(names[feature] for feature in self._features)
        self._targets = tuple(spec.targets)
        self._defaults, self._run, self._at_levels = defaults, run, at_levels
        self._unit: TimeUnit | None = None
        self._open: _Open | None = None
        self._seen = SeenKeys()

    @property
    def needed(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self._id, self._time, *self._values)))

    @property
    def runs(self) -> frozenset[str]:
        return frozenset((self._id,))

    @property
    def numeric(self) -> frozenset[str]:
        return frozenset(self._values)

    @property
    def unfinished_row(self) -> int | None:
        return None if self._open is None else self._open.row

    def read(self, chunk: Chunk) -> Reading:
        reading = Reading([], [])
        starts, keys = chunk.runs(self._id)
        rows = chunk.rows
        if not len(rows):
            return reading
        times, problems = self._read_times(chunk)
        values, is_missing = self._read_values(chunk, problems)
        is_continued = self._open is not None and keys[0] == self._open.key
        if not is_continued:
            self._close(reading)
        repeated = self._seen.add(keys[1:] if is_continued else keys)
        if repeated is not None:
            place = int(starts[len(keys) - 1 - keys[::-1].index(repeated)])
            raise TableError(
                f'row {rows[place]}: series "{repeated[:60]}" was there before: sort the file by {self._id} and {self._time}'
            )
        self._find_irregular(times, starts, problems, is_continued=is_continued)
        ends = np.append(starts[1:], len(rows))
        bounds = _Bounds(keys, starts, ends, rows[starts], rows[ends - 1] + 1)
        has_gaps = np.zeros(len(starts), np.bool_) if is_missing is None else np.logical_or.reduceat(is_missing, starts)
        is_plain = self._find_plain(bounds, has_gaps, problems)
        is_plain[-1] = False  # the last may go on in the next chunk
        is_plain[0] &= not is_continued
        reading.records.extend(self._make_records(bounds, is_plain, values, times))
        places = np.array(sorted(problems), np.int64)
        for index in np.flatnonzero(~is_plain).tolist():
            start, end, row, behind = (int(each[index]) for each in bounds[1:])
            has_gap, problem = bool(has_gaps[index]), None
            first = int(np.searchsorted(places, start))
            if first < len(places) and places[first] < end:
                problem = f"row {rows[places[first]]}: {problems[int(places[first])]}"
            if start == 0 and is_continued:
                self._extend(values[start:end], times[start:end], behind, problem, has_gap)
                if end < len(rows):
                    self._close(reading)
            elif end < len(rows):
                self._complete(reading, keys[index], row, behind, values[start:end], times[start:end], problem, has_gap)
            else:
                # Of its own: a view would keep the whole chunk.
                parts = [values[start:end].copy()], [times[start:end].copy()]
                self._open = _Open(keys[index], row, behind, *parts, end - start, problem, has_gap)
        reading.records.sort(key=_row_of)
        return reading

    def finish(self) -> Reading:
        reading = Reading([], [])
        self._close(reading)
        return reading

    def run_steps(self, records: Sequence[Record], group: Group) -> Generator[list[Item], list[Tensors], Any]:
        """The predictions are an array FP32 (N, 1 + Q, horizon or more), or (N, 1 + Q, horizon or more, targets)."""
        return (yield from self._run(Histories([record.payload for record in records]), self._defaults, group))

    def write(self, records: Sequence[Record], predictions: Sequence[Any]) -> Columns:
        horizon, levels = self._defaults.horizon, self._defaults.levels
        found = predictions if isinstance(predictions, np.ndarray) else np.stack(predictions)
        whole = self._at_levels(found.swapaxes(0, 1)[:, :, :horizon], levels, self._defaults.is_mape)  # (1 + Q, N, horizon)
        assert self._unit is not None
        keys = [record.key or "" for record in records]
        columns: Columns = {self._id: Repeated(keys, horizon), self._time: Moments(self._future(records, horizon), self._unit)}
        for name, part in zip(("forecast", *(f"q{level:.12g}" for level in levels)), whole, strict=True):
            if len(self._targets) == 1:
                columns[name] = part.reshape(-1)
            else:
                columns |= {f"{name}({target})": part[..., place].reshape(-1) for place, target in enumerate(self._targets)}
        return columns

    def _read_times(self, chunk: Chunk) -> tuple[Array, dict[int, str]]:
        """Times in microseconds, or steps where they are integers, and what is wrong by place."""
        values, unit, misfits = chunk.times(self._time)
        if self._unit is None:
            self._unit = unit
            if unit.kind != "integer":
                self._expect_frequency(unit)
        elif unit != self._unit:
            raise TableError(f'column "{self._time}" holds times of several kinds: {self._unit} and {unit}')
        problems = {place: f"{self._time}: expected a time, got {shown}" for place, shown in misfits.items()}
        return values * DAY_US if unit.kind == "date" else values, problems

    def _expect_frequency(self, unit: TimeUnit) -> Frequency:
        frequency = self._defaults.usual_frequency
        if frequency is None:
            raise TableError("frequency: expected as a parameter, such as H or D, for the model has several or none")
        if unit.kind == "date" and not frequency.is_whole_days:
            raise TableError(f'column "{self._time}" holds dates, steps of the frequency {frequency} lie within a day')
        if frequency.code in MONTHS and unit.zone not in (None, "UTC"):
            raise TableError(f'column "{self._time}": steps of months need times in UTC or without a zone, got {unit.zone}')
        return frequency

    def _read_values(self, chunk: Chunk, problems: dict[int, str]) -> tuple[Array, Array | None]:
        """Values FP32 (N, F), NaN where there is none, and where that is, None: nowhere; adds what is wrong by place."""
        columns = []
        is_missing: Array | None = None
        for name in self._values:
            values, misfits = chunk.numbers(name)
            for place, shown in misfits.items():
                problems.setdefault(place, f"{name}: expected a finite number or null, got {shown}")
            with np.errstate(over="ignore"):
                column = values.astype(np.float32)
            columns.append(column)
            if is_all_finite(column):
                continue
            is_gap = np.isnan(column)
            is_missing = is_gap if is_missing is None else is_missing | is_gap
            for place in np.flatnonzero(np.isinf(column)).tolist():
                shown = f"{values[place]} (beyond float32)" if np.isfinite(values[place]) else str(values[place])
                problems.setdefault(place, f"{name}: expected a finite number or null, got {shown}")
        return (columns[0][:, np.newaxis] if len(columns) == 1 else np.stack(columns, axis=1)), is_missing

    def _find_irregular(self, times: Array, starts: Array, problems: dict[int, str], *, is_continued: bool) -> None:
        """Add the places that do not follow the one before by one step."""
        last = self._open.times[-1][-1:] if is_continued and self._open else times[:1]
        frequency = None if self._unit is not None and self._unit.kind == "integer" else self._defaults.usual_frequency
        is_bad = np.empty(len(times), np.bool_)
        if frequency is None or frequency.code in SECONDS:  # a step has one length
            step = 1 if frequency is None else frequency.count * SECONDS[frequency.code] * 1_000_000
            is_bad[0] = times[0] - last[0] != step
            np.not_equal(np.diff(times), step, out=is_bad[1:])
        else:
            before = np.concatenate((last, times[:-1]))
            np.logical_not(is_one_step(before.view("M8[us]"), times.view("M8[us]"), frequency), out=is_bad)
        is_bad[starts[1:] if is_continued else starts] = False
        if not is_bad.any():
            return
        for place in np.flatnonzero(is_bad).tolist():
            before_us = int(times[place - 1] if place else last[0])
            problems.setdefault(place, self._describe_step(before_us, int(times[place]), frequency))

    def _find_plain(self, bounds: _Bounds, has_gaps: Array, problems: Mapping[int, str]) -> Array:
        """Which series hold nothing that has to be looked at one by one, BOOL (N)."""
        num_steps = bounds.ends - bounds.starts
        is_plain: Array = ~has_gaps
        is_plain &= num_steps >= max(1, self._defaults.spec.min_length)
        is_plain &= num_steps * len(self._features) <= MAX_HISTORY_VALUES
        if problems:
            is_plain[np.searchsorted(bounds.starts, np.array(list(problems), np.int64), side="right") - 1] = False
        if None in bounds.keys:
            is_plain &= np.array([key is not None for key in bounds.keys])
        if self._has_months:
            is_plain[:] = False
        return is_plain

    def _make_records(self, bounds: _Bounds, is_plain: Array, values: Array, times: Array) -> Iterator[Record]:
        """Of plain series; built by `map`, since each costs as much as a twentieth of a small graph's run."""
        if not is_plain.any():
            return iter(())
        keys: Sequence[str | None] = bounds.keys
        if is_plain.all():
            starts, ends, rows, behind = bounds[1:]
        else:
            keys = list(itertools.compress(bounds.keys, is_plain))
            starts, ends, rows, behind = (each[is_plain] for each in bounds[1:])
        history_starts = np.maximum(starts, ends - self._defaults.spec.context_length)
        series = map(
            Series,
            itertools.repeat(values),
            history_starts.tolist(),
            ends.tolist(),
            times[starts].tolist(),
            (ends - starts).tolist(),
            itertools.repeat(False),
        )
        return map(Record, rows.tolist(), behind.tolist(), series, keys)

    def _describe_step(self, before: int, after: int, frequency: Frequency | None) -> str:
        shown, last = self._show_time(after), self._show_time(before)
        if after == before:
            return f"{self._time}: {shown} is there twice"
        if after < before:
            return f"{self._time}: {shown} comes after {last}: the times of a series have to ascend"
        return f"{self._time}: expected one step of {frequency or 1} after {last}, got {shown}"

    def _show_time(self, value: int) -> str:
        if self._unit is not None and self._unit.kind == "integer":
            return str(value)
        return str(np.datetime64(value, "us").astype("M8[s]"))

    def _extend(self, values: Array, times: Array, end: int, problem: str | None, has_gaps: bool) -> None:
        series = self._open
        assert series is not None
        series.has_gaps = series.has_gaps or has_gaps
        series.problem = series.problem or problem
        series.end = end
        series.num_steps += len(values)
        if series.num_steps * values.shape[1] > MAX_HISTORY_VALUES and series.problem is None:
            series.problem = f"history: expected at most {MAX_HISTORY_VALUES} values"
        if series.problem is not None:  # its values are not needed any more
            series.values, series.times = [values[:0]], [times[-1:]]
        else:
            series.values.append(values)
            series.times.append(times)

    def _close(self, reading: Reading) -> None:
        """The open series is complete."""
        series, self._open = self._open, None
        if series is not None:
            values, times = np.concatenate(series.values), np.concatenate(series.times)
            self._complete(reading, series.key, series.row, series.end, values, times, series.problem, series.has_gaps)

    def _complete(
        self,
        reading: Reading,
        key: str | None,
        row: int,
        end: int,
        values: Array,
        times: Array,
        problem: str | None,
        has_gaps: bool,
    ) -> None:
        if key is None:
            reading.rejections.append(Rejection(row, end, f"{self._id}: expected a name, got null"))
            return
        if problem is None:
            try:
                checked = self._defaults.read_array(values, 0, has_gaps=has_gaps)
            except InvalidInput as exc:
                problem = exc.message.removeprefix("instance 0: ")
            else:
                is_at_end = self._has_months and self._is_at_end(times)
                history = checked.history
                series = Series(history, 0, len(history), int(times[0]), len(times), is_at_end)
                reading.records.append(Record(row, end, series, key))
                return
        reading.rejections.append(Rejection(row, end, problem, key))

    @cached_property
    def _has_months(self) -> bool:
        """Whether steps are months; known once a chunk was read."""
        frequency = self._defaults.usual_frequency
        return self._unit is not None and self._unit.kind != "integer" and frequency is not None and frequency.code in MONTHS

    def _is_at_end(self, times: Array) -> bool:
        """Whether times stand for ends of months: the first does, and later ones go beyond its day."""
        days = times.view("M8[us]").astype("M8[D]")
        months = days.astype("M8[M]")
        numbers = days - months.astype("M8[D]")
        is_at_end = bool(((days + 1).astype("M8[M]") > months).all())
        return is_at_end and bool((numbers > numbers[0]).any())

    def _future(self, records: Sequence[Record], horizon: int) -> Array:
        """The times of the forecasts (N x horizon), in the unit of the file."""
        firsts = np.array([record.payload.first_us for record in records], np.int64)
        counts = np.array([record.payload.num_steps for record in records], np.int64)
        steps = counts[:, np.newaxis] + np.arange(horizon)
        assert self._unit is not None
        if self._unit.kind == "integer":
            return (firsts[:, np.newaxis] + steps).reshape(-1)
        frequency = self._defaults.usual_frequency
        assert frequency is not None
        starts = firsts.view("M8[us]")
        times = step_times(starts, frequency, steps)
        if any(record.payload.is_at_end for record in records):
            is_at_end = np.array([record.payload.is_at_end for record in records])
            times = np.where(is_at_end[:, np.newaxis], step_times(starts, replace(frequency, is_at_end=True), steps), times)
        microseconds: Array = times.astype("M8[us]").astype(np.int64).reshape(-1)
        return microseconds // DAY_US if self._unit.kind == "date" else microseconds


class SeenKeys:
    """The names of all series so far, as 64-bit hashes in a few sorted parts: 8 bytes for each of them.

    Two of a million names have the same hash with a probability of 3 in 100 million; then a good file is refused.
    """

    EMPTY: ClassVar[Array] = np.empty(0, np.int64)

    def __init__(self) -> None:
        self._parts: list[Array] = []

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def add(self, keys: Sequence[str | None]) -> str | None:
        """Take these names in; returns one that is among them twice, or was there before. None is no name."""
        named = [key for key in keys if key is not None]
        hashes = np.fromiter(map(hash, named), np.int64, len(named))
        found = np.unique(hashes)
        if len(found) < len(hashes):
            return next(_repeated(named))
        for part in self._parts:
            places = np.minimum(np.searchsorted(part, hashes), len(part) - 1)
            is_there = part[places] == hashes
            if is_there.any():
                return named[int(np.flatnonzero(is_there)[0])]
        if len(found):
            self._parts.append(found)
        while len(self._parts) > 1 and len(self._parts[-2]) <= SMALLEST_MERGE * len(self._parts[-1]):
            last = self._parts.pop()
            self._parts[-1] = np.sort(np.concatenate((self._parts[-1], last)), kind="stable")
        return None


def _repeated(keys: Sequence[str]) -> Iterator[str]:
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            yield key
        seen.add(key)
    yield keys[-1]
