"""Commands that train, or look at what would be trained: `run`, `summary`, `compare`, `tune`."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from training.commands import options as option
from training.commands.console import errors_as_messages, split_names
from training.recipe import RECIPES, find_recipe, read_recipe


def run_command(
    recipe: option.Recipe,
    changes: option.Changes = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint of this recipe's run.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite the version that the recipe names.")] = False,
    require_better_than: Annotated[
        str,
        typer.Option(
            metavar="BASELINE", help="Publish only what beats this baseline of the recipe, or naive: all that learn nothing."
        ),
    ] = "",
    models: option.Models = Path("models"),
    runs: option.Runs = Path("runs"),
    threads: option.Threads = 1,
    data: option.Data = None,
) -> None:
    """Train by a recipe and publish the model folder."""
    console = Console(quiet=not _is_first_process())
    with errors_as_messages(console, "stopped; continue with --resume"):
        path = find_recipe(recipe)
        settings = read_recipe(path, changes or [])
        # Torch takes seconds to import: a recipe with a fault is refused before.
        from training.runs.train import train

        train(
            settings,
            path,
            data=data,
            models=models,
            runs=runs,
            resume=resume,
            replace=replace,
            require_better_than=require_better_than,
            threads=threads,
            console=console,
        )


def summary_command(
    what: Annotated[str, typer.Argument(help="A recipe (file or name), a version folder, or a .keras or .h5 file.")],
    data: option.Data = None,
) -> None:
    """Print the layers with their output shapes and parameters, as Keras does."""
    console = Console()
    with errors_as_messages(console):
        from training import summary
        from training.runs.train import lines_in_errors

        with lines_in_errors(Path(what) if Path(what).exists() else RECIPES / f"{what}.toml"):
            found = summary.summarize(what, data)
        summary.show(found, console)


def compare_command(
    recipe: option.Recipe,
    cells: Annotated[
        str, typer.Option(help="Of simple_rnn, gru, lstm, birnn, bigru, bilstm, mlp; separated by commas.")
    ] = "simple_rnn,gru,lstm,bilstm,mlp",
    seeds: Annotated[int, typer.Option(min=1, help="How often each cell is trained.")] = 3,
    changes: option.Changes = None,
    runs: option.Runs = Path("runs"),
    threads: option.Threads = 1,
    data: option.Data = None,
) -> None:
    """Train a recipe with other cells and compare scores, times and parameters; publishes nothing."""
    console = Console()
    with errors_as_messages(console, "stopped"):
        path = find_recipe(recipe)
        settings = read_recipe(path, changes or [])
        import torch

        from training.runs import compare
        from training.runs.registry import TASKS
        from training.runs.train import lines_in_errors

        torch.set_num_threads(threads)
        folder = runs / settings.name / "compare"
        names = [cell for cell in split_names(cells) or () if cell]
        with lines_in_errors(path):
            task = TASKS[settings.task]
            found = compare.compare(settings, task, list(dict.fromkeys(names)), seeds, data=data, folder=folder, console=console)
        compare.show(found, console)
        for written in compare.write(found, folder):
            console.print(f"written     {written}", highlight=False, soft_wrap=True)


def tune_command(
    recipe: option.Recipe,
    options: Annotated[
        list[str] | None,
        typer.Option(
            "--option", metavar="KEY=VALUES", help="What to search, as fit.learning_rate=1e-4..1e-2 or layers.0.units=[32,64]."
        ),
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="The time budget; 10 if the recipe has none in [tune].")] = None,
    trials: Annotated[int | None, typer.Option(help="Trials at most; 30 if the recipe has none in [tune].")] = None,
    changes: option.Changes = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the trials of this recipe's last search.")] = False,
    runs: option.Runs = Path("runs"),
    threads: option.Threads = 1,
    data: option.Data = None,
) -> None:
    """Search options of a recipe within a time budget, by its validation part; publishes nothing."""
    console = Console()
    with errors_as_messages(console, "stopped; continue with --resume", extra="train,tune"):
        path = find_recipe(recipe)
        settings = read_recipe(path, changes or [])
        import torch

        from training.runs import tune
        from training.runs.registry import TASKS
        from training.runs.train import lines_in_errors

        torch.set_num_threads(threads)
        folder = runs / settings.name / "tune"
        with lines_in_errors(path):
            chosen = tune.with_options(settings, options or [], minutes=minutes, trials=trials)
            found = tune.tune(chosen, TASKS[settings.task], data=data, folder=folder, resume=resume, console=console)
        tune.show(
            found, console, " ".join(["sluice train", recipe, *(f"--set {shlex.quote(change)}" for change in changes or [])])
        )
        console.print(f"written     {tune.write(found, folder)}", highlight=False, soft_wrap=True)


def _is_first_process() -> bool:
    """Whether nobody else tells how a run goes: of `fit.devices` and `fit.num_nodes` each process runs this command."""
    return all(os.environ.get(name, "0") in ("", "0") for name in ("LOCAL_RANK", "NODE_RANK"))
