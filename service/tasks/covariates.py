"""What is known ahead of a series: `past` and `future` of an instance, and the calendar, as one array of numbers. Pure.

A model names its covariates in the manifest; of each step they are its first columns, the calendar's are behind them.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from datetime import datetime

import numpy as np

from service.errors import InvalidInput, InvalidReason
from service.runtime.tensors import Array, is_all_finite
from service.tasks.forecast_spec import CalendarField, ForecastSpec
from service.tasks.frequencies import SECONDS, Frequency, moments
from service.tasks.history import FLOAT32_MAX, NUMBERS_AT_ONCE
from service.tasks.refusals import refuse_type, show

PAST, FUTURE = "past", "future"
MAX_NAME_LENGTH = 60
"""What a place names of a field that the request chose."""


class CovariateReader:
    """Reads what a model must know of the steps of a history and of those that are forecast."""

    def __init__(self, spec: ForecastSpec) -> None:
        self.names = tuple(spec.covariates)
        self.calendar = tuple(spec.calendar)
        self.codes = {name: {text: float(code) for code, text in enumerate(texts)} for name, texts in spec.categories.items()}

    def read(
        self,
        instance: Mapping[str, object],
        index: int,
        num_given: int,
        num_read: int,
        horizon: int,
        start: str | None,
        frequency: Frequency | None,
    ) -> Array:
        """FP32 (num_read + horizon, columns): of the last `num_read` of the history's `num_given` steps, and of the horizon.

        A value in the place of a list is that of every step, as which series it is.
        Raises InvalidInput that names the place of what is missing, too short or too long, of another name or no number.
        """
        known = np.empty((num_read + horizon, len(self.names) + len(self.calendar)), np.float32)
        for field, expected, part in ((PAST, num_given, known[:num_read]), (FUTURE, horizon, known[num_read:])):
            columns = self._check_names(instance.get(field), field, index)
            for column, name in enumerate(self.names):
                place = f"{field}.{name}"
                values = columns[name]
                if not isinstance(values, list):
                    part[:, column] = self._read_constant(values, name, place, index)
                    continue
                if len(values) != expected:
                    raise _refuse_length(index, field, place, expected, len(values))
                part[:, column] = self._read_column(values, name, place, index)[len(values) - len(part) :]
        if self.calendar:
            if start is None or frequency is None:
                message = f"instance {index}: start is missing: the model reads the calendar ({', '.join(self.calendar)})"
                raise InvalidInput(message, reason="timestamp", instance=index, where="start", expected="an ISO 8601 timestamp")
            first = num_given - num_read
            known[:, len(self.names) :] = calendar_numbers(start, frequency, range(first, num_given + horizon), self.calendar)
        return known

    def _check_names(self, given: object, field: str, index: int) -> Mapping[str, object]:
        """The columns of a field, of which each covariate has one."""
        if given is None and not self.names:
            return {}
        expected = list(self.names)
        if given is None:
            message = f"instance {index}: {field} is missing: expected an object with the covariates {expected}"
            raise InvalidInput(message, instance=index, where=field, expected=expected)
        if not isinstance(given, dict):
            raise refuse_type(index, field, f"an object with the covariates {expected}", given)
        if given.keys() != set(self.names):
            missing = [name for name in self.names if name not in given]
            unknown = sorted(str(name) for name in given if name not in self.names)
            name, what = (missing[0], "is missing") if missing else (unknown[0], "is no covariate of the model")
            shown = f"{field}.{name[:MAX_NAME_LENGTH]}"
            found = f", found {show(unknown[0])} instead" if missing and unknown else ""
            raise InvalidInput(
                f"instance {index}: {shown} {what}: expected {expected}{found}",
                instance=index,
                where=shown,
                found=[entry[:MAX_NAME_LENGTH] for entry in unknown[:10]],
                expected=expected,
            )
        return given

    def _read_constant(self, value: object, name: str, place: str, index: int) -> float:
        codes = self.codes.get(name)
        if codes is None:
            return _expect_number(value, index, place, "a finite number, or a list of them")
        if isinstance(value, str) and value in codes:
            return codes[value]
        raise _refuse_category(index, place, f"one of {list(codes)}, or a list of them", value)

    def _read_column(self, values: list[object], name: str, place: str, index: int) -> Array:
        codes = self.codes.get(name)
        if codes is None:
            steps = range(0, len(values), NUMBERS_AT_ONCE)
            parts = [_read_numbers(values[step : step + NUMBERS_AT_ONCE], place, index, step) for step in steps]
            return parts[0] if len(parts) == 1 else np.concatenate(parts)
        try:
            return np.array([codes[value] for value in values], np.float32)  # type: ignore[index]  # what is no text is no key
        except (KeyError, TypeError):
            step = next(step for step, value in enumerate(values) if not isinstance(value, str) or value not in codes)
            value, texts = values[step], list(codes)
            raise _refuse_category(index, f"{place}[{step}]", f"one of {texts}", value) from None


def calendar_numbers(start: str, frequency: Frequency, steps: range, fields: Sequence[CalendarField]) -> Array:
    """(steps, fields): of the moments that lie `steps` steps behind `start`, in its own time zone, what the calendar says.

    Hour 0 to 23, day of the week 0 to 6 from Monday on, month 1 to 12, day of the year 1 to 366.
    """
    if frequency.code in SECONDS:
        begin = np.datetime64(datetime.fromisoformat(start).replace(tzinfo=None), "s")
        seconds = SECONDS[frequency.code] * frequency.count
        times = begin + np.arange(steps.start, steps.stop) * np.timedelta64(seconds, "s")
    else:
        times = np.array([moment.replace(tzinfo=None) for moment in moments(start, frequency, steps)], "datetime64[s]")
    return np.stack([_field(times, field) for field in fields], axis=1).astype(np.float32)


def _field(times: Array, field: CalendarField) -> Array:
    days = times.astype("datetime64[D]")
    numbers: Array
    match field:
        case "hour":
            numbers = (times - days).astype(np.int64) // 3600
        case "day_of_week":
            numbers = (days.astype(np.int64) + 3) % 7  # 1970 began on a Thursday
        case "month":
            numbers = times.astype("datetime64[M]").astype(np.int64) % 12 + 1
        case "day_of_year":
            numbers = (days - times.astype("datetime64[Y]").astype("datetime64[D]")).astype(np.int64) + 1
    return numbers


def _read_numbers(values: list[object], place: str, index: int, first: int) -> Array:
    """Numbers of a list as FP32; `first` is the place of the first one."""
    try:
        numbers = np.frombuffer(struct.pack(f"{len(values)}f", *values), np.float32)
    except (struct.error, OverflowError):
        pass
    else:
        if is_all_finite(numbers) and bool not in set(map(type, values)):
            return numbers
    for step, value in enumerate(values, first):
        _expect_number(value, index, f"{place}[{step}]", "a finite number")
    # Between the largest float32 and half a step beyond, which is rounded down to it.
    return np.clip(np.array(values, np.float64), -FLOAT32_MAX, FLOAT32_MAX).astype(np.float32)


def _expect_number(value: object, index: int, where: str, expected: str) -> float:
    is_number = type(value) is int or type(value) is float
    # Written so that NaN, which is neither above nor below, is refused too.
    if not is_number or not -FLOAT32_MAX <= value <= FLOAT32_MAX:  # type: ignore[operator]  # a number
        reason: InvalidReason = "nonfinite" if is_number or value is None else "dtype"
        raise refuse_type(index, where, expected, value, reason=reason)
    return float(value)  # type: ignore[arg-type]  # a number


def _refuse_category(index: int, where: str, expected: str, value: object) -> InvalidInput:
    return refuse_type(index, where, expected, value, reason="shape" if isinstance(value, str) else "dtype")


def _refuse_length(index: int, field: str, place: str, expected: int, found: int) -> InvalidInput:
    of = "as many as history" if field == PAST else "the horizon"
    return InvalidInput(
        f"instance {index}: {place}: expected {expected} values, {of}, got {found}",
        reason="length",
        instance=index,
        where=place,
        found=found,
        expected=expected,
    )
