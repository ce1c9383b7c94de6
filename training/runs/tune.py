"""The same recipe with other options: which of them validate best, within a time budget?

Runs the task's own run for each trial and publishes nothing. The validation part decides; what a run says of the test part is
not looked at. What is tried next is `search.py`'s.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from training.errors import TrainingError
from training.layers.registry import read_config
from training.recipe import Recipe, RecipeError, Tune, recipe_of_json
from training.recipe.ranges import Range, Value, read_values
from training.recipe.toml_keys import parse_location, parse_value, set_value
from training.runs.search import Search, SearchTrial
from training.runs.task import Task

SECONDS_PER_MINUTE = 60.0
FAILURES_IN_A_ROW = 5
"""So many trials that fail one after the other, and none that did not, end a search: the fault is not in the values."""
TOO_LATE = "ended by the time budget"
STUDY_FILE = "search.log"


@dataclass(frozen=True)
class Tuning:
    """The trials of a search of one recipe."""

    recipe: Recipe
    trials: tuple[SearchTrial, ...]

    @property
    def best(self) -> SearchTrial | None:
        """The first of those with the lowest validation score; None where every trial failed."""
        scored = [trial for trial in self.trials if trial.score is not None]
        return min(scored, key=lambda trial: trial.score or 0.0, default=None)


def with_options(recipe: Recipe, options: Sequence[str], *, minutes: float | None, trials: int | None) -> Recipe:
    """The recipe whose `[tune]` has the options `KEY=VALUES`, and these bounds instead of its own. Raises RecipeError."""
    table = (recipe.tune or Tune()).model_dump()
    if options:
        table["options"] = {}
    for option in options:
        key, equals, raw = option.partition("=")
        if not equals or not key.strip():
            raise RecipeError(f"--option {option}: expected KEY=LOW..HIGH or KEY=[VALUE, VALUE]")
        values = parse_value(raw)
        table["options"][key.strip()] = values if isinstance(values, list) else raw.strip()
    bounds = {"minutes": minutes, "trials": trials}
    table |= {name: bound for name, bound in bounds.items() if bound is not None}
    if not table["options"]:
        raise RecipeError(
            "no option to search: give --option fit.learning_rate=1e-4..1e-2, or a table [tune] with options in the recipe"
        )
    return recipe_of_json(recipe.as_json() | {"tune": table})


def with_values(recipe: Recipe, values: Mapping[str, Value]) -> Recipe:
    """The recipe with other values of options by their keys. Raises RecipeError, or LayerError for a layer's option."""
    content = recipe.as_json()
    for key, value in values.items():
        try:
            set_value(content, parse_location(key), value)
        except ValueError as exc:
            raise RecipeError(f"{key}: {exc}") from exc
    changed = recipe_of_json(content)
    for index, table in enumerate(changed.layers):
        read_config(table, f"layers[{index}]")
    return changed


def tune(recipe: Recipe, task: Task[Any], *, data: Path | None, folder: Path, resume: bool, console: Console) -> Tuning:
    """Try values of the options of `recipe.tune` until the time or the number of trials is used up, the recipe's own first.

    The trial that runs when the time is up is ended, and has no score. Trials lie in `folder`; with `resume` those count
    too that lie there, and `minutes` are those of this call. Raises RecipeError for an option that cannot be set,
    SearchError where nothing can be resumed, and TrainingError where trial after trial fails.
    """
    assert recipe.tune is not None
    if not recipe.data.is_validation_apart:
        raise RecipeError(f'"{recipe.name}" learns from its validation part, which can choose no options then')
    options = {key: read_values(given) for key, given in recipe.tune.options.items()}
    for key, values in options.items():
        first = (int(values.low) if values.is_whole else values.low) if isinstance(values, Range) else values.values[0]
        with_values(recipe, {key: first})
    plain = recipe.model_copy(update={"tune": None})
    about = json.dumps([plain.as_json(), recipe.tune.options], sort_keys=True)
    search = Search(folder / STUDY_FILE, options, seed=recipe.seed, about=about, resume=resume)
    own = {key: _value_at(recipe, key) for key in options}
    search.suggest({key: value for key, value in own.items() if options[key].contains(value)})
    deadline = time.monotonic() + SECONDS_PER_MINUTE * recipe.tune.minutes
    while len(search.trials) < recipe.tune.trials and time.monotonic() < deadline:
        trial = _run_trial(plain, task, search.ask(), deadline, data=data, folder=folder / "trial")
        search.tell(trial)
        console.print(
            f"trial {trial.number:3}  {_outcome(trial)}  {_changes(trial)}", highlight=False, soft_wrap=True, markup=False
        )
        last = search.trials[-FAILURES_IN_A_ROW:]
        if len(last) == FAILURES_IN_A_ROW and all(found.score is None for found in search.trials):
            raise TrainingError(f"{FAILURES_IN_A_ROW} trials and none without a failure; the last one: {trial.note}")
    return Tuning(plain, tuple(search.trials))


def show(tuning: Tuning, console: Console, command: str, *, num_rows: int = 10) -> None:
    """Print the best trials, and the command that trains with the values of the best one."""
    best = tuning.best
    if best is None:
        why = tuning.trials[-1].note if tuning.trials else "none began within the time"
        console.print(f"no trial has a score: {why}", highlight=False, markup=False, soft_wrap=True)
        return
    scored = sorted((trial for trial in tuning.trials if trial.score is not None), key=lambda trial: trial.score or 0.0)
    table = Table("trial", "validation", "s", *best.values)
    for column in table.columns:
        column.justify = "right"
    for trial in scored[:num_rows]:
        table.add_row(str(trial.number), f"{trial.score:.4g}", f"{trial.seconds:.0f}", *map(_text, trial.values.values()))
    console.print(table)
    console.print(f"next        {escape(command)} {escape(_changes(best))}", highlight=False, soft_wrap=True)


def write(tuning: Tuning, folder: Path) -> Path:
    """tune.json in `folder`: every trial with its values; returns its path."""
    best = tuning.best
    found = {"best": None if best is None else best.number, "trials": [vars(trial) for trial in tuning.trials]}
    path = folder / "tune.json"
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return path


def _run_trial(
    recipe: Recipe, task: Task[Any], trial: SearchTrial, deadline: float, *, data: Path | None, folder: Path
) -> SearchTrial:
    started = time.monotonic()
    minutes = max(deadline - started, 1.0) / SECONDS_PER_MINUTE
    score, note = None, ""
    try:
        changed = with_values(recipe, trial.values)
        # Neither baselines nor an int8 graph say anything of the validation part.
        bounds = {"minutes": minutes if changed.fit.minutes is None else min(minutes, changed.fit.minutes)}
        changed = changed.model_copy(
            update={
                "fit": changed.fit.model_copy(update=bounds),
                "evaluate": changed.evaluate.model_copy(update={"baselines": ()}),
                "quantize": None,
            }
        )
        _, report = task.run(changed, data=data, folder=folder, resume=False, console=Console(quiet=True))
        is_late = report.fitted.duration_s >= SECONDS_PER_MINUTE * minutes
        score, note = (None, TOO_LATE) if is_late else (report.fitted.best.validation, "")
    except TrainingError as exc:
        note = str(exc)
    return replace(trial, score=score, note=note, seconds=round(time.monotonic() - started, 1))


def _value_at(recipe: Recipe, key: str) -> Any:
    found: Any = recipe.model_dump(mode="json")
    for part in parse_location(key):
        try:
            found = found[part]
        except (KeyError, IndexError, TypeError):
            return None
    return found


def _outcome(trial: SearchTrial) -> str:
    return f"validation {trial.score:.4g}" if trial.score is not None else trial.note.partition("\n")[0]


def _changes(trial: SearchTrial) -> str:
    return " ".join(f"--set {shlex.quote(f'{key}={_text(value)}')}" for key, value in trial.values.items())


def _text(value: Value) -> str:
    """As TOML has it."""
    return json.dumps(value) if isinstance(value, bool | str) else f"{value:g}" if isinstance(value, float) else str(value)
