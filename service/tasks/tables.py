"""How the instances and predictions of a task stand in the columns of a file, for whoever scores whole files. Pure.

Knows no library of files: rows come as a `Chunk`, and go out as `Columns` (see `service/scoring`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

from service.errors import ServiceError
from service.runtime.tensors import Array, Item, Tensors

Group = Callable[[Sequence[int]], list[list[int]]]
"""`service.tasks.base.GroupRows`."""


class TableError(ServiceError):
    """A file cannot be scored as a whole: it is not readable, lacks a column, or its rows are not in the order that is needed."""

    code = "table_error"


class TimeUnit(NamedTuple):
    """What the numbers of a column of times count: microseconds since 1970 (`timestamp`), days since then, or anything."""

    kind: Literal["timestamp", "date", "integer"]
    zone: str | None = None


class Numbers(NamedTuple):
    """A column of numbers, FP64 with NaN where there is none, and what stands where no number does, by place."""

    values: Array
    misfits: Mapping[int, str]


class Times(NamedTuple):
    """A column of times, INT64, and what stands where no time does, by place."""

    values: Array
    unit: TimeUnit
    misfits: Mapping[int, str]


class Runs(NamedTuple):
    """Where a column's value changes, INT64, from 0 on, and each value as text; None where there is none."""

    starts: Array
    values: list[str | None]


class Chunk(Protocol):
    """Rows of a file, one after the other. Columns are named as the file does."""

    @property
    def rows(self) -> Array:
        """The number of each row in the file, INT64, from 0."""
        ...

    def values(self, column: str) -> list[object]:
        """Each value as JSON has it; None where there is none."""
        ...

    def numbers(self, column: str) -> Numbers: ...

    def times(self, column: str) -> Times:
        """Raises TableError where the unit is another one than in the rows before."""
        ...

    def runs(self, column: str) -> Runs: ...

    def take(self, column: str, places: Sequence[int]) -> object:
        """Some values of a column as they are, in the form that `Columns` may hold."""
        ...


@dataclass(frozen=True)
class Repeated:
    """A column in which each value stands `times` times in a row."""

    values: Sequence[str]
    times: int


@dataclass(frozen=True)
class Moments:
    """A column of times."""

    values: Array
    unit: TimeUnit


Columns = dict[str, Any]
"""Column → its values: an array, a list of JSON values, `Repeated`, `Moments`, or what `Chunk.take` gave; all equally long."""


class Record(NamedTuple):
    """What one prediction is for: a row, or the rows of one series."""

    row: int
    """The number of its first row."""
    end: int
    """The number of the row behind its last."""
    payload: Any
    key: str | None = None
    """What the file calls it."""


class Rejection(NamedTuple):
    """A row, or the rows of one series, that cannot be scored."""

    row: int
    end: int
    reason: str
    key: str | None = None
    code: str = "invalid_input"


class Reading(NamedTuple):
    """What was found in a chunk, each in the order of the file."""

    records: list[Record]
    rejections: list[Rejection]


@dataclass(frozen=True)
class TableOptions:
    """What a caller says of a file."""

    columns: Mapping[str, str] = field(default_factory=dict)
    """The name that the task has for a column → the file's own, where they differ."""
    parameters: Mapping[str, object] = field(default_factory=dict)
    """As of a request."""
    keep: Sequence[str] = ()
    """Columns of the file that are copied beside the predictions."""


class TableForm(ABC):
    """Reads the records of one file, which come in its order, and writes their predictions."""

    ROW: ClassVar = "row"

    @property
    @abstractmethod
    def needed(self) -> tuple[str, ...]:
        """The columns of the file that are read, by its own names."""

    @property
    def texts(self) -> frozenset[str]:
        """Those of them that hold texts, in which nothing is missing."""
        return frozenset()

    @property
    def runs(self) -> frozenset[str]:
        """Those of them whose values are only read as `Runs`."""
        return frozenset()

    @property
    def numeric(self) -> frozenset[str]:
        """Those of them that are only read as `Numbers`."""
        return frozenset()

    @property
    def unfinished_row(self) -> int | None:
        """The first row of a record that may go on in the next chunk; None where there is none."""
        return None

    @abstractmethod
    def read(self, chunk: Chunk) -> Reading:
        """The records that are complete with this chunk, which follows the last one. Raises TableError."""

    def finish(self) -> Reading:
        """What is left when the file has ended."""
        return Reading([], [])

    @abstractmethod
    def run_steps(self, records: Sequence[Record], group: Group) -> Generator[list[Item], list[Tensors], Any]:
        """As `Task.run_steps`, of records; an error names a record by its place as `instance`.

        The predictions are what `write` takes: a list, or an array with a row for each record.
        """

    @abstractmethod
    def write(self, records: Sequence[Record], predictions: Any) -> Columns:
        """The predictions of records, as `run_steps` gave them or in a list, as columns."""


class RowForm(TableForm):
    """One row of the file is one instance."""

    def __init__(
        self,
        columns: Sequence[str],
        options: TableOptions,
        run_steps: Callable[[Sequence[object], Mapping[str, object], Group], Generator[list[Item], list[Tensors], Sequence[Any]]],
        write: Callable[[Sequence[Any]], Columns],
        *,
        texts: Sequence[str] = (),
    ) -> None:
        """`columns` are those of an instance, by the task's names; an instance of one column is its value alone.

        `write` turns predictions into columns. Raises TableError for columns that are not there.
        """
        self._columns = tuple(columns)
        self._names = name_columns(columns, options)
        self._texts = frozenset(self._names[column] for column in texts)
        self._parameters, self._keep = options.parameters, tuple(dict.fromkeys(options.keep))
        self._run_steps, self._write = run_steps, write

    @property
    def needed(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self._names.values(), *self._keep)))

    @property
    def texts(self) -> frozenset[str]:
        return self._texts

    def read(self, chunk: Chunk) -> Reading:
        values = [chunk.values(self._names[column]) for column in self._columns]
        if len(values) == 1:
            instances: Sequence[object] = values[0]
        else:
            instances = [dict(zip(self._columns, row, strict=True)) for row in zip(*values, strict=True)]
        rows: list[int] = chunk.rows.tolist()
        records = [
            Record(row, row + 1, (instance, chunk, place))
            for place, (row, instance) in enumerate(zip(rows, instances, strict=True))
        ]
        return Reading(records, [])

    def run_steps(self, records: Sequence[Record], group: Group) -> Generator[list[Item], list[Tensors], Sequence[Any]]:
        return self._run_steps([record.payload[0] for record in records], self._parameters, group)

    def write(self, records: Sequence[Record], predictions: Sequence[Any]) -> Columns:
        columns: Columns = {self.ROW: [record.row for record in records]}
        if self._keep:
            chunk: Chunk = records[0].payload[1]
            assert all(record.payload[1] is chunk for record in records), "records of one call are of one chunk"
            places = [record.payload[2] for record in records]
            columns |= {name: chunk.take(name, places) for name in self._keep}
        return columns | self._write(predictions)


def name_columns(columns: Sequence[str], options: TableOptions) -> dict[str, str]:
    """The file's name of each column of a task. Raises TableError for names that the task has not."""
    unknown = [name for name in options.columns if name not in columns]
    if unknown:
        raise TableError(f'there is no column "{unknown[0]}" to be named: this model reads {list(columns)}')
    return {column: options.columns.get(column, column) for column in columns}
