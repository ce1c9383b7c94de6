"""The command line: `python -m training run <recipe>` and the other commands. Parses, calls, and prints the errors."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

from training.errors import TrainingError

INSTALL = "pip install 'sluice-serving[cpu,{extra}]'"

try:
    import typer
    from rich.console import Console

    from training.importers import command_options as option
    from training.importers.import_command import Command, import_command
    from training.importers.sources import Kind, UnknownSource
    from training.recipe import RECIPES, find_recipe, read_recipe, recipe_of_folder
except ImportError as missing:
    raise SystemExit(f"training needs more than the service does: {INSTALL.format(extra='train')} ({missing})") from missing

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Train recurrent networks and publish them as model folders.")

RecipeArgument = Annotated[str, typer.Argument(help="A recipe file, a bundled recipe's name, or a folder that was published.")]
ChangesOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe, as fit.epochs=3.")
]
DataOption = Annotated[
    Path | None, typer.Option("--data", envvar="SLUICE_DATA", help="The folder with the data files that recipes name.")
]
RunsOption = Annotated[Path, typer.Option(help="The folder of checkpoints and other results of runs.")]
ThreadsOption = Annotated[int, typer.Option(min=1, help="Threads of torch. Small networks gain nothing from more than one.")]


def _is_first_process() -> bool:
    """Whether nobody else tells how a run goes: of `fit.devices` and `fit.num_nodes` each process runs this command."""
    return all(os.environ.get(name, "0") in ("", "0") for name in ("LOCAL_RANK", "NODE_RANK"))


@app.command("run")
def run_command(
    recipe: RecipeArgument,
    changes: ChangesOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint of this recipe's run.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite the version that the recipe names.")] = False,
    require_better_than: Annotated[
        str,
        typer.Option(
            metavar="BASELINE", help="Publish only what beats this baseline of the recipe, or naive: all that learn nothing."
        ),
    ] = "",
    models: option.Models = Path("models"),
    runs: RunsOption = Path("runs"),
    threads: ThreadsOption = 1,
    data: DataOption = None,
) -> None:
    """Train by a recipe and publish the model folder."""
    console = Console(quiet=not _is_first_process())
    with _errors_as_messages(console, "stopped; continue with --resume"):
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


@app.command("summary")
def summary_command(
    what: Annotated[str, typer.Argument(help="A recipe (file or name), a version folder, or a .keras or .h5 file.")],
    data: DataOption = None,
) -> None:
    """Print the layers with their output shapes and parameters, as Keras does."""
    console = Console()
    with _errors_as_messages(console):
        from training import summary
        from training.runs.train import lines_in_errors

        with lines_in_errors(Path(what) if Path(what).exists() else RECIPES / f"{what}.toml"):
            found = summary.summarize(what, data)
        summary.show(found, console)


@app.command("compare")
def compare_command(
    recipe: RecipeArgument,
    cells: Annotated[
        str, typer.Option(help="Of simple_rnn, gru, lstm, birnn, bigru, bilstm, mlp; separated by commas.")
    ] = "simple_rnn,gru,lstm,bilstm,mlp",
    seeds: Annotated[int, typer.Option(min=1, help="How often each cell is trained.")] = 3,
    changes: ChangesOption = None,
    runs: RunsOption = Path("runs"),
    threads: ThreadsOption = 1,
    data: DataOption = None,
) -> None:
    """Train a recipe with other cells and compare scores, times and parameters; publishes nothing."""
    console = Console()
    with _errors_as_messages(console, "stopped"):
        path = find_recipe(recipe)
        settings = read_recipe(path, changes or [])
        import torch

        from training.runs import compare
        from training.runs.registry import TASKS
        from training.runs.train import lines_in_errors

        torch.set_num_threads(threads)
        folder = runs / settings.name / "compare"
        names = [cell for cell in _parts(cells) or () if cell]
        with lines_in_errors(path):
            task = TASKS[settings.task]
            found = compare.compare(settings, task, list(dict.fromkeys(names)), seeds, data=data, folder=folder, console=console)
        compare.show(found, console)
        for written in compare.write(found, folder):
            console.print(f"written     {written}", highlight=False, soft_wrap=True)


@app.command("tune")
def tune_command(
    recipe: RecipeArgument,
    options: Annotated[
        list[str] | None,
        typer.Option(
            "--option", metavar="KEY=VALUES", help="What to search, as fit.learning_rate=1e-4..1e-2 or layers.0.units=[32,64]."
        ),
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="The time budget; 10 if the recipe has none in [tune].")] = None,
    trials: Annotated[int | None, typer.Option(help="Trials at most; 30 if the recipe has none in [tune].")] = None,
    changes: ChangesOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the trials of this recipe's last search.")] = False,
    runs: RunsOption = Path("runs"),
    threads: ThreadsOption = 1,
    data: DataOption = None,
) -> None:
    """Search options of a recipe within a time budget, by its validation part; publishes nothing."""
    console = Console()
    with _errors_as_messages(console, "stopped; continue with --resume", extra="train,tune"):
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


@app.command("quantize")
def quantize_command(
    folder: Annotated[Path, typer.Argument(help="A version folder, as models/sentiment-en/1.")],
    data: DataOption = None,
) -> None:
    """Add an int8 graph to a published folder, with what it loses on the recipe's test part; trains nothing."""
    console = Console()
    with _errors_as_messages(console):
        recipe = recipe_of_folder(folder)
        from training.export.quantize import quantize_folder
        from training.recipe import Quantize
        from training.reporting import report
        from training.runs.registry import TASKS

        bounds = recipe.quantize or Quantize()
        trial = TASKS[recipe.task].open_trial(recipe, folder, data)
        second = quantize_folder(folder, trial, bounds, recipe.seed)
        report.show_second(second, console)
        console.print(f"added       {folder / second.entry['file']}", highlight=False, soft_wrap=True)


@app.command("statistics")
def statistics_command(
    folder: Annotated[Path, typer.Argument(help="A version folder, as models/sentiment-en/1.")],
    data: DataOption = None,
) -> None:
    """Put statistics of the recipe's training part into a published folder, for drift to be measured against; trains nothing."""
    console = Console()
    with _errors_as_messages(console):
        recipe = recipe_of_folder(folder)
        from training.runs.registry import TASKS
        from training.runs.steps import add_statistics

        found = add_statistics(folder, TASKS[recipe.task].open_trial(recipe, folder, data))
        names = ", ".join(feature["name"] for feature in found["features"])
        console.print(f"statistics  {found['num_rows']:,} rows: {names}", highlight=False, soft_wrap=True)


@app.command("card")
def card_command(
    folder: Annotated[Path, typer.Argument(help="A models folder, a model's folder in it, or a version folder.")] = Path(
        "models"
    ),
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit status 1 where a card is not its manifest's.")
    ] = False,
) -> None:
    """Write the model cards (README.md) of published folders again, from their manifests."""
    console = Console()
    with _errors_as_messages(console):
        from training.export.model_card import CARD_FILE
        from training.export.publish import card_of, version_folders, write_card

        is_stale = False
        for version in version_folders(folder):
            card = version / CARD_FILE
            if not check:
                console.print(f"{'written ' if write_card(version) else 'current '}    {card}", highlight=False, soft_wrap=True)
            elif not card.is_file() or card.read_bytes() != card_of(version).encode():
                is_stale = True
                console.print(f"not current {card}", highlight=False, soft_wrap=True)
        if is_stale:
            raise typer.Exit(1)


@app.command("evaluate")
def evaluate_command(
    names: Annotated[list[str] | None, typer.Argument(metavar="[BENCHMARK]...", help="Which; left out: all of them.")] = None,
    url: Annotated[str, typer.Option(help="The running service.")] = "http://localhost:8000",
    output: Annotated[Path | None, typer.Option(help="A JSON file of results; it keeps those of others.")] = None,
    data: DataOption = None,
) -> None:
    """Send the test sets of standard benchmarks to a running service, and print its scores beside those of others."""
    console = Console()
    with _errors_as_messages(console):
        from training.evaluation.client import EvaluationError
        from training.evaluation.registry import BENCHMARKS, evaluate
        from training.evaluation.report import show, write_results

        unknown = [name for name in names or () if name not in BENCHMARKS]
        if unknown:
            raise EvaluationError(f'no benchmark "{unknown[0]}"; there are {", ".join(BENCHMARKS)}')
        failed = False
        for name in names or BENCHMARKS:
            with console.status(name):
                found, message = evaluate(name, url, data)
            if found is None:
                failed = True
                console.print(f"{name}: not scored: {message}", highlight=False, soft_wrap=True, markup=False)
                continue
            show(found, console)
            if output is not None:
                write_results([found], output)
        if failed:
            raise typer.Exit(1)


@app.command("fetch")
def fetch_command(
    name: Annotated[str, typer.Argument(help="One of the sets that `list` shows.")],
    data: DataOption = None,
) -> None:
    """Download a public data set and check it."""
    console = Console()
    with _errors_as_messages(console):
        from training.data.fetch import FetchError, fetch
        from training.data.sets import CATALOGUE
        from training.reporting.progress import download_lines

        if name not in CATALOGUE:
            raise FetchError(f'no set "{name}"; there are {", ".join(CATALOGUE)}')
        if data is None:
            raise FetchError("no folder to download to: give --data FOLDER, or set SLUICE_DATA")
        with download_lines(console) as show:
            paths = fetch(CATALOGUE[name], data, progress=show)
        for path in paths:
            console.print(str(path), highlight=False, soft_wrap=True)


@app.command("import-keras")
def import_keras_command(
    file: Annotated[Path, typer.Argument(help="A model that Keras saved whole, as .keras or .h5.")],
    name: option.Name,
    version: option.Version = None,
    task: option.Task = "tensor",
    example: Annotated[
        Path | None, typer.Option(help="A JSON list of instances for example.json; random rows if left out.")
    ] = None,
    architecture: Annotated[Path | None, typer.Option(help="What model.to_json() gave, for a file of weights alone.")] = None,
    labels: option.Labels = None,
    tokenizer: option.Tokenizer = None,
    max_length: option.MaxLength = None,
    padding: Annotated[
        str | None, typer.Option(help="classify: where shorter texts were padded in training: pre or post.")
    ] = None,
    truncating: Annotated[str | None, typer.Option(help="classify: where longer texts were cut: pre (Keras) or post.")] = None,
    language: option.Language = None,
    subject: option.Subject = None,
    horizon: option.Horizon = None,
    context_length: option.ContextLength = None,
    frequency: option.Frequency = None,
    season_length: option.SeasonLength = None,
    features: option.Features = None,
    targets: option.Targets = None,
    state: option.State = None,
    scale: option.Scale = None,
    unscale: option.Unscale = None,
    scaler: option.Scaler = None,
    description: option.Description = "",
    licence: option.Licence = "",
    replace: option.Replace = False,
    models: option.Models = Path("models"),
) -> None:
    """Publish a model that Keras saved; needs neither Keras nor TensorFlow."""
    console = Console()
    with _errors_as_messages(console, extra="import"):
        from training.importers.importer import read_options
        from training.importers.keras.calls_importer import ImportedCalls
        from training.importers.keras.importer import import_keras
        from training.importers.keras.scales import Scales
        from training.importers.torch.command import read_pairs
        from training.importers.torch.options import read_scale
        from training.reporting.imports import show_import

        scales = Scales(read_scale(scale, "--scale"), read_scale(unscale, "--unscale"), read_scale(scaler, "--scaler"))
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
            subject=subject,
            horizon=horizon,
            context_length=context_length,
            frequency=_parts(frequency),
            season_length=season_length,
            features=_parts(features),
            targets=_parts(targets),
            description=description or None,
            licence=licence or None,
        )
        result = import_keras(
            file,
            options,
            models,
            example=example,
            architecture=architecture,
            replace_version=replace,
            scales=scales,
            state=read_pairs(state or [], "--state"),
        )
        if isinstance(result, ImportedCalls):
            console.print(str(result.published), highlight=False, soft_wrap=True, markup=False)
        else:
            show_import(result.network, result.verification, result.notes, result.folder, console)


@app.command("import-torch")
def import_torch_command(
    source: Annotated[str, typer.Argument(help="What makes the network: package.module:function, a class or a network.")],
    name: option.Name,
    example: Annotated[Path, typer.Option(help="Rows of at least two lengths: .json (a list), .npz (a row each) or .npy.")],
    weights: Annotated[
        Path | None, typer.Option(help="A state_dict, or a checkpoint that holds one; Lightning's .ckpt too.")
    ] = None,
    expected: option.Expected = None,
    task: option.Task = "tensor",
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="ARGUMENT=AXES", help="The axes of a row, as x=time,7; else read off the example."),
    ] = None,
    lengths: Annotated[str | None, typer.Option(help="The argument of forward that takes the rows' lengths.")] = None,
    state: option.State = None,
    time_first: option.TimeFirst = False,
    scale: option.Scale = None,
    unscale: option.Unscale = None,
    horizon: option.Horizon = None,
    features: option.Features = None,
    targets: option.Targets = None,
    quantiles: option.Quantiles = None,
    frequency: option.Frequency = None,
    season_length: option.SeasonLength = None,
    context_length: option.ContextLength = None,
    scaler: option.Scaler = None,
    labels: option.Labels = None,
    tokenizer: option.Tokenizer = None,
    max_length: option.MaxLength = None,
    language: option.Language = None,
    subject: option.Subject = None,
    probabilities: Annotated[
        bool | None,
        typer.Option("--probabilities/--logits", help="classify: what the module gives; by what it does last if left out."),
    ] = None,
    scores: Annotated[
        list[str] | None, typer.Option("--score", metavar="MEASURE=NUMBER", help="For the manifest; may be repeated.")
    ] = None,
    batching: option.Batching = "auto",
    tolerance: option.Tolerance = 1e-4,
    version: option.Version = None,
    description: option.Description = "",
    licence: option.Licence = "",
    replace: option.Replace = False,
    dry_run: option.DryRun = False,
    models: option.Models = Path("models"),
) -> None:
    """Publish any torch network; runs the code that makes it."""
    console = Console()
    with _errors_as_messages(console, extra="import"):
        from training.importers.rows_file import read_rows_file
        from training.importers.torch import options
        from training.importers.torch.command import load_network, read_pairs
        from training.importers.torch.publishing import publish

        chosen = options.read_task_options(
            task,
            horizon=horizon,
            features=_parts(features),
            targets=_parts(targets),
            quantiles=options.read_quantiles(quantiles),
            frequencies=_parts(frequency),
            season_length=season_length,
            context_length=context_length,
            scaler=options.read_scale(scaler, "--scaler"),
            labels=_parts(labels),
            tokenizer=tokenizer,
            max_length=max_length,
            language=language,
            subject=subject,
            are_probabilities=probabilities,
        )
        result = publish(
            load_network(source, weights),
            name,
            example=read_rows_file(example, "--example"),
            expected=None if expected is None else read_rows_file(expected, "--expected"),
            task=chosen,
            inputs=options.read_inputs(inputs or []),
            lengths=lengths,
            state=read_pairs(state or [], "--state"),
            batch_first=not time_first,
            scale=options.read_scale(scale, "--scale"),
            unscale=options.read_scale(unscale, "--unscale"),
            scores=options.read_scores(scores or []),
            batching=batching,  # type: ignore[arg-type]  # publish refuses any other word
            tolerance=tolerance,
            version=version,
            description=description,
            licence=licence,
            replace=replace,
            dry_run=dry_run,
            models=models,
        )
        console.print(str(result), highlight=False, soft_wrap=True, markup=False)


@app.command("import-onnx")
def import_onnx_command(
    file: Annotated[Path, typer.Argument(help="An ONNX file; one written by darts becomes a forecast model.")],
    name: option.Name,
    version: option.Version = None,
    task: option.Task = "tensor",
    example: Annotated[
        Path | None, typer.Option(help="Two or more rows: .json (a list), .npz (a row each) or .npy; random rows if left out.")
    ] = None,
    expected: option.Expected = None,
    lengths_input: Annotated[str | None, typer.Option(help="The input that takes the rows' lengths, if it is not found.")] = None,
    state: option.State = None,
    time_first: option.TimeFirst = False,
    batching: option.Batching = "auto",
    tolerance: option.Tolerance = 1e-4,
    labels: option.Labels = None,
    tokenizer: option.Tokenizer = None,
    max_length: option.MaxLength = None,
    language: option.Language = None,
    subject: option.Subject = None,
    horizon: option.Horizon = None,
    context_length: option.ContextLength = None,
    frequency: option.Frequency = None,
    season_length: option.SeasonLength = None,
    features: option.Features = None,
    targets: option.Targets = None,
    quantiles: option.Quantiles = None,
    description: option.Description = "",
    licence: option.Licence = "",
    replace: option.Replace = False,
    dry_run: option.DryRun = False,
    models: option.Models = Path("models"),
) -> None:
    """Publish an ONNX file whose operators are ONNX's own."""
    console = Console()
    with _errors_as_messages(console, extra="import"):
        from training.importers.onnx.command import import_file
        from training.importers.torch.options import read_quantiles

        result = import_file(
            file,
            name,
            models,
            example=example,
            expected=expected,
            task=task,
            task_options={
                "horizon": horizon,
                "context_length": context_length,
                "frequencies": _parts(frequency),
                "season_length": season_length,
                "features": _parts(features),
                "targets": _parts(targets),
                "quantiles": read_quantiles(quantiles),
                "labels": _parts(labels),
                "tokenizer": tokenizer,
                "max_length": max_length,
                "language": language,
                "subject": subject,
            },
            lengths=lengths_input,
            state=state or [],
            time_first=time_first,
            batching=batching,
            tolerance=tolerance,
            description=description,
            licence=licence,
            version=version,
            replace=replace,
            dry_run=dry_run,
        )
        console.print(str(result), highlight=False, soft_wrap=True, markup=False)


@app.command("import-neuralforecast")
def import_neuralforecast_command(
    folder: Annotated[Path, typer.Argument(help="A folder that NeuralForecast.save wrote, of version 3.3 or later.")],
    name: option.Name,
    model: Annotated[str | None, typer.Option(help="Which LSTM, GRU or RNN of the folder, where it holds several.")] = None,
    example: Annotated[
        Path | None, typer.Option(help="Histories: .json (a list), .npz (a row each) or .npy; random rows if left out.")
    ] = None,
    frequency: option.Frequency = None,
    season_length: option.SeasonLength = None,
    tolerance: option.Tolerance = 1e-4,
    version: option.Version = None,
    description: option.Description = "",
    licence: option.Licence = "",
    replace: option.Replace = False,
    dry_run: option.DryRun = False,
    models: option.Models = Path("models"),
) -> None:
    """Publish an LSTM, GRU or RNN of neuralforecast as a forecast model; needs no neuralforecast."""
    console = Console()
    with _errors_as_messages(console, extra="import"):
        from training.importers.neuralforecast.importer import import_neuralforecast

        result = import_neuralforecast(
            folder,
            name,
            models,
            model=model,
            example=example,
            frequencies=_parts(frequency),
            season_length=season_length,
            tolerance=tolerance,
            version=version,
            description=description,
            licence=licence,
            replace=replace,
            dry_run=dry_run,
        )
        console.print(str(result), highlight=False, soft_wrap=True, markup=False)


def _end_import(exc: UnknownSource) -> None:
    with _errors_as_messages(Console()):
        raise exc


IMPORTS: Mapping[Kind, Command] = {
    "onnx": import_onnx_command,
    "keras": import_keras_command,
    "torch": import_torch_command,
    "neuralforecast": import_neuralforecast_command,
}
app.command("import")(import_command(IMPORTS, _end_import))


@app.command("init")
def init_command(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="A CSV, TSV or parquet file with a header.")],
    time: Annotated[str | None, typer.Option(help="forecast: the column of times, in ISO 8601.")] = None,
    value: Annotated[str | None, typer.Option(help="forecast: the column of values; several separated by commas.")] = None,
    frequency: Annotated[
        str | None, typer.Option(help="forecast: one step between rows: S T H D W M Q Y (second to year, T minute).")
    ] = None,
    series: Annotated[str | None, typer.Option(help="forecast: the column that names the series, if there are several.")] = None,
    horizon: Annotated[int | None, typer.Option(help="forecast: steps ahead; chosen by the frequency if left out.")] = None,
    text: Annotated[str | None, typer.Option(help="classify: the column of texts.")] = None,
    label: Annotated[str | None, typer.Option(help="classify: the column of labels.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model and of the recipe; the file's own if left out.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the recipe.")] = False,
    data: DataOption = None,
) -> None:
    """Write a commented recipe for a CSV file: a forecast (--time, --value, --frequency) or a classifier (--text, --label)."""
    console = Console()
    with _errors_as_messages(console):
        from training.starter.options import read_starter
        from training.starter.recipe_file import write_starter

        starter = read_starter(
            time=time, value=_parts(value), frequency=frequency, series=series, horizon=horizon, text=text, label=label
        )
        command = "sluice train" if context.command_path.startswith("sluice") else "python -m training run"
        path = write_starter(file, starter, name=name, replace=force, data=data, command=command)
        console.print(f"written     {path}", highlight=False, soft_wrap=True)
        console.print(f"next        {command} {path}", highlight=False, soft_wrap=True)


@app.command("recipe-reference", hidden=True)
def recipe_reference_command() -> None:
    """Print the reference of every recipe key, in Markdown."""
    from training.recipe.reference import recipe_reference

    print(recipe_reference(), end="")


@app.command("list")
def list_command() -> None:
    """Show the bundled recipes and the sets that can be fetched."""
    from training.data.sets import CATALOGUE

    console = Console()
    console.print("recipes")
    for file in sorted(RECIPES.glob("*.toml")):
        console.print(f"  {file.stem:18} {read_recipe(file).description}", highlight=False)
    console.print("sets")
    for entry in CATALOGUE.values():
        console.print(f"  {entry.name:18} {entry.about}", highlight=False)


@contextmanager
def _errors_as_messages(console: Console, interrupted: str = "stopped", extra: str = "train") -> Iterator[None]:
    """End the command with a message instead of a traceback where training refuses something or lacks a library."""
    try:
        yield
    except KeyboardInterrupt:
        console.print(f"\n{interrupted}")
        raise typer.Exit(130) from None
    except TrainingError as exc:
        message = str(exc).replace("[", "\\[")
        Console(stderr=True).print(f"[bold red]error[/]: {message}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    except ImportError as exc:
        raise SystemExit(f"this command needs more than the service does: {INSTALL.format(extra=extra)} ({exc})") from exc


def _parts(text: str | None) -> tuple[str, ...] | None:
    """What commas separate."""
    return None if text is None else tuple(part.strip() for part in text.split(","))


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
