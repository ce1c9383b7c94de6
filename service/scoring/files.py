"""Tables in files, read in chunks and written in parts within bounded memory: parquet, CSV and NDJSON.

The only file that imports pyarrow. Knows nothing of models or tasks: which columns are read is an argument.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import os
import shutil
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from service import wire
from service.runtime.tensors import Array
from service.tasks.tables import Columns, Moments, Numbers, Rejection, Repeated, Runs, TableError, TableForm, Times, TimeUnit

PARQUET, CSV, TSV, NDJSON = "parquet", "csv", "tsv", "ndjson"
SUFFIXES = {".parquet": PARQUET, ".pq": PARQUET, ".csv": CSV, ".tsv": TSV, ".ndjson": NDJSON, ".jsonl": NDJSON}
BUFFER_BYTES = 2**20
MAX_LINE_BYTES = 64 * 2**20
MISSING = frozenset(("", "na", "nan", "n/a", "null", "none"))
"""What stands for a missing number in a CSV file, in any case."""
SHOWN = 60
DAMAGED = (OSError, EOFError, zlib.error)
"""What reading a file raises that is damaged, compressed ones too."""

_EPOCH = datetime(1970, 1, 1)


class ChunkSizes(NamedTuple):
    """How much of a file is read at once."""

    rows: int = 262_144
    """Of a parquet file whose rows hold a value each: 20 MB of three columns. Fewer cost more for each of them."""
    large_rows: int = 1024
    """Where a row may hold a text or a tensor."""
    block_bytes: int = 8 * 2**20
    """Of a text file. A line may be as long."""


class Portion(NamedTuple):
    """A chunk with the lines before or in it that are no rows, and how far reading has come, from 0 to 1."""

    chunk: FileChunk
    rejections: list[Rejection]
    progress: float


def format_of(path: Path) -> str:
    """The format that a file's name says. Raises TableError for others."""
    suffixes = [suffix for suffix in path.suffixes[-2:] if suffix != ".gz"]
    found = SUFFIXES.get(suffixes[-1].lower()) if suffixes else None
    if found is None:
        raise TableError(f"{path}: expected a name that ends in one of {sorted(SUFFIXES)}")
    return found


def open_source(path: Path, form: TableForm, sizes: ChunkSizes | None = None) -> Source:
    """A file whose name says its format; `.gz` may follow that of text. Raises TableError where it cannot be read."""
    kind = format_of(path)
    if not path.is_file():
        raise TableError(f"there is no file {path}")
    sizes = sizes or ChunkSizes()
    if kind == PARQUET:
        return ParquetSource(path, form, sizes)
    return NdjsonSource(path, form, sizes) if kind == NDJSON else CsvSource(path, form, sizes, "\t" if kind == TSV else ",")


class Source(ABC):
    """A file to be read from its beginning to its end, once."""

    def __init__(self, path: Path, form: TableForm, sizes: ChunkSizes) -> None:
        self.path = path
        self.form = form
        self.sizes = sizes
        self.units: dict[str, TimeUnit] = {}
        """Of text columns: what their first time was."""

    @abstractmethod
    def portions(self) -> Iterator[Portion]:
        """The rows in order. Raises TableError where the file cannot be read on."""

    def _expect_columns(self, there: Sequence[str]) -> None:
        twice = [name for name in self.form.needed if there.count(name) > 1]
        if twice:
            raise TableError(f'{self.path}: column "{twice[0]}" is there twice')
        missing = [name for name in self.form.needed if name not in there]
        if missing:
            shown = ", ".join(f'"{name[:SHOWN]}"' for name in there[:20])
            raise TableError(f'{self.path}: there is no column "{missing[0]}"; the columns are {shown or "none"}')


class ParquetSource(Source):
    def __init__(self, path: Path, form: TableForm, sizes: ChunkSizes) -> None:
        super().__init__(path, form, sizes)
        with self._open(()) as file:
            schema = file.schema_arrow
            self._num_rows = file.metadata.num_rows
        self._expect_columns(schema.names)
        self._dictionaries = [
            name for name in form.runs if pa.types.is_string(kind := schema.field(name).type) or pa.types.is_large_string(kind)
        ]

    def portions(self) -> Iterator[Portion]:
        size = self.sizes.rows if self.form.runs else self.sizes.large_rows
        start = 0
        with self._open(self._dictionaries) as file:
            batches = file.iter_batches(size, columns=list(self.form.needed))
            while True:
                try:
                    batch = next(batches, None)
                except (pa.ArrowException, OSError) as exc:
                    raise TableError(f"{self.path}: it cannot be read beyond row {start}: {_first_line(exc)}") from exc
                if batch is None:
                    return
                stop = start + batch.num_rows
                columns = {name: batch.column(name) for name in self.form.needed}
                yield Portion(FileChunk(np.arange(start, stop), columns, self), [], stop / max(1, self._num_rows))
                start = stop

    def _open(self, dictionaries: Sequence[str]) -> Any:
        try:
            # Not as whole row groups, which may be the whole file.
            return pq.ParquetFile(self.path, pre_buffer=False, buffer_size=BUFFER_BYTES, read_dictionary=list(dictionaries))
        except (pa.ArrowException, OSError, UnicodeDecodeError) as exc:
            raise TableError(f"{self.path}: it is no parquet file, or not a whole one: {_first_line(exc)}") from exc


class CsvSource(Source):
    def __init__(self, path: Path, form: TableForm, sizes: ChunkSizes, delimiter: str) -> None:
        super().__init__(path, form, sizes)
        self._delimiter = delimiter
        with _open_binary(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
            try:
                header = next(csv.reader([text.readline(sizes.block_bytes)], delimiter=delimiter), [])
            except UnicodeDecodeError as exc:
                raise TableError(f"{path}: it is no text in UTF-8: {_first_line(exc)}") from exc
            except (csv.Error, *DAMAGED) as exc:
                raise TableError(f"{path}: its header cannot be read: {_first_line(exc)}") from exc
        self._expect_columns(header)

    def portions(self) -> Iterator[Portion]:
        bad: list[tuple[int, str]] = []

        def skip(row: Any) -> str:
            expected, found = row.expected_columns, row.actual_columns
            # The number is that of the line's row, the header being 1; without one it stands behind those before.
            bad.append((-1 if row.number is None else row.number - 2, f"expected {expected} columns, got {found}"))
            return "skip"

        names = list(self.form.needed)
        convert = pa.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            include_columns=names,
            strings_can_be_null=True,
            null_values=[""],
            check_utf8=True,
        )
        parse = pa.csv.ParseOptions(delimiter=self._delimiter, newlines_in_values=True, invalid_row_handler=skip)
        start = 0
        with _open_counting(self.path) as (file, read_share):
            try:
                options = pa.csv.ReadOptions(block_size=self.sizes.block_bytes, use_threads=False)
                reader = pa.csv.open_csv(file, read_options=options, parse_options=parse, convert_options=convert)
            except (pa.ArrowException, *DAMAGED) as exc:
                raise TableError(f"{self.path}: it cannot be read: {_first_line(exc)}") from exc
            while True:
                try:
                    batch = reader.read_next_batch()
                except StopIteration:
                    break
                except (pa.ArrowException, *DAMAGED) as exc:
                    raise TableError(f"{self.path}: it cannot be read beyond row {start}: {_first_line(exc)}") from exc
                rows, rejections, start = _number_rows(start, batch.num_rows, bad)
                bad.clear()
                columns = {name: batch.column(name) for name in names}
                yield Portion(FileChunk(rows, columns, self, parses_json=True), rejections, read_share())
            if bad:
                rows, rejections, start = _number_rows(start, 0, bad)
                empty = pa.array([], pa.string())
                yield Portion(FileChunk(rows, dict.fromkeys(names, empty), self), rejections, read_share())


class NdjsonSource(Source):
    """Lines are read one by one; those of the long form, many for each prediction, by the block where they are alike."""

    def __init__(self, path: Path, form: TableForm, sizes: ChunkSizes) -> None:
        """The first line tells the columns; in later ones a field that is left out is null."""
        super().__init__(path, form, sizes)
        with _open_counting(path) as (file, _):
            block = next(_line_blocks(file, path, sizes.block_bytes), b"")
        try:
            first = wire.read(block.lstrip().partition(b"\n")[0])
        except ValueError as exc:
            raise TableError(f"{path}: its first line is no JSON: {_first_line(exc)}") from exc
        if not isinstance(first, dict):
            raise TableError(f"{path}: its first line is no object with the columns as its fields")
        self._expect_columns(list(first))
        self._schema = self._schema_of(first)

    def portions(self) -> Iterator[Portion]:
        start = 0
        names = self.form.needed
        with _open_counting(self.path) as (file, read_share):
            for block in _line_blocks(file, self.path, self.sizes.block_bytes):
                table = self._read_alike(block)
                if table is not None:
                    rows: Array = np.arange(start, start + table.num_rows)
                    rejections: list[Rejection] = []
                    columns: dict[str, Any] = {name: table.column(name).combine_chunks() for name in names}
                    start += table.num_rows
                else:
                    rows, columns, rejections, start = self._read_lines(block, start)
                yield Portion(FileChunk(rows, columns, self), rejections, read_share())

    def _read_alike(self, block: bytes) -> Any:
        """The lines of a block where each has the columns in the types of the first; None where they have not, or are no JSON."""
        if not self.form.runs:
            return None
        try:
            block.decode()
            return pa.json.read_json(
                pa.BufferReader(block),
                read_options=pa.json.ReadOptions(use_threads=False, block_size=len(block) + 1),
                parse_options=pa.json.ParseOptions(explicit_schema=self._schema, unexpected_field_behavior="ignore"),
            )
        except (pa.ArrowException, UnicodeDecodeError):
            return None

    def _schema_of(self, line: Mapping[str, object]) -> Any:
        kinds = {str: pa.string(), int: pa.int64(), float: pa.float64()}
        types = {
            name: pa.float64() if name in self.form.numeric else kinds.get(type(line[name]), pa.string())
            for name in self.form.needed
        }
        return pa.schema(list(types.items()))

    def _read_lines(self, block: bytes, start: int) -> tuple[Array, dict[str, Any], list[Rejection], int]:
        names = self.form.needed
        rows: list[int] = []
        found: list[Mapping[str, object]] = []
        rejections: list[Rejection] = []
        number = start
        for line in block.split(b"\n"):
            if not line.strip():
                continue
            try:
                value = wire.read(line)
            except ValueError as exc:
                rejections.append(Rejection(number, number + 1, f"it is no JSON: {_first_line(exc)}"))
            else:
                if isinstance(value, dict):
                    rows.append(number)
                    found.append(value)
                else:
                    rejections.append(Rejection(number, number + 1, "expected an object with the columns as its fields"))
            number += 1
        return np.array(rows, np.int64), {name: [each.get(name) for each in found] for name in names}, rejections, number


class FileChunk:
    """Rows of a file, whose columns are pyarrow's arrays or lists of JSON values (see `tables.Chunk`)."""

    def __init__(self, rows: Array, columns: Mapping[str, Any], source: Source, *, parses_json: bool = False) -> None:
        """`parses_json`: what is no text is JSON in a text column, as nested lists in a CSV file are."""
        self._rows = rows
        self._columns = columns
        self._source = source
        self._parses_json = parses_json

    @property
    def rows(self) -> Array:
        return self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def values(self, column: str) -> list[object]:
        found = self._columns[column]
        values: list[object] = found if isinstance(found, list) else found.to_pylist()
        if self._parses_json and column not in self._source.form.texts:
            return [_parse(value) if isinstance(value, str) else value for value in values]
        return values

    def numbers(self, column: str) -> Numbers:
        found = self._columns[column]
        if isinstance(found, list):
            return _read_numbers(found)
        found = _decode(found)
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
            found = _decode(found)
            kind = found.type
            if pa.types.is_timestamp(kind):
                return _times(
                    found.cast(pa.timestamp("us", kind.tz), safe=False).cast(pa.int64()), TimeUnit("timestamp", kind.tz)
                )
            if pa.types.is_date(kind):
                return _times(found.cast(pa.date32()).cast(pa.int32()).cast(pa.int64()), TimeUnit("date"))
            if pa.types.is_integer(kind):
                return _times(found.cast(pa.int64(), safe=False), TimeUnit("integer"))
        unit = self._source.units.get(column)
        if unit is None:
            first = next((value for value in (found if isinstance(found, list) else found.drop_null().to_pylist()[:1])), None)
            unit = self._source.units[column] = _unit_of(first)
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


# ------------------------------------------------------------------------------------------------------------ writing


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
        raise TableError(f"the output has columns of several types, which NDJSON can hold: {_first_line(exc)}") from exc


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
            raise TableError(f'column "{name}" has values of several types, which NDJSON can hold: {_first_line(exc)}') from exc
    return column if isinstance(column, pa.Array | pa.ChunkedArray) else pa.array(column)


def _as_text(column: Any) -> Any:
    """A column as CSV can hold it: names as texts, times in ISO 8601, lists as JSON."""
    if isinstance(column, Repeated):
        return _decode(_as_arrow("", column))
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


# ------------------------------------------------------------------------------------------------------------ reading


@contextlib.contextmanager
def _open_counting(path: Path) -> Iterator[tuple[BinaryIO, Callable[[], float]]]:
    """A file, decompressed, and how much of it was read, from 0 to 1."""
    size = max(1, path.stat().st_size)
    with path.open("rb") as raw:
        file: Any = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
        yield file, lambda: min(1.0, (0 if raw.closed else raw.tell()) / size)


def _open_binary(path: Path) -> Any:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _line_blocks(file: BinaryIO, path: Path, block_bytes: int) -> Iterator[bytes]:
    """The whole lines of a file, many at a time."""
    rest = b""
    while True:
        try:
            block = file.read(block_bytes)
        except DAMAGED as exc:
            raise TableError(f"{path}: it cannot be read: {_first_line(exc)}") from exc
        if not block:
            break
        head, newline, tail = block.rpartition(b"\n")
        if newline:
            yield rest + head + newline
            rest = tail
        else:
            rest += block
        if len(rest) > MAX_LINE_BYTES:
            raise TableError(f"{path}: a line has more than {MAX_LINE_BYTES} bytes")
    if rest.strip():
        yield rest


def _number_rows(start: int, num: int, bad: Sequence[tuple[int, str]]) -> tuple[Array, list[Rejection], int]:
    """The numbers of so many rows, between which bad lines lie; these; and the number of what follows."""
    stop = start + num + len(bad)
    numbers = [number if start <= number < stop else stop - 1 - place for place, (number, _) in enumerate(reversed(bad))][::-1]
    rejections = [Rejection(number, number + 1, reason) for number, (_, reason) in zip(numbers, bad, strict=True)]
    rows = np.arange(start, stop)
    return (np.delete(rows, [number - start for number in numbers]) if bad else rows), rejections, stop


def _decode(found: Any) -> Any:
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


def _text_of(value: object) -> str:
    return wire.write(value).decode()


def _show(value: object) -> str:
    if value is None:
        return "null"
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _first_line(exc: BaseException) -> str:
    return (str(exc).strip() or type(exc).__name__).splitlines()[0][:300]
