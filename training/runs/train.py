"""From a recipe to a published folder: the task's run, and the publication of what it gives."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console

from training.data.sources import DataError
from training.export.publish import publish, require_free
from training.fitting.checkpoints import require_same
from training.layers.registry import LayerError, read_config
from training.recipe import Recipe, RecipeError, line_of
from training.reporting import report
from training.runs.registry import TASKS


def train(
    recipe: Recipe,
    path: Path,
    *,
    data: Path | None,
    models: Path,
    runs: Path,
    resume: bool = False,
    replace: bool = False,
    threads: int = 1,
    console: Console | None = None,
) -> Path:
    """Train by a recipe that was read from `path`, print the report, and return the published folder.

    Raises a TrainingError; KeyboardInterrupt leaves a run that `resume` goes on with.
    """
    console = console or Console()
    require_free(recipe, models, replace=replace)
    # Two threads on two cores that others use too: 370 ms per step of a BiLSTM with 32 units; one thread: 18 ms.
    torch.set_num_threads(threads)
    folder = runs / recipe.name
    with lines_in_errors(path):
        for index, table in enumerate(recipe.layers):
            read_config(table, f"layers[{index}]")
        if resume:
            require_same(recipe, folder)
        publication, result = TASKS[recipe.task].run(recipe, data=data, folder=folder, resume=resume, console=console)
    published = publish(publication, models, replace=replace)
    report.show(result, recipe.name, published, console)
    return published


@contextmanager
def lines_in_errors(path: Path) -> Iterator[None]:
    """Errors about a layer or about data, raised inside, name the line of the recipe at `path` where it stands."""
    try:
        yield
    except LayerError as exc:
        place = re.match(r"layers\[(\d+)\]", exc.where)
        line = line_of(path, ("layers", int(place[1]))) if place and path.suffix == ".toml" else None
        raise RecipeError(f"{path}{f', line {line}' if line else ''}: {exc}") from exc
    except DataError as exc:
        if not exc.location:
            raise
        line = line_of(path, exc.location) if path.suffix == ".toml" else None
        key = ".".join(map(str, exc.location))
        raise RecipeError(f'{path}{f", line {line}" if line else ""}: "{key}": {exc}') from exc
