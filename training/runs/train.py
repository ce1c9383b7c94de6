"""From a recipe to a published folder: the task's run, and the publication of what it gives."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from training.data.sources import DataError
from training.errors import TrainingError
from training.export.publish import publish, require_free
from training.fitting.checkpoints import require_same
from training.layers.registry import LayerError, read_config
from training.recipe import Recipe, RecipeError, line_of
from training.reporting import report
from training.runs.registry import TASKS
from training.runs.task import Task
from training.scoring.measures import baselines_ahead, decisive_measures


class NotBetter(TrainingError):
    """A model is not published, for it does not beat a baseline that it has to."""


def train(
    recipe: Recipe,
    path: Path,
    *,
    data: Path | None,
    models: Path,
    runs: Path,
    resume: bool = False,
    replace: bool = False,
    require_better_than: str = "",
    threads: int = 1,
    console: Console | None = None,
) -> Path:
    """Train by a recipe that was read from `path`, print the report, and return the published folder.

    `require_better_than` is a baseline that the model has to beat to be published, or "naive" for those that learn nothing;
    without it a model that is behind one of those is published with a warning. Raises a TrainingError; KeyboardInterrupt leaves
    a run that `resume` goes on with.
    """
    console = console or Console()
    require_free(recipe, models, replace=replace)
    task = TASKS[recipe.task]
    required = _required_baselines(recipe, task, require_better_than)
    # Two threads on two cores that others use too: 370 ms per step of a BiLSTM with 32 units; one thread: 18 ms.
    torch.set_num_threads(threads)
    folder = runs / recipe.name
    with lines_in_errors(path):
        for index, table in enumerate(recipe.layers):
            read_config(table, f"layers[{index}]")
        if resume:
            require_same(recipe, folder)
        publication, result = task.run(recipe, data=data, folder=folder, resume=resume, console=console)
    measures = decisive_measures(publication.metrics, task.decisive)
    ahead = baselines_ahead(publication.metrics, publication.baselines, measures)
    if missing := [name for name in required if name not in publication.baselines]:
        raise NotBetter(f"not published: the baseline {missing[0]} was not scored, so nothing says that the model is better")
    if worse := [name for name in required if name in ahead]:
        report.show_scores(result, recipe.name, console)
        raise NotBetter(f"not published: it is no better than {_name_ahead(ahead, worse)} on the test part")
    published = publish(publication, models, replace=replace)
    report.show(result, recipe.name, published, console)
    if worse := [name for name in task.naive if name in ahead]:
        console.print(f"warning     it is no better than {_name_ahead(ahead, worse)} on the test part", highlight=False)
    return published


def _required_baselines(recipe: Recipe, task: Task[Any], wanted: str) -> list[str]:
    """The baselines that have to be beaten. Raises RecipeError where the recipe scores none of them."""
    if not wanted:
        return []
    found = [name for name in recipe.baselines if name == wanted or (wanted == "naive" and name in task.naive)]
    if not found:
        known = ", ".join(recipe.baselines) or "none"
        raise RecipeError(f"--require-better-than {wanted}: the recipe scores no such baseline; evaluate.baselines has {known}")
    return found


def _name_ahead(ahead: Mapping[str, Sequence[str]], names: Sequence[str]) -> str:
    return "; ".join(f"{name} by {', '.join(ahead[name])}" for name in names)


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
