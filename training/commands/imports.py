"""Commands that publish finished models: `import`, and one for each library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from training.commands import options as option
from training.commands.console import errors_as_messages, split_names
from training.importers.import_command import Command, import_command
from training.importers.sources import Kind, UnknownSource


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
    with errors_as_messages(console, extra="import"):
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
            labels=split_names(labels),
            tokenizer=tokenizer,
            max_length=max_length,
            padding=padding,
            truncating=truncating,
            language=language,
            subject=subject,
            horizon=horizon,
            context_length=context_length,
            frequency=split_names(frequency),
            season_length=season_length,
            features=split_names(features),
            targets=split_names(targets),
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
    with errors_as_messages(console, extra="import"):
        from training.importers.rows_file import read_rows_file
        from training.importers.torch import options
        from training.importers.torch.command import load_network, read_pairs
        from training.importers.torch.publishing import publish

        chosen = options.read_task_options(
            task,
            horizon=horizon,
            features=split_names(features),
            targets=split_names(targets),
            quantiles=options.read_quantiles(quantiles),
            frequencies=split_names(frequency),
            season_length=season_length,
            context_length=context_length,
            scaler=options.read_scale(scaler, "--scaler"),
            labels=split_names(labels),
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
    with errors_as_messages(console, extra="import"):
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
                "frequencies": split_names(frequency),
                "season_length": season_length,
                "features": split_names(features),
                "targets": split_names(targets),
                "quantiles": read_quantiles(quantiles),
                "labels": split_names(labels),
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
    with errors_as_messages(console, extra="import"):
        from training.importers.neuralforecast.importer import import_neuralforecast

        result = import_neuralforecast(
            folder,
            name,
            models,
            model=model,
            example=example,
            frequencies=split_names(frequency),
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
    with errors_as_messages(Console()):
        raise exc


IMPORTS: Mapping[Kind, Command] = {
    "onnx": import_onnx_command,
    "keras": import_keras_command,
    "torch": import_torch_command,
    "neuralforecast": import_neuralforecast_command,
}
import_any_command = import_command(IMPORTS, _end_import)
