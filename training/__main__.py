"""The command line: `python -m training run <recipe>`, `fetch <set>`, `list`. Parses, calls, and words the errors."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

try:
    import typer
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from training.data.fetch import FetchError, fetch
    from training.data.sets import CATALOGUE
    from training.data.sources import DataError
    from training.recipe import RECIPES, Recipe, RecipeError, find_recipe, line_of, read_recipe
except ImportError as missing:
    raise SystemExit(f"training needs more than the service does: pip install 'sluice[cpu,train]' ({missing})") from missing

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Train recurrent networks and publish them as model folders.")

DataOption = Annotated[
    Path | None, typer.Option("--data", envvar="SLUICE_DATA", help="The folder of data sets that recipes name files in.")
]


@app.command("run")
def run_command(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a bundled recipe.")],
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe, as fit.epochs=3.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint of this recipe's run.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite the version that the recipe names.")] = False,
    models: Annotated[Path, typer.Option(help="Where the model folder is published.")] = Path("models"),
    runs: Annotated[Path, typer.Option(help="Where checkpoints lie.")] = Path("runs"),
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch. Small networks gain nothing from more than one.")] = 1,
    data: DataOption = None,
) -> None:
    """Train by a recipe and publish the model folder."""
    console = Console()
    try:
        path = find_recipe(recipe)
        settings = read_recipe(path, changes or [])
        run(settings, path, data=data, models=models, runs=runs, resume=resume, replace=replace, threads=threads, console=console)
    except KeyboardInterrupt:
        console.print("\nstopped; go on where it was with --resume")
        raise typer.Exit(130) from None
    except _expected_errors() as exc:
        _fail(str(exc))


def run(
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
    """Train by a recipe that was read from `path`, print the report, and return the published folder."""
    # Torch takes seconds to import: only who trains waits for it.
    import torch

    from training import classify, forecast, report
    from training.layers import LayerError, read_config
    from training.publish import publish, require_free
    from training.runs import require_same

    console = console or Console()
    require_free(recipe, models, replace=replace)
    # Two threads on two cores that others use too: 370 ms per step of a BiLSTM with 32 units; one thread: 18 ms.
    torch.set_num_threads(threads)
    folder = runs / recipe.name
    task = forecast.run if recipe.task == "forecast" else classify.run
    try:
        for index, table in enumerate(recipe.layers):
            read_config(table, f"layers[{index}]")
        if resume:
            require_same(recipe, folder)
        publication, result = task(recipe, data=data, folder=folder, resume=resume, console=console)
    except LayerError as exc:
        place = re.match(r"layers\[(\d+)\]", exc.where)
        line = line_of(path, ("layers", int(place[1]))) if place else None
        raise RecipeError(f"{path}{f', line {line}' if line else ''}: {exc}") from exc
    published = publish(publication, models, replace=replace)
    report.show(result, recipe.name, published, console)
    return published


@app.command("fetch")
def fetch_command(
    name: Annotated[str, typer.Argument(help="One of the sets that `list` shows.")],
    data: DataOption = None,
) -> None:
    """Download a public data set and check it."""
    if name not in CATALOGUE:
        _fail(f'no set "{name}"; there are {", ".join(CATALOGUE)}')
    if data is None:
        _fail("where to? Give --data FOLDER, or set SLUICE_DATA")
        return
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        tasks: dict[str, TaskID] = {}

        def show(file: str, done: int, total: int | None) -> None:
            if file not in tasks:
                tasks[file] = progress.add_task(file, total=total)
            progress.update(tasks[file], completed=done, total=total)

        try:
            paths = fetch(CATALOGUE[name], data, progress=show)
        except (FetchError, OSError) as exc:
            progress.stop()
            _fail(str(exc))
    for path in paths:
        console.print(str(path), highlight=False, soft_wrap=True)


@app.command("list")
def list_command() -> None:
    """Show the bundled recipes and the sets that can be fetched."""
    console = Console()
    console.print("recipes")
    for file in sorted(RECIPES.glob("*.toml")):
        console.print(f"  {file.stem:18} {read_recipe(file).description}", highlight=False)
    console.print("sets")
    for entry in CATALOGUE.values():
        console.print(f"  {entry.name:18} {entry.about}", highlight=False)


def _expected_errors() -> tuple[type[Exception], ...]:
    from pydantic import ValidationError

    errors: list[type[Exception]] = [RecipeError, DataError]
    try:
        from training.fit import FitError
        from training.layers import LayerError
        from training.network import NetworkError
        from training.publish import PublishError
        from training.verify import VerificationFailed
    except ImportError as exc:
        raise SystemExit(f"training needs more than the service does: pip install 'sluice[cpu,train]' ({exc})") from exc
    return (*errors, ValidationError, FitError, LayerError, NetworkError, PublishError, VerificationFailed)


def _fail(message: str) -> None:
    Console(stderr=True).print(f"[bold red]error[/]: {_escaped(message)}", highlight=False, soft_wrap=True)
    raise typer.Exit(1)


def _escaped(message: str) -> str:
    return message.replace("[", "\\[")


def main() -> None:
    """Run the command line."""
    if os.environ.get("SLUICE_DATA") == "":
        del os.environ["SLUICE_DATA"]  # the Makefile exports it empty where there is no data folder
    app()


if __name__ == "__main__":
    main()
