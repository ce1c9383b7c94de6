"""The command line: `python -m training run <recipe>` and its sisters. Parses, calls, and words the errors."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

try:
    import typer
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from training.data.fetch import FetchError, fetch
    from training.data.sets import CATALOGUE
    from training.data.sources import DataError
    from training.recipe import RECIPES, Recipe, RecipeError, find_recipe, line_of, read_recipe, recipe_of_folder
except ImportError as missing:
    raise SystemExit(
        f"training needs more than the service does: pip install 'sluice-serving[cpu,train]' ({missing})"
    ) from missing

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

    from training.export.publish import publish, require_free
    from training.fitting.checkpoints import require_same
    from training.layers.registry import read_config
    from training.reporting import report
    from training.runs import classify, forecast, tabular

    console = console or Console()
    require_free(recipe, models, replace=replace)
    # Two threads on two cores that others use too: 370 ms per step of a BiLSTM with 32 units; one thread: 18 ms.
    torch.set_num_threads(threads)
    folder = runs / recipe.name
    task = {"forecast": forecast.run, "classify": classify.run, "tensor": tabular.run}[recipe.task]
    with _lines_named(path):
        for index, table in enumerate(recipe.layers):
            read_config(table, f"layers[{index}]")
        if resume:
            require_same(recipe, folder)
        publication, result = task(recipe, data=data, folder=folder, resume=resume, console=console)
    published = publish(publication, models, replace=replace)
    report.show(result, recipe.name, published, console)
    return published


@app.command("summary")
def summary_command(
    what: Annotated[str, typer.Argument(help="A recipe (file or name), a version folder, or a .keras or .h5 file.")],
    data: DataOption = None,
) -> None:
    """Print the layers with their output shapes and parameters, as Keras does."""
    try:
        from training import summary

        with _lines_named(Path(what) if Path(what).exists() else RECIPES / f"{what}.toml"):
            found = summary.summarize(what, data)
        summary.show(found, Console())
    except _expected_errors() as exc:
        _fail(str(exc))


@app.command("compare")
def compare_command(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a bundled recipe.")],
    cells: Annotated[
        str, typer.Option(help="Of simple_rnn, gru, lstm, birnn, bigru, bilstm, mlp; separated by commas.")
    ] = "simple_rnn,gru,lstm,bilstm,mlp",
    seeds: Annotated[int, typer.Option(min=1, help="How often each cell is trained.")] = 3,
    changes: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe.")] = None,
    runs: Annotated[Path, typer.Option(help="Where checkpoints and the results lie.")] = Path("runs"),
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
    data: DataOption = None,
) -> None:
    """Train a recipe with other cells and compare scores, times and parameters; publishes nothing."""
    console = Console()
    try:
        import torch

        from training.runs import classify, compare, forecast, tabular

        torch.set_num_threads(threads)
        path = find_recipe(recipe)
        settings = read_recipe(path, changes or [])
        task = {"forecast": forecast.run, "classify": classify.run, "tensor": tabular.run}[settings.task]
        folder = runs / settings.name / "compare"
        names = list(dict.fromkeys(cell.strip() for cell in cells.split(",") if cell.strip()))
        with _lines_named(path):
            found = compare.compare(settings, task, names, seeds, data=data, folder=folder, console=console)
        compare.show(found, console)
        for written in compare.write(found, folder):
            console.print(f"written     {written}", highlight=False, soft_wrap=True)
    except KeyboardInterrupt:
        console.print("\nstopped")
        raise typer.Exit(130) from None
    except _expected_errors() as exc:
        _fail(str(exc))


@app.command("quantize")
def quantize_command(
    folder: Annotated[Path, typer.Argument(help="A version folder, as models/sentiment-en/1.")],
    data: DataOption = None,
) -> None:
    """Add an int8 graph to a published folder, with what it loses on the recipe's test part; trains nothing."""
    try:
        from training.export.quantize import quantize_folder
        from training.recipe import Quantize
        from training.reporting import report
        from training.runs import classify, forecast, tabular

        recipe = recipe_of_folder(folder)
        open_trial = {"forecast": forecast.open_trial, "classify": classify.open_trial, "tensor": tabular.open_trial}[recipe.task]
        bounds = recipe.quantize or Quantize()
        second = quantize_folder(folder, open_trial(recipe, folder, data), bounds, recipe.seed)
        report.show_second(second, Console())
        Console().print(f"added       {folder / second.entry['file']}", highlight=False, soft_wrap=True)
    except _expected_errors() as exc:
        _fail(str(exc))


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


@app.command("import-keras")
def import_keras_command(
    file: Annotated[Path, typer.Argument(help="A model that Keras saved whole, as .keras or .h5.")],
    name: Annotated[str, typer.Option(help="What the model is called.")],
    version: Annotated[int | None, typer.Option(help="Its version; the next free number if left out.")] = None,
    task: Annotated[str, typer.Option(help="What instances are: tensor (nested lists), forecast or classify.")] = "tensor",
    example: Annotated[
        Path | None, typer.Option(help="A JSON list of instances for example.json; random rows if left out.")
    ] = None,
    labels: Annotated[str | None, typer.Option(help="classify: the labels in the order of the outputs, as bad,good.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="classify: the tokenizer.json that splits texts into the ids.")] = None,
    max_length: Annotated[
        int | None, typer.Option(help="classify: tokens read of a text, if the model reads any number.")
    ] = None,
    padding: Annotated[
        str | None, typer.Option(help="classify: where shorter texts were padded in training: pre or post.")
    ] = None,
    truncating: Annotated[str | None, typer.Option(help="classify: where longer texts were cut: pre (Keras) or post.")] = None,
    language: Annotated[str | None, typer.Option(help="classify: the texts' language, as en.")] = None,
    horizon: Annotated[int | None, typer.Option(help="forecast: how many steps the model forecasts.")] = None,
    context_length: Annotated[
        int | None, typer.Option(help="forecast: steps read of a history, if the model reads any number.")
    ] = None,
    frequency: Annotated[str | None, typer.Option(help="forecast: S T H D W M Q Y, several separated by commas.")] = None,
    season_length: Annotated[int | None, typer.Option(help="forecast: steps in a season.")] = None,
    features: Annotated[str | None, typer.Option(help="forecast: the names of the model's features, as load,heat.")] = None,
    targets: Annotated[str | None, typer.Option(help="forecast: which of the features are forecast.")] = None,
    description: Annotated[str | None, typer.Option(help="One sentence about the model.")] = None,
    licence: Annotated[str | None, typer.Option(help="Of the data that it learned from.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite the version.")] = False,
    models: Annotated[Path, typer.Option(help="Where the model folder is published.")] = Path("models"),
) -> None:
    """Publish a model that Keras saved; needs neither Keras nor TensorFlow."""
    try:
        from training.importers.keras.importer import import_keras, read_options
        from training.reporting import report

        options = read_options(
            name=name,
            version=version,
            task=task,
            labels=_parts(labels),
            tokenizer=tokenizer,
            max_length=max_length,
            padding=padding,
            truncating=truncating,
            language=language,
            horizon=horizon,
            context_length=context_length,
            frequencies=_parts(frequency),
            season_length=season_length,
            features=_parts(features),
            targets=_parts(targets),
            description=description,
            licence=licence,
        )
        result = import_keras(file, options, models, example=example, replace_version=replace)
        report.show_import(result.network, result.verification, result.notes, result.folder, Console())
    except _expected_errors() as exc:
        _fail(str(exc))


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


@contextmanager
def _lines_named(path: Path) -> Iterator[None]:
    """Say on which line of the recipe at `path` the layer, or the data, stands that an error is about."""
    from training.layers.registry import LayerError

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


def _parts(text: str | None) -> tuple[str, ...] | None:
    """What commas separate."""
    return None if text is None else tuple(part.strip() for part in text.split(","))


def _expected_errors() -> tuple[type[Exception], ...]:
    from pydantic import ValidationError

    from training.errors import TrainingError

    errors: list[type[Exception]] = [TrainingError, RecipeError, DataError]
    try:
        from training.export.publish import PublishError
        from training.export.quantize import QuantizeError
        from training.export.verify import VerificationFailed
        from training.fitting.fit import FitError
        from training.importers.keras.importer import ImportFailed
        from training.importers.keras.keras_file import KerasFileError
        from training.layers.registry import LayerError
        from training.network.spec import NetworkError
    except ImportError as exc:
        raise SystemExit(f"training needs more than the service does: pip install 'sluice-serving[cpu,train]' ({exc})") from exc
    errors += [ImportFailed, KerasFileError]
    return (*errors, ValidationError, FitError, LayerError, NetworkError, PublishError, QuantizeError, VerificationFailed)


def _fail(message: str) -> None:
    Console(stderr=True).print(f"[bold red]error[/]: {_escaped(message)}", highlight=False, soft_wrap=True)
    raise typer.Exit(1)


def _escaped(message: str) -> str:
    return message.replace("[", "\\[")


def main(argv: Sequence[str] | None = None, *, command: str | None = None, prog_name: str | None = None) -> NoReturn:
    """Run the command line, or one `command` of it that is called `prog_name` in its help, and exit."""
    if os.environ.get("SLUICE_DATA") == "":
        del os.environ["SLUICE_DATA"]  # the Makefile exports it empty where there is no data folder
    group = typer.main.get_group(app)
    found = group if command is None else group.commands[command]
    found.main(None if argv is None else list(argv), prog_name=prog_name or "python -m training")
    raise AssertionError("a command line of typer ends the process")


if __name__ == "__main__":
    main()
