"""Tables in files, read in chunks within bounded memory: parquet, CSV and NDJSON.

Knows nothing of models or tasks: which columns are read is an argument.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from service import wire
from service.runtime.tensors import Array
from service.scoring.chunks import SHOWN, FileChunk
from service.scoring.formats import BUFFER_BYTES, NDJSON, PARQUET, TSV, first_line, format_of
from service.tasks.tables import Rejection, TableError, TableForm, TimeUnit

MAX_LINE_BYTES = 64 * 2**20
_NAN = re.compile(rb"(?<=[:,\[\s])NaN(?=\s*[,}\]])")
DAMAGED = (OSError, EOFError, zlib.error)
"""What reading a file raises that is damaged, compressed ones too."""


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
                    raise TableError(f"{self.path}: it cannot be read beyond row {start}: {first_line(exc)}") from exc
                if batch is None:
                    return
                stop = start + batch.num_rows
                columns = {name: batch.column(name) for name in self.form.needed}
                yield Portion(
                    FileChunk(np.arange(start, stop), columns, self.form, self.units), [], stop / max(1, self._num_rows)
                )
                start = stop

    def _open(self, dictionaries: Sequence[str]) -> Any:
        try:
            # Not as whole row groups, which may be the whole file.
            return pq.ParquetFile(self.path, pre_buffer=False, buffer_size=BUFFER_BYTES, read_dictionary=list(dictionaries))
        except (pa.ArrowException, OSError, UnicodeDecodeError) as exc:
            raise TableError(f"{self.path}: it is no parquet file, or not a whole one: {first_line(exc)}") from exc


class CsvSource(Source):
    def __init__(self, path: Path, form: TableForm, sizes: ChunkSizes, delimiter: str) -> None:
        super().__init__(path, form, sizes)
        self._delimiter = delimiter
        with _open_binary(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
            try:
                header = next(csv.reader([text.readline(sizes.block_bytes)], delimiter=delimiter), [])
            except UnicodeDecodeError as exc:
                raise TableError(f"{path}: it is no text in UTF-8: {first_line(exc)}") from exc
            except (csv.Error, *DAMAGED) as exc:
                raise TableError(f"{path}: its header cannot be read: {first_line(exc)}") from exc
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
                raise TableError(f"{self.path}: it cannot be read: {first_line(exc)}") from exc
            while True:
                try:
                    batch = reader.read_next_batch()
                except StopIteration:
                    break
                except (pa.ArrowException, *DAMAGED) as exc:
                    raise TableError(f"{self.path}: it cannot be read beyond row {start}: {first_line(exc)}") from exc
                rows, rejections, start = _number_rows(start, batch.num_rows, bad)
                bad.clear()
                columns = {name: batch.column(name) for name in names}
                yield Portion(FileChunk(rows, columns, self.form, self.units, parses_json=True), rejections, read_share())
            if bad:
                rows, rejections, start = _number_rows(start, 0, bad)
                empty = pa.array([], pa.string())
                yield Portion(FileChunk(rows, dict.fromkeys(names, empty), self.form, self.units), rejections, read_share())


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
            raise TableError(f"{path}: its first line is no JSON: {first_line(exc)}") from exc
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
                yield Portion(FileChunk(rows, columns, self.form, self.units), rejections, read_share())

    def _read_alike(self, block: bytes) -> Any:
        """The lines of a block where each has the columns in the types of the first; None where they have not, or are no JSON.

        pyarrow also reads several objects in one line, and one in several: each block is then read line by line.
        """
        if not self.form.runs:
            return None
        try:
            block.decode()
            table = pa.json.read_json(
                pa.BufferReader(block),
                read_options=pa.json.ReadOptions(use_threads=False, block_size=len(block) + 1),
                parse_options=pa.json.ParseOptions(explicit_schema=self._schema, unexpected_field_behavior="ignore"),
            )
        except (pa.ArrowException, UnicodeDecodeError):
            return None
        num_lines = block.count(b"\n") + (not block.endswith(b"\n"))
        return table if table.num_rows == num_lines else None

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
                value = _read_line(line, takes_nan=bool(self.form.runs))
            except ValueError as exc:
                rejections.append(Rejection(number, number + 1, f"it is no JSON: {first_line(exc)}"))
            else:
                if isinstance(value, dict):
                    rows.append(number)
                    found.append(value)
                else:
                    rejections.append(Rejection(number, number + 1, "expected an object with the columns as its fields"))
            number += 1
        return np.array(rows, np.int64), {name: [each.get(name) for each in found] for name in names}, rejections, number


def _read_line(line: bytes, *, takes_nan: bool) -> object:
    """The JSON of a line; NaN, as Python's json writes it and pyarrow reads it, may be taken as null. Raises ValueError."""
    try:
        return wire.read(line)
    except ValueError:
        if not takes_nan:
            raise
        return wire.read(_NAN.sub(b"null", line))


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
            raise TableError(f"{path}: it cannot be read: {first_line(exc)}") from exc
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
