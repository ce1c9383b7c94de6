"""The same recipe with other cells: which one is better, on this data, by how much, and beyond the spread of the seeds?

Runs the task's own run for each cell and seed, publishes nothing, and gathers scores, times and parameters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from training.layers.registry import LAYERS, options_of
from training.recipe import Recipe, RecipeError
from training.runs.task import LayerTables, Task
from training.scoring.evaluate import Scores

# name → the layer's type, and whether it reads in both directions
RECURRENT = {
    "simple_rnn": ("simple_rnn", False),
    "gru": ("gru", False),
    "lstm": ("lstm", False),
    "birnn": ("simple_rnn", True),
    "bigru": ("gru", True),
    "bilstm": ("lstm", True),
}
CELLS = (*RECURRENT, "mlp")


@dataclass(frozen=True)
class CellRun:
    """One run of one cell."""

    cell: str
    seed: int
    scores: Scores
    num_parameters: int
    duration_s: float
    num_epochs: int


@dataclass(frozen=True)
class Comparison:
    """All runs of a recipe, and the baselines' scores (mean over the seeds, which may cut the data differently)."""

    recipe: str
    runs: tuple[CellRun, ...]
    baselines: Mapping[str, Scores]
    larger_is_better: tuple[str, ...] = ()

    @property
    def cells(self) -> list[str]:
        return list(dict.fromkeys(run.cell for run in self.runs))

    @property
    def measures(self) -> list[str]:
        return list(self.runs[0].scores)

    def runs_of(self, cell: str) -> list[CellRun]:
        return [run for run in self.runs if run.cell == cell]

    def scores(self, cell: str, measure: str) -> list[float]:
        return [run.scores[measure] for run in self.runs_of(cell) if measure in run.scores]

    def is_larger_better(self, measure: str) -> bool:
        """Whether a larger score is better; of several test sets each measure begins with its set's name."""
        return measure.split("_")[-1] in self.larger_is_better


def with_cell(recipe: Recipe, task: Task[Any], cell: str) -> Recipe:
    """The recipe with every recurrent layer replaced. Raises RecipeError for an unknown cell, or where there is none to replace.

    Options that the new cell has are kept. mlp: the first recurrent layer becomes the steps as one vector, in the way of
    the task, and a dense layer with relu, further ones dense layers with relu alone; layers over steps are left out behind
    it.
    """
    if cell not in CELLS:
        raise RecipeError(f'no cell "{cell}"; there are {", ".join(CELLS)}')
    places = [index for index, table in enumerate(recipe.layers) if _recurrent(table)]
    if not places:
        raise RecipeError(f'"{recipe.name}" has no recurrent layer that could be replaced')
    layers: LayerTables = []
    for index, table in enumerate(recipe.layers):
        inner = _recurrent(table)
        if cell == "mlp":
            if inner:
                layers += task.layers_without_steps(recipe) if index == places[0] else []
                layers.append({"type": "dense", "units": inner["units"], "activation": "relu"})
            elif index < places[0] or not _is_about_steps(table):
                layers.append(table)  # behind a dense layer in the place of a recurrent one there are no steps
        elif inner:
            layers.append(_replace_cell(inner, table, *RECURRENT[cell]))
        else:
            layers.append(table)
    return recipe.model_copy(update={"layers": layers})


def compare(
    recipe: Recipe, task: Task[Any], cells: Sequence[str], num_seeds: int, *, data: Path | None, folder: Path, console: Console
) -> Comparison:
    """Train every cell with `num_seeds` seeds from the recipe's own on. All runs write their checkpoints to `folder`."""
    recipes = {cell: with_cell(recipe, task, cell) for cell in cells}
    runs: list[CellRun] = []
    baselines: dict[str, list[Scores]] = {}
    quiet = Console(quiet=True)
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(recipe.seed, recipe.seed + num_seeds):
        for cell, changed in recipes.items():
            seeded = changed.model_copy(update={"seed": seed})
            publication, report = task.run(seeded, data=data, folder=folder, resume=False, console=quiet)
            fitted = report.fitted
            num_parameters = int(publication.facts["num_parameters"])
            runs.append(CellRun(cell, seed, report.metrics, num_parameters, fitted.duration_s, len(fitted.epochs)))
            first = next(iter(report.metrics.items()))
            console.print(f"seed {seed}  {cell:11} {first[0]} {first[1]:.4g}  {fitted.duration_s:.0f} s", highlight=False)
        for name, scores in report.baselines.items():
            baselines.setdefault(name, []).append(scores)
    means = {name: {key: float(np.mean([s[key] for s in found])) for key in found[0]} for name, found in baselines.items()}
    return Comparison(recipe.name, tuple(runs), means, task.larger_is_better)


def rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table: mean ± standard deviation over the seeds; baselines below."""
    header = ["cell", "parameters", "s per epoch", "epochs", *comparison.measures]
    body = []
    for cell in comparison.cells:
        runs = comparison.runs_of(cell)
        per_epoch = np.mean([run.duration_s / run.num_epochs for run in runs])
        epochs = np.mean([run.num_epochs for run in runs])
        scores = [format_scores(comparison.scores(cell, measure)) for measure in comparison.measures]
        body.append([cell, f"{runs[0].num_parameters:,}", f"{per_epoch:.2f}", f"{epochs:.0f}", *scores])
    for name, found in comparison.baselines.items():
        scores = [f"{found[measure]:.4g}" if measure in found else "" for measure in comparison.measures]
        body.append([name, "", "", "", *scores])
    return header, body


def format_scores(scores: Sequence[float]) -> str:
    """Mean ± sample standard deviation; without it where there is one seed."""
    mean = f"{np.mean(scores):.4g}"
    return mean if len(scores) < 2 else f"{mean} ± {np.std(scores, ddof=1):.2g}"


def conclusions(comparison: Comparison, measure: str | None = None) -> list[str]:
    """One sentence for the LSTM (or else the first cell) against each other cell, by `measure` or else the first one.

    One cell is called better where the means differ by more than twice the standard error of their difference; with one
    seed none is.
    """
    measure = measure or comparison.measures[0]
    reference = "lstm" if "lstm" in comparison.cells else comparison.cells[0]
    own = np.array(comparison.scores(reference, measure))
    sentences = []
    for other in comparison.cells:
        if other == reference:
            continue
        found = np.array(comparison.scores(other, measure))
        gain = float(own.mean() - found.mean()) * (1 if comparison.is_larger_better(measure) else -1)
        error = float(np.sqrt(sum(part.var(ddof=1) / len(part) for part in (own, found)))) if len(own) > 1 else float("inf")
        numbers = f"{measure} {format_scores(own.tolist())} against {format_scores(found.tolist())}"
        if abs(gain) <= 2 * error:
            reason = "one seed has no spread" if len(own) < 2 else "within the spread of the seeds"
            sentences.append(f"{reference} and {other}: no clear difference ({numbers}; {reason})")
        else:
            winner, loser = (reference, other) if gain > 0 else (other, reference)
            share = 100 * abs(gain) / max(abs(float(found.mean() if gain > 0 else own.mean())), 1e-12)
            sentences.append(f"{winner} beats {loser} by {share:.1f} % ({numbers})")
    return sentences


def show(comparison: Comparison, console: Console) -> None:
    """Print the tables, of so many columns that a narrow terminal holds them, and the conclusions."""
    header, body = rows(comparison)
    starts = [1, *range(4, len(header), 4)]
    for start, end in zip(starts, [*starts[1:], len(header)], strict=True):
        table = Table(header[0], *header[start:end])
        for column in table.columns[1:]:
            column.justify = "right"
        for row in body:
            if any(row[start:end]):
                table.add_row(row[0], *row[start:end])
        console.print(table)
    for sentence in conclusions(comparison):
        console.print(sentence, markup=False, highlight=False)


def write(comparison: Comparison, folder: Path) -> list[Path]:
    """compare.png, compare.md and compare.json in `folder`; returns their paths."""
    from training.reporting import plots

    groups, lines = {}, {}
    for measure in comparison.measures[:5]:
        direction = _direction(comparison, measure)
        title = f"{measure} ({direction})" if direction else measure
        groups[title] = [plots.Group(cell, comparison.scores(cell, measure)) for cell in comparison.cells]
        lines[title] = {name: found[measure] for name, found in comparison.baselines.items() if measure in found}
    times = {cell: [run.duration_s / run.num_epochs for run in comparison.runs_of(cell)] for cell in comparison.cells}
    groups["seconds per epoch"] = [plots.Group(cell, found) for cell, found in times.items()]
    num_seeds = len(comparison.runs_of(comparison.cells[0]))
    seeds = f"{num_seeds} seeds" if num_seeds > 1 else "one seed"
    picture = plots.comparison(groups, f"{comparison.recipe}: test scores of each cell, {seeds}", lines)
    header, body = rows(comparison)
    table = [header, ["---", *["---:"] * (len(header) - 1)], *body]
    text = "\n".join(f"| {' | '.join(row)} |" for row in table)
    paths = [folder / name for name in ("compare.png", "compare.md", "compare.json")]
    paths[0].write_bytes(picture)
    paths[1].write_text(
        text + "\n\n" + "\n".join(f"* {sentence}" for sentence in conclusions(comparison)) + "\n", encoding="utf-8"
    )
    found = {"runs": [vars(run) for run in comparison.runs], "baselines": comparison.baselines}
    paths[2].write_text(json.dumps(found, indent=2), encoding="utf-8")
    return paths


def _direction(comparison: Comparison, measure: str) -> str:
    if comparison.is_larger_better(measure):
        return "higher is better"
    return "" if measure.startswith("coverage") else "lower is better"


def _recurrent(table: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a recurrent layer, be it inside a bidirectional one; empty for another layer."""
    kind = LAYERS.get(str(table.get("type")))
    inner = table if kind is None or kind.is_per_step else table.get("layer", table)
    found = LAYERS.get(str(inner.get("type")))
    return dict(inner) if found is not None and found.is_recurrent else {}


def _replace_cell(inner: Mapping[str, Any], table: Mapping[str, Any], kind: str, is_bidirectional: bool) -> dict[str, Any]:
    known = {option: value for option, value in inner.items() if option in options_of(kind)} | {"type": kind}
    if not is_bidirectional:
        return known
    outer = {option: table[option] for option in ("merge_mode",) if option in table}
    return {"type": "bidirectional", "layer": known, **outer}


def _is_about_steps(table: Mapping[str, Any]) -> bool:
    kind = LAYERS.get(str(table.get("type")))
    return kind is not None and kind.is_about_steps
