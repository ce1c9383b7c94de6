"""Some rows of a file: its columns as numbers, times, runs of names or JSON values, with what stands where none of these does."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from service import wire
from service.runtime.tensors import Array
from service.tasks.tables import Numbers, Runs, TableForm, Times, TimeUnit

MISSING = frozenset(("", "na", "nan", "n/a", "null", "none"))
"""What stands for a missing number in a CSV file, in any case."""
SHOWN = 60

_EPOCH = datetime(1970, 1, 1)


class FileChunk:
    """Rows of a file, whose columns are pyarrow's arrays or lists of JSON values (see `tables.Chunk`)."""

    def __init__(
        self, rows: Array, columns: Mapping[str, Any], form: TableForm, units: dict[str, TimeUnit], *, parses_json: bool = False
    ) -> None:
        """`parses_json`: what is no text is JSON in a text column, as nested lists in a CSV file are."""
        self._rows = rows
        self._columns = columns
        self._form, self._units = form, units
        self._parses_json = parses_json

    @property
    def rows(self) -> Array:
        return self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def values(self, column: str) -> list[object]:
        found = self._columns[column]
        values: list[object] = found if isinstance(found, list) else found.to_pylist()
        if self._parses_json and column not in self._form.texts:
            return [_parse(value) if isinstance(value, str) else value for value in values]
        return values

    def numbers(self, column: str) -> Numbers:
        found = self._columns[column]
        if isinstance(found, list):
            return _read_numbers(found)
        found = decode(found)
        kind = found.type
        if pa.types.is_null(kind) or pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind):
            found = found if pa.types.is_float64(kind) else found.cast(pa.float64(), safe=False)
            return Numbers(found.to_numpy(zero_copy_only=False), {})
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            with contextlib.suppress(pa.ArrowInvalid):
                return Numbers(found.cast(pa.float64()).to_numpy(zero_copy_only=False), {})
            return _read_numbers([_number_of_text(value) for value in found.to_pylist()])
        return _read_numbers(found.to_pylist())

    def times(self, column: str) -> Times:
        found = self._columns[column]
        if not isinstance(found, list):
            found = decode(found)
            kind = found.type
            if pa.types.is_timestamp(kind):
                return _times(
                    found.cast(pa.timestamp("us", kind.tz), safe=False).cast(pa.int64()), TimeUnit("timestamp", kind.tz)
                )
            if pa.types.is_date(kind):
                return _times(found.cast(pa.date32()).cast(pa.int32()).cast(pa.int64()), TimeUnit("date"))
            if pa.types.is_integer(kind):
                return _times(found.cast(pa.int64(), safe=False), TimeUnit("integer"))
        unit = self._units.get(column)
        if unit is None:
            first = next((value for value in (found if isinstance(found, list) else found.drop_null().to_pylist()[:1])), None)
            unit = self._units[column] = _unit_of(first)
        if not isinstance(found, list) and (pa.types.is_string(found.type) or pa.types.is_large_string(found.type)):
            with contextlib.suppress(pa.ArrowInvalid):
                return _times(_parse_times(found, unit), unit)
        values = found if isinstance(found, list) else found.to_pylist()
        return _read_times(values, unit)

    def runs(self, column: str) -> Runs:
        found = self._columns[column]
        if not isinstance(found, list) and pa.types.is_nested(found.type):  # of which pyarrow makes no dictionary
            found = found.to_pylist()
        elif not isinstance(found, list) and pa.types.is_string_view(found.type):  # nor can it take from one
            found = found.cast(pa.large_string())
        if isinstance(found, list):
            found = pa.array([None if value is None else value if isinstance(value, str) else str(value) for value in found])
        if not pa.types.is_dictionary(found.type):
            found = pc.dictionary_encode(found)
        if not len(found):
            return Runs(np.empty(0, np.int64), [])
        codes = (found.indices.fill_null(-1) if found.null_count else found.indices).to_numpy()
        starts = np.concatenate(([0], np.flatnonzero(np.diff(codes)) + 1))
        names = found.dictionary.take(found.indices.take(pa.array(starts)))
        values = names.to_pylist()
        return Runs(starts, [None if value is None else value if isinstance(value, str) else str(value) for value in values])

    def take(self, column: str, places: Sequence[int]) -> object:
        found = self._columns[column]
        return [found[place] for place in places] if isinstance(found, list) else found.take(pa.array(places, pa.int64()))


def decode(found: Any) -> Any:
    """Without pyarrow's dictionary, as a categorical column has one."""
    if isinstance(found, pa.ChunkedArray):
        found = found.combine_chunks()
    return found.dictionary_decode() if pa.types.is_dictionary(found.type) else found


def _read_numbers(values: Sequence[object]) -> Numbers:
    found = np.full(len(values), np.nan)
    misfits = {}
    for place, value in enumerate(values):
        if type(value) is float or type(value) is int:
            try:
                found[place] = value
            except OverflowError:
                found[place] = np.inf
        elif value is not None:
            misfits[place] = _show(value)
    return Numbers(found, misfits)


def _number_of_text(value: str | None) -> object:
    if value is None or value.strip().lower() in MISSING:
        return None
    try:
        return float(value)
    except ValueError:
        return value


def _times(values: Any, unit: TimeUnit) -> Times:
    misfits = {}
    if values.null_count:
        misfits = dict.fromkeys(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False)).tolist(), "null")
        values = values.fill_null(0)
    return Times(values.to_numpy(), unit, misfits)


def _unit_of(value: object) -> TimeUnit:
    """What a text is taken for, and with it all that follow in its column."""
    if isinstance(value, datetime):
        return TimeUnit("timestamp")
    if not isinstance(value, str):
        return TimeUnit("integer" if type(value) is int else "timestamp")
    value = value.strip()
    if value.lstrip("-").isdigit() and len(value) < 8:
        return TimeUnit("integer")
    if len(value) == len("2024-01-31"):
        return TimeUnit("date")
    try:
        return TimeUnit("timestamp", None if datetime.fromisoformat(value).tzinfo is None else "UTC")
    except ValueError:
        return TimeUnit("timestamp")


def _parse_times(found: Any, unit: TimeUnit) -> Any:
    if unit.kind == "integer":
        return found.cast(pa.int64())
    if unit.kind == "date":
        return found.cast(pa.date32()).cast(pa.int32()).cast(pa.int64())
    return found.cast(pa.timestamp("us", unit.zone)).cast(pa.int64())


def _read_times(values: Sequence[object], unit: TimeUnit) -> Times:
    """Value by value, as a column is read in which something is wrong."""
    found = np.zeros(len(values), np.int64)
    misfits = {}
    for place, value in enumerate(values):
        number = _read_time(value, unit)
        if number is None:
            misfits[place] = _show(value)
        else:
            found[place] = number
    return Times(found, unit, misfits)


def _read_time(value: object, unit: TimeUnit) -> int | None:
    try:
        if unit.kind == "integer":
            number = int(value) if isinstance(value, str) else value
            return number if type(number) is int and abs(number) < 2**62 else None
        if isinstance(value, str):
            value = datetime.fromisoformat(value.strip())
        if not isinstance(value, datetime) or (value.tzinfo is None) != (unit.zone is None):
            return None
        moment = value if value.tzinfo is None else value.astimezone(UTC).replace(tzinfo=None)
    except (ValueError, OverflowError):
        return None
    elapsed = moment - _EPOCH
    if unit.kind == "date":
        return elapsed.days if not (elapsed.seconds or elapsed.microseconds) else None
    return (elapsed.days * 86400 + elapsed.seconds) * 1_000_000 + elapsed.microseconds


def _parse(text: str) -> object:
    """A cell that holds JSON; one that does not, as it is."""
    try:
        return wire.read(text.encode())
    except ValueError:
        return text


def _show(value: object) -> str:
    if value is None:
        return "null"
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
