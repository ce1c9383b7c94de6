"""Commands that come before a training: `init`, `fetch`, `list`, and the reference of recipe keys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from training.commands import options as option
from training.commands.console import errors_as_messages, split_names
from training.recipe import RECIPES, read_recipe


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
    data: option.Data = None,
) -> None:
    """Write a commented recipe for a CSV file: a forecast (--time, --value, --frequency) or a classifier (--text, --label)."""
    console = Console()
    with errors_as_messages(console):
        from training.starter.options import read_starter
        from training.starter.recipe_file import write_starter

        starter = read_starter(
            time=time, value=split_names(value), frequency=frequency, series=series, horizon=horizon, text=text, label=label
        )
        command = "sluice train" if context.command_path.startswith("sluice") else "python -m training run"
        path = write_starter(file, starter, name=name, replace=force, data=data, command=command)
        console.print(f"written     {path}", highlight=False, soft_wrap=True)
        console.print(f"next        {command} {path}", highlight=False, soft_wrap=True)


def fetch_command(
    name: Annotated[str, typer.Argument(help="One of the sets that `list` shows.")],
    data: option.Data = None,
) -> None:
    """Download a public data set and check it."""
    console = Console()
    with errors_as_messages(console):
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


def recipe_reference_command() -> None:
    """Print the reference of every recipe key, in Markdown."""
    from training.recipe.reference import recipe_reference

    print(recipe_reference(), end="")
