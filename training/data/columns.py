"""What tables of texts, rows and series have in common: the columns that a recipe names, and the labels in one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from training.data.sources import DataError
from training.recipe.base import Labels


def expect_rows(table: pl.DataFrame, name: str) -> None:
    """Raises DataError where the table `name` is a header alone."""
    if table.height == 0:
        raise DataError(f"{name}: has a header, but no rows")


def expect_columns(table: pl.DataFrame, columns: Sequence[str], name: str, option: str) -> None:
    """Raises DataError naming the first column that the table `name` lacks; `option` is the recipe's key that names it."""
    for column in columns:
        if column not in table.columns:
            raise DataError(f'{name}: has no column "{column}"; there are {", ".join(table.columns)}', option=option)


def read_classes(names_given: Labels, labels: pl.Series) -> tuple[dict[str, int], tuple[str, ...]]:
    """Value in the files → index of the class, and the classes' names: the recipe's, or else the distinct labels in order."""
    if isinstance(names_given, dict):
        names = tuple(dict.fromkeys(names_given.values()))
        values = {value: names.index(name) for value, name in names_given.items()}
    else:
        names = tuple(names_given) or tuple(sorted(labels.cast(pl.String).drop_nulls().unique().to_list()))
        values = {name: index for index, name in enumerate(names)}
        if names_given:  # names given for 0, 1, 2, …
            values |= {str(index): index for index in range(len(names)) if str(index) not in values}
    if len(set(names)) < len(names):
        raise DataError(f"the labels must differ, got {list(names)}", location=("data", "labels"))
    if len(names) < 2:
        raise DataError(f"a classifier needs two labels at least, got {list(names)}", location=("data", "labels"))
    return values, names


def class_indices(labels: pl.Series, values: Mapping[str, int], name: str) -> npt.NDArray[np.int64]:
    """The class of each label (N,). Raises DataError naming the first row, counted from 1, whose label is no class."""
    labels = labels.cast(pl.String)
    found = labels.replace_strict(values, default=None, return_dtype=pl.Int64)
    if found.null_count():
        row = first_row(found.is_null())
        raise DataError(f"{name}: row {row}: label {labels[row - 1]!r} is not one of {', '.join(sorted(values))}", option="label")
    return found.to_numpy().astype(np.int64)


def first_row(flags: pl.Series) -> int:
    """Number of the first true row, counted from 1."""
    return int(flags.arg_true()[0]) + 1
