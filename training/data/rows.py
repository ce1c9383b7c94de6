"""Rows of features with a label or numbers to predict: read from tables, split at random, each label in its share.

Values stay raw: scaling is part of the network. Nothing here knows torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from training.data.columns import class_indices, expect_columns, expect_rows, read_classes
from training.data.series import Float32, Int64, numbers
from training.data.sources import Content, DataError, read_table, with_location
from training.recipe import RowData, RowSource


@dataclass(frozen=True)
class Rows:
    """Rows of features, and the label or the numbers of each."""

    values: Float32  # (N, F)
    answers: npt.NDArray[Any]  # labels as int64 (N,), or numbers as float32 (N, targets)

    def __len__(self) -> int:
        return len(self.values)

    def take(self, index: Int64) -> Rows:
        """Some of the rows, in this order."""
        return Rows(self.values[index], self.answers[index])


@dataclass(frozen=True)
class RowSplit:
    """A recipe's rows: the training part, the validation part (which chooses the epoch), and the test part."""

    features: tuple[str, ...]
    labels: tuple[str, ...]  # empty where numbers are predicted
    targets: tuple[str, ...]  # empty where labels are predicted
    train: Rows
    validation: Rows
    test: Rows
    contents: tuple[Content, ...] = ()

    @property
    def num_answers(self) -> int:
        """Labels, or numbers per row."""
        return len(self.labels) or len(self.targets)


def read_rows(data: RowData, folder: Path | None, seed: int) -> RowSplit:
    """The rows of a recipe: with `data.targets` numbers are predicted, else labels. The same seed splits the same way.

    Raises DataError: a missing file or column, a value that is missing or no number, a label outside the classes, or an
    empty part.
    """
    contents: list[Content] = []
    parts: dict[str, list[tuple[pl.DataFrame, str, RowSource]]] = {"train": [], "validation": [], "test": []}
    for role, sources in (("train", data.train), ("validation", data.validation), ("test", data.test)):
        for number, source in enumerate(sources):
            with with_location("data", role, number):
                table, name = read_table(source, folder, contents)
                expect_rows(table, name)
                parts[role].append((table, name, source))
    first, name, source = parts["train"][0]
    own = set(data.targets) if data.targets else {source.label}
    features = source.values or [column for column in first.columns if column not in own]
    labels: tuple[str, ...] = ()
    values: dict[str, int] = {}
    if not data.targets:
        with with_location("data", "train", 0):
            expect_columns(first, [source.label], name, "label")
        values, labels = read_classes(data.labels, first[source.label])
    found: dict[str, list[Rows]] = {}
    for role, entries in parts.items():
        found[role] = []
        for number, (table, name, source) in enumerate(entries):
            with with_location("data", role, number):
                found[role].append(_rows(table, name, source, features, data.targets, values))
    rng = np.random.default_rng(seed)
    train = _concatenate(found["train"])
    by_label = None if data.targets else train.answers
    test_share = 0.2 if data.test_share is None else data.test_share
    validation_share = 0.1 if data.validation_share is None else data.validation_share
    kept, back = hold_back(len(train), by_label, 0.0 if found["test"] else test_share, rng)
    test = _concatenate(found["test"]) if found["test"] else train.take(back)
    train = train.take(kept)
    by_label = None if data.targets else train.answers
    kept, back = hold_back(len(train), by_label, 0.0 if found["validation"] else validation_share, rng)
    validation = _concatenate(found["validation"]) if found["validation"] else train.take(back)
    split = RowSplit(tuple(features), labels, tuple(data.targets), train.take(kept), validation, test, tuple(contents))
    for role, part in (("learn from", split.train), ("validate with", validation), ("test with", test)):
        if not len(part):
            raise DataError(f"nothing left to {role}: see data.validation_share and data.test_share", location=("data",))
    return split


def hold_back(num_rows: int, labels: Int64 | None, share: float, rng: np.random.Generator) -> tuple[Int64, Int64]:
    """Indices to keep and to hold back, both in their old order; of each label about `share` is held back."""
    groups = np.zeros(num_rows, np.int64) if labels is None else labels
    back = [
        rng.permutation(members)[: round(share * len(members))]
        for members in (np.flatnonzero(groups == label) for label in np.unique(groups))
    ]
    held = np.sort(np.concatenate(back)).astype(np.int64) if back else np.zeros(0, np.int64)
    return np.setdiff1d(np.arange(num_rows), held), held


def _rows(
    table: pl.DataFrame,
    name: str,
    source: RowSource,
    features: Sequence[str],
    targets: Sequence[str],
    values: Mapping[str, int],
) -> Rows:
    expect_columns(table, features, name, "values")
    expect_columns(table, targets or [source.label], name, "" if targets else "label")
    given = _complete(table, features, name)
    if targets:
        return Rows(given, _complete(table, targets, name))
    return Rows(given, class_indices(table[source.label], values, name))


def _complete(table: pl.DataFrame, columns: Sequence[str], name: str) -> Float32:
    found = numbers(table.select(columns), name)
    if not np.isfinite(found).all():
        row, column = np.argwhere(~np.isfinite(found))[0]
        raise DataError(f'{name}: row {row + 1}: column "{columns[column]}" has no value', option="values")
    return found.astype(np.float32)


def _concatenate(parts: Sequence[Rows]) -> Rows:
    return Rows(np.concatenate([part.values for part in parts]), np.concatenate([part.answers for part in parts]))
