"""Columns written into files, in parts that become one file: parquet, CSV and NDJSON. Knows nothing of models or tasks."""

from __future__ import annotations

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from service import wire
from service.runtime.tensors import Array
from service.scoring.chunks import decode
from service.scoring.formats import BUFFER_BYTES, NDJSON, PARQUET, TSV, first_line
from service.tasks.tables import Columns, Moments, Repeated, TableError


class PartWriter(ABC):
    """Writes columns into one file, which is whole when `close` has returned."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_rows = 0

    def write(self, columns: Columns) -> None:
        """Add rows. Raises TableError for a column whose type is not that of the rows before."""
        num = _num_rows(columns)
        if num:
            self.num_rows += num
            self._write(columns)

    @abstractmethod
    def _write(self, columns: Columns) -> None: ...

    @abstractmethod
    def close(self) -> None: ...


def open_part(path: Path, kind: str, *, is_first: bool) -> PartWriter:
    """A new file of this format; only the first part of a CSV file has its header."""
    if kind == PARQUET:
        return _ParquetPart(path)
    return _NdjsonPart(path) if kind == NDJSON else _CsvPart(path, "\t" if kind == TSV else ",", has_header=is_first)


def join_parts(parts: Sequence[Path], target: Path, kind: str) -> None:
    """Make one file of several, within bounded memory. Of a single part the file itself becomes the target."""
    if len(parts) == 1:
        parts[0].replace(target)
        return
    if kind != PARQUET:
        with target.open("wb") as file:
            for part in parts:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, file, BUFFER_BYTES)
        return
    with pq.ParquetFile(parts[0]) as first:
        schema = first.schema_arrow
    with _parquet_writer(target, schema) as writer:
        for part in parts:
            with pq.ParquetFile(part, read_dictionary=_dictionaries(schema)) as file:
                for number in range(file.num_row_groups):
                    writer.write_table(file.read_row_group(number).cast(schema))


class _ParquetPart(PartWriter):
    ROW_GROUP = 500_000

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._writer: Any = None
        self._tables: list[Any] = []
        self._num_waiting = 0

    def _write(self, columns: Columns) -> None:
        table = _table(columns)
        if self._writer is None:
            self._writer = _parquet_writer(self.path, table.schema)
        elif table.schema != self._writer.schema:
            table = _cast(table, self._writer.schema)
        self._tables.append(table)
        self._num_waiting += table.num_rows
        if self._num_waiting >= self.ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._tables:
            self._writer.write_table(pa.concat_tables(self._tables).unify_dictionaries(), row_group_size=2 * self.ROW_GROUP)
        self._tables, self._num_waiting = [], 0

    def close(self) -> None:
        if self._writer is not None:
            self._flush()
            self._writer.close()
            _sync(self.path)


class _CsvPart(PartWriter):
    def __init__(self, path: Path, delimiter: str, *, has_header: bool) -> None:
        super().__init__(path)
        self._options = pa.csv.WriteOptions(include_header=has_header, delimiter=delimiter)
        self._writer: Any = None
        self._schema: Any = None

    def _write(self, columns: Columns) -> None:
        table = _table({name: _as_text(column) for name, column in columns.items()})
        if self._writer is None:
            self._schema = table.schema
            self._writer = pa.csv.CSVWriter(self.path, table.schema, write_options=self._options)
        elif table.schema != self._schema:
            table = _cast(table, self._schema)
        self._writer.write_table(table)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            _sync(self.path)


class _NdjsonPart(PartWriter):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._file = path.open("wb")

    def _write(self, columns: Columns) -> None:
        names = list(columns)
        rows = zip(*(_as_json(column) for column in columns.values()), strict=True)
        self._file.write(b"".join(wire.write(dict(zip(names, row, strict=True))) + b"\n" for row in rows))

    def close(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def _parquet_writer(path: Path, schema: Any) -> Any:
    names = _dictionaries(schema)
    # Forecasts do not repeat: a dictionary of them would be made and thrown away. Times and names nearly vanish.
    times = {
        field.name: "DELTA_BINARY_PACKED"
        for field in schema
        if pa.types.is_timestamp(field.type) or pa.types.is_integer(field.type)
    }
    texts = [field.name for field in schema if pa.types.is_string(field.type)]
    return pq.ParquetWriter(
        path,
        schema,
        use_dictionary=[*names, *texts] or False,
        column_encoding=times or None,
        compression={field.name: "none" if pa.types.is_floating(field.type) else "zstd" for field in schema},
        write_statistics=[*names, *times] or False,
    )


def _dictionaries(schema: Any) -> list[str]:
    return [field.name for field in schema if pa.types.is_dictionary(field.type)]


def _table(columns: Columns) -> Any:
    return pa.table({name: _as_arrow(name, column) for name, column in columns.items()})


def _cast(table: Any, schema: Any) -> Any:
    try:
        return table.cast(schema)
    except (pa.ArrowException, ValueError) as exc:
        raise TableError(f"the output has columns of several types, which NDJSON can hold: {first_line(exc)}") from exc


def _as_arrow(name: str, column: Any) -> Any:
    if isinstance(column, Repeated):
        codes = np.repeat(np.arange(len(column.values), dtype=np.int32), column.times)
        return pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(column.values, pa.string()))
    if isinstance(column, Moments):
        values, unit = pa.array(column.values, pa.int64()), column.unit
        if unit.kind == "integer":
            return values
        return values.cast(pa.int32()).cast(pa.date32()) if unit.kind == "date" else values.cast(pa.timestamp("us", unit.zone))
    if isinstance(column, list):
        try:
            return pa.array(column)
        except (pa.ArrowException, ValueError, OverflowError) as exc:
            raise TableError(f'column "{name}" has values of several types, which NDJSON can hold: {first_line(exc)}') from exc
    return column if isinstance(column, pa.Array | pa.ChunkedArray) else pa.array(column)


def _as_text(column: Any) -> Any:
    """A column as CSV can hold it: names as texts, times in ISO 8601, lists as JSON."""
    if isinstance(column, Repeated):
        return decode(_as_arrow("", column))
    if isinstance(column, Moments):
        return column if column.unit.kind == "integer" else pa.array(_iso(column))
    if isinstance(column, pa.Array | pa.ChunkedArray) and (
        pa.types.is_nested(column.type) or pa.types.is_dictionary(column.type)
    ):
        column = column.to_pylist()
    if isinstance(column, list):
        return pa.array([_text_of(value) if isinstance(value, list | dict) else value for value in column])
    return column


def _as_json(column: Any) -> Sequence[object]:
    """The values of a column as `wire.write` takes them, numbers in FP32 in their fewest digits."""
    if isinstance(column, Repeated):
        return [value for value in column.values for _ in range(column.times)]
    if isinstance(column, Moments):
        return list((column.values if column.unit.kind == "integer" else _iso(column)).tolist())
    if isinstance(column, pa.Array | pa.ChunkedArray):
        return [value.isoformat() if isinstance(value, date) else value for value in column.to_pylist()]
    if isinstance(column, np.ndarray):
        return list(column) if column.dtype == np.float32 else column.tolist()
    return list(column)


def _iso(column: Moments) -> Array:
    if column.unit.kind == "date":
        return np.datetime_as_string(column.values.view("M8[D]"))
    has_fractions = bool((column.values % 1_000_000).any())
    texts = np.datetime_as_string(column.values.view("M8[us]"), unit="us" if has_fractions else "s")
    return texts if column.unit.zone is None else np.char.add(texts, "+00:00")


def _num_rows(columns: Columns) -> int:
    first = next(iter(columns.values()))
    if isinstance(first, Repeated):
        return len(first.values) * first.times
    return len(first.values if isinstance(first, Moments) else first)


def _sync(path: Path) -> None:
    """Until then a crash of the machine would leave less of the file than the journal says."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _text_of(value: object) -> str:
    return wire.write(value).decode()
