"""Lists, arrays, and Series and DataFrames of pandas or polars ↔ instances and predictions.

Imports neither library: what is handed over brings its own.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import date, datetime, timedelta
from itertools import pairwise
from typing import Any, NamedTuple

ID, TIME, VALUE = "unique_id", "ds", "y"
LONGEST_SHORTEST = 1.2
"""How much longer than its shortest step the longest of a series may be: months have 28 to 31 days, a missing row makes two."""


class Table(NamedTuple):
    """What was handed over, as instances, and what makes the same kind of the predictions."""

    instances: list[Any]
    write: Callable[[list[Any]], Any]
    names: list[str] | None = None


def read_series(series: Any) -> Table:
    """Series in one of the forms of `Client.forecast`. Raises ValueError for what is none."""
    library = _library_of(series)
    if library is None:
        return _read_lists(series)
    if hasattr(series, "columns"):
        return _read_frame(series, library)
    return _read_pandas_series(series) if library == "pandas" else _read_polars_series(series)


def read_texts(texts: Any) -> Table:
    """Texts in a list or a Series. Raises ValueError."""
    library = _library_of(texts)
    if isinstance(texts, str):
        raise ValueError("expected a list of texts, got one text")
    if library is None:
        return Table(list(texts), lambda predictions: predictions)
    if hasattr(texts, "columns"):
        raise ValueError("expected a list or a Series of texts, got a DataFrame: hand over its column")
    values = texts.to_list()

    def write(predictions: list[Any]) -> Any:
        columns: dict[str, list[Any]] = {"label": [each["label"] for each in predictions]}
        columns["score"] = [each["score"] for each in predictions]
        for label in predictions[0]["probabilities"] if predictions else ():
            columns[f"p({label})"] = [each["probabilities"][label] for each in predictions]
        frame = _module(library).DataFrame(columns)
        if library == "pandas":
            frame.index = texts.index
        return frame

    return Table(values, write)


def _library_of(value: Any) -> str | None:
    name = type(value).__module__.partition(".")[0]
    return name if name in ("pandas", "polars") else None


def _module(library: str) -> Any:
    return sys.modules[library]


def _read_lists(series: Any) -> Table:
    values = series.tolist() if hasattr(series, "tolist") else series
    if isinstance(values, str | bytes | dict) or not isinstance(values, Iterable):
        raise ValueError(f"expected numbers, a list of series, a Series or a DataFrame, got {type(series).__name__}")
    values = [value.tolist() if hasattr(value, "tolist") else value for value in values]
    if values and all(isinstance(value, list | tuple) for value in values):
        return Table([{"history": _with_gaps(value)} for value in values], lambda predictions: predictions)
    return Table([{"history": _with_gaps(values)}], lambda predictions: predictions[0])


def _read_pandas_series(series: Any) -> Table:
    pandas = _module("pandas")
    has_times = isinstance(series.index, pandas.DatetimeIndex)
    instance: dict[str, Any] = {"history": _with_gaps(series.tolist())}
    if has_times and len(series):
        expect_regular(series.index.tolist(), "index")
        instance["start"] = _iso(series.index[0])

    def write(predictions: list[Any]) -> Any:
        (prediction,) = predictions
        frame = pandas.DataFrame(_values_of(prediction))
        if "timestamps" in prediction:
            frame.index = pandas.DatetimeIndex(
                _pandas_times(prediction["timestamps"], series.index.dtype), name=series.index.name
            )
        elif not has_times and pandas.api.types.is_integer_dtype(series.index.dtype) and len(series):
            first = int(series.index[-1]) + 1
            frame.index = pandas.RangeIndex(first, first + len(frame), name=series.index.name)
        return frame

    return Table([instance], write)


def _read_polars_series(series: Any) -> Table:
    polars = _module("polars")
    return Table([{"history": _with_gaps(series.to_list())}], lambda predictions: polars.DataFrame(_values_of(predictions[0])))


def _read_frame(frame: Any, library: str) -> Table:
    """The long form. The rows of a series stand together."""
    missing = [name for name in (ID, TIME, VALUE) if name not in list(frame.columns)]
    if missing:
        raise ValueError(f'there is no column "{missing[0]}": expected "{ID}", "{TIME}" and "{VALUE}", a row for each step')
    ids, times = _to_list(frame[ID]), _to_list(frame[TIME])
    values = _with_gaps(_to_list(frame[VALUE]))
    starts = [row for row in range(len(ids)) if row == 0 or ids[row] != ids[row - 1]]
    names = [ids[start] for start in starts]
    if len(set(names)) < len(names):
        raise ValueError(f"the rows of a series are not together: sort by {ID} and {TIME}")
    instances = []
    for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
        instance: dict[str, Any] = {"history": values[start:end]}
        expect_regular(times[start:end], f'series "{ids[start]}": {TIME}')
        if not isinstance(times[start], int):
            instance["start"] = times[start] if isinstance(times[start], str) else _iso(times[start])
        instances.append(instance)
    lasts = [times[end - 1] for end in [*starts[1:], len(ids)]] if ids else []

    def write(predictions: list[Any]) -> Any:
        columns: dict[str, list[Any]] = {ID: [], TIME: []}
        for name, last, prediction in zip(names, lasts, predictions, strict=True):
            num = len(prediction["forecast"])
            columns[ID] += [name] * num
            columns[TIME] += [last + 1 + step for step in range(num)] if isinstance(last, int) else prediction["timestamps"]
            for column, found in _values_of(prediction).items():
                columns.setdefault(column, []).extend(found)
        result = _module(library).DataFrame(columns)
        if library == "pandas":
            if not isinstance(times[0], int | str):
                result[TIME] = _pandas_times(columns[TIME], frame[TIME].dtype)
            return result.astype({ID: frame[ID].dtype})
        polars = _module("polars")
        kind = frame.schema[TIME]
        if kind.is_temporal():
            parsed = [_read_iso(text, is_date=kind == polars.Date) for text in columns[TIME]]
            result = result.with_columns(polars.Series(TIME, parsed, dtype=kind))
        return result.with_columns(polars.col(ID).cast(frame.schema[ID]))

    return Table(instances, write if ids else lambda _: frame, [str(name) for name in names])


def expect_regular(times: Sequence[Any], where: str) -> None:
    """Raise ValueError for times that do not ascend by steps of about one length; texts are left to the server."""
    if any(_is_missing(time) for time in times):
        raise ValueError(f"{where}: expected a time in each row")
    if len(times) < 2 or isinstance(times[0], str):
        return
    steps = [after - before for before, after in pairwise(times)]
    none = 0 if isinstance(times[0], int) else timedelta(0)
    if min(steps) <= none:
        place = next(number for number, step in enumerate(steps) if step <= none)
        raise ValueError(f"{where}: {times[place + 1]} comes after {times[place]}: times have to ascend, each once")
    if max(steps) > LONGEST_SHORTEST * min(steps):
        place = steps.index(max(steps))
        raise ValueError(
            f"{where}: there is a row missing between {times[place]} and {times[place + 1]}; a gap is a row without a value"
        )


def _values_of(prediction: Any) -> dict[str, Any]:
    quantiles = prediction.get("quantiles", {})
    return {"forecast": prediction["forecast"], **{f"q{level}": values for level, values in quantiles.items()}}


def _to_list(column: Any) -> list[Any]:
    found: list[Any] = column.to_list()
    return found


def _with_gaps(values: Sequence[Any]) -> list[Any]:
    return [None if _is_missing(value) else value for value in values]


def _is_missing(value: Any) -> bool:
    """None, NaN, NaT and NA."""
    return value is None or (isinstance(value, float) and math.isnan(value)) or type(value).__name__ in ("NaTType", "NAType")


def _iso(time: Any) -> str:
    if not isinstance(time, date):
        raise ValueError(f"expected times, got {type(time).__name__}")
    return time.isoformat()


def _read_iso(text: str, *, is_date: bool) -> date:
    return date.fromisoformat(text[:10]) if is_date else datetime.fromisoformat(text)


def _pandas_times(texts: Sequence[str], dtype: Any) -> Any:
    """Times of the type of the column that the history had, its zone too."""
    pandas = _module("pandas")
    if dtype.kind == "O":
        return [date.fromisoformat(text[:10]) for text in texts]
    times = pandas.to_datetime(list(texts), utc=getattr(dtype, "tz", None) is not None, format="ISO8601")
    return times.astype(dtype)
