"""Commands that add to published folders: `quantize`, `statistics`, `card`. Nothing is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from training.commands import options as option
from training.commands.console import errors_as_messages
from training.recipe import recipe_of_folder


def quantize_command(
    folder: option.VersionFolder,
    data: option.Data = None,
) -> None:
    """Add an int8 graph to a published folder, with what it loses on the recipe's test part; trains nothing."""
    console = Console()
    with errors_as_messages(console):
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


def statistics_command(
    folder: option.VersionFolder,
    data: option.Data = None,
) -> None:
    """Put statistics of the recipe's training part into a published folder, for drift to be measured against; trains nothing."""
    console = Console()
    with errors_as_messages(console):
        recipe = recipe_of_folder(folder)
        from training.runs.registry import TASKS
        from training.runs.steps import add_statistics

        found = add_statistics(folder, TASKS[recipe.task].open_trial(recipe, folder, data))
        names = ", ".join(feature["name"] for feature in found["features"])
        console.print(f"statistics  {found['num_rows']:,} rows: {names}", highlight=False, soft_wrap=True)


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
    with errors_as_messages(console):
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
