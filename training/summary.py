"""The table of layers as Keras prints it: of a recipe, of a published folder, or of a file that Keras saved.

Builds the network, trains and runs nothing. A recipe's data is read only where the recipe does not say how large it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console, Group
from rich.table import Table

from training.importers.keras.importer import read_network
from training.layers.registry import Layer, Shape
from training.network.heads.registry import read_spec
from training.network.network import Network
from training.recipe import RecipeError, find_recipe, read_recipe, recipe_of_json
from training.runs.registry import TASKS

KERAS_FILES = (".keras", ".h5", ".hdf5")


@dataclass(frozen=True)
class Row:
    """One layer."""

    name: str
    kind: str
    shape: str
    num_parameters: int  # all of them, as in Keras


@dataclass(frozen=True)
class Summary:
    """The table of a network."""

    name: str
    rows: tuple[Row, ...]
    num_trainable: int
    num_fixed: int
    notes: tuple[str, ...] = ()


def summarize(what: str, data: Path | None) -> Summary:
    """The summary of a recipe (file or name), a version folder, or a .keras file.

    Raises RecipeError, DataError, LayerError or KerasFileError.
    """
    path = Path(what)
    if path.suffix in KERAS_FILES:
        return summary_of(path.stem, read_network(path))
    if path.is_dir():
        return summary_of(path.parent.name, network_of_folder(path))
    recipe = read_recipe(find_recipe(what))
    spec, notes = TASKS[recipe.task].spec_of_recipe(recipe, data)
    return summary_of(recipe.name, Network(spec), notes)


def summary_of(name: str, network: Network, notes: tuple[str, ...] = ()) -> Summary:
    """The summary of any network."""
    layers = network.stack
    rows = tuple(
        Row(layer_name, kind, _shape(layer), layer.num_parameters + layer.num_fixed_parameters)
        for layer, (layer_name, kind) in zip(layers, _names(layers), strict=True)
    )
    return Summary(name, rows, network.num_parameters, network.num_fixed_parameters, (*notes, *network.notes))


def show(summary: Summary, console: Console) -> None:
    """Print it as Keras does."""
    table = Table("Layer (type)", "Output Shape", box=box.HEAVY_HEAD, show_lines=True)
    table.add_column("Param #", justify="right")
    for row in summary.rows:
        table.add_row(f"[cyan]{row.name}[/] ({row.kind})", row.shape, f"{row.num_parameters:,}")
    total = summary.num_trainable + summary.num_fixed
    counts = [("Total", total), ("Trainable", summary.num_trainable), ("Non-trainable", summary.num_fixed)]
    lines = [f" {name} params: {count:,} ({_size(4 * count)})" for name, count in counts]
    console.print(Group(f'Model: "{summary.name}"', table, *lines), highlight=False)
    for note in summary.notes:
        console.print(note, markup=False, highlight=False)


def network_of_folder(folder: Path) -> Network:
    """The network of a published folder, by its manifest. Raises RecipeError if there is none."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        training = manifest["training"]
        if "network" in training:  # as folders have it that no recipe made
            return Network(read_spec(training["network"]))
        recipe = recipe_of_json(training["recipe"])
    except (OSError, ValueError, KeyError, TypeError, RecipeError) as exc:
        raise RecipeError(f"{folder}: there is no manifest.json with a recipe: {exc}") from exc
    return Network(TASKS[recipe.task].spec_of_manifest(recipe, manifest, folder))


def _names(layers: list[Layer]) -> Iterator[tuple[str, str]]:
    """Name and class of each layer: Keras counts the layers of a class, and does not number the first."""
    counts: dict[str, int] = {}
    for layer in layers:
        base = layer.config.type
        count = counts.get(base, 0)
        counts[base] = count + 1
        yield layer.config.name or (f"{base}_{count}" if count else base), layer.keras_class or type(layer).__name__


def _shape(layer: Layer) -> str:
    def format_shape(shape: Shape) -> str:
        axes = ["None", *("None" if isinstance(axis, str) else str(axis) for axis in shape.axes)]
        return f"({', '.join(axes)})"

    return ", ".join([format_shape(layer.output), *(format_shape(shape) for _, shape in layer.others)])


def _size(num_bytes: float) -> str:
    for unit in ("B", "KB", "MB"):
        if num_bytes < 1024:
            return f"{num_bytes:.2f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.2f} GB"
