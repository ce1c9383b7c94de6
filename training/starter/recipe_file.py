"""Writes a starter recipe: reads the table, lets a starter compose the text, and writes it where no other file is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol

import polars as pl

from training.data.columns import expect_rows
from training.data.sources import DataError, read_table
from training.recipe import SeriesSource, parse_recipe

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


class Starter(Protocol):
    """What a table is to be used for."""

    def compose(self, table: pl.DataFrame, path: str, name: str, command: str) -> str:
        """The recipe in TOML. Raises DataError where a model cannot learn from the table."""
        ...


def write_starter(
    file: Path,
    starter: Starter,
    *,
    name: str | None = None,
    replace: bool = False,
    folder: Path = Path(),
    data: Path | None = None,
    command: str = "python -m training run",
) -> Path:
    """Write a recipe for a CSV, TSV or parquet file as `<name>.toml` in `folder`, and return its path.

    The name is the file's own unless one is given; `data` is where $SLUICE_DATA points; `command` trains a recipe, and is
    named in its first comment. Raises DataError for a file that is missing, no table, or nothing to learn from, and for a
    recipe that is there already; RecipeError for a name that no model can have.
    """
    name = name or name_of_file(file)
    target = folder / f"{name}.toml"
    if target.exists() and not replace:
        raise DataError(f"{target} exists: choose another --name, or overwrite it with --force")
    table, table_name = read_table(SeriesSource(path=str(file)), data, [])
    expect_rows(table, table_name)
    text = starter.compose(table, str(file), name, f"{command} {target}")
    parse_recipe(text, where=str(target))
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise DataError(f"{target} cannot be written: {exc.strerror}") from exc
    return target


def name_of_file(file: Path) -> str:
    """A model's name from a file's: `Sales 2024.csv.gz` gives Sales-2024."""
    return _NOT_IN_NAMES.sub("-", file.name.split(".")[0]).strip("-._") or "model"
