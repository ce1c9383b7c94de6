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
from tokenizers import Tokenizer

from training.data.rows import read_rows
from training.data.series import read_series
from training.data.texts import learn_tokenizer, read_texts
from training.importers.keras.importer import read_network
from training.layers.registry import Layer, Shape
from training.network.heads.classify import ClassifySpec
from training.network.heads.registry import read_spec
from training.network.network import Network
from training.network.spec import NetworkSpec
from training.recipe import Recipe, RecipeError, find_recipe, read_recipe
from training.runs import forecast, tabular

KERAS_FILES = (".keras", ".h5", ".hdf5")
# Where a class is not called as in Keras.
KERAS_NAMES = {
    "ActivationLayer": "Activation",
    "SpatialDropout": "SpatialDropout1D",
    "GlobalMaxPooling": "GlobalMaxPooling1D",
    "GlobalAveragePooling": "GlobalAveragePooling1D",
}


@dataclass(frozen=True)
class Row:
    """One layer."""

    name: str
    kind: str
    shape: str
    num_parameters: int  # all of them, as in Keras


@dataclass(frozen=True)
class Summary:
    """What the table says."""

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
    spec, notes = spec_of_recipe(recipe, data)
    return summary_of(recipe.name, Network(spec), notes)


def summary_of(name: str, network: Network, notes: tuple[str, ...] = ()) -> Summary:
    """The summary of any network."""
    layers = [layer for layer in network.layers if isinstance(layer, Layer)]
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
    """The network of a published folder, by the recipe in its manifest. Raises RecipeError if there is none."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        training, task = manifest["training"], manifest["task"]
        if "network" in training:  # as folders have it that no recipe made
            return Network(read_spec(training["network"]))
        recipe = Recipe.model_validate(training["recipe"])
    except (OSError, ValueError, KeyError) as exc:
        raise RecipeError(f"{folder}: there is no manifest.json with a recipe: {exc}") from exc
    match task:
        case "forecast":
            face = manifest["forecast"]
            targets = tuple(face["features"].index(target) for target in face["targets"])
            return Network(forecast.network_spec_of(recipe, len(face["features"]), targets))
        case "classify":
            face = manifest["classify"]
            tokenizer = Tokenizer.from_file(str(folder / face["tokenizer"]))
            return Network(_classify_spec(recipe, tokenizer.get_vocab_size(), tuple(face["labels"])))
        case _:
            return Network(tabular.network_spec(recipe, manifest["inputs"][0]["shape"][-1]))


def spec_of_recipe(recipe: Recipe, data: Path | None) -> tuple[NetworkSpec, tuple[str, ...]]:
    """What a recipe's network is, and what is not certain before the run. Reads the data where it must."""
    source = recipe.data.train[0]
    if recipe.task == "forecast":
        assert recipe.forecast is not None
        features = source.values or (["y"] if source.builtin or source.format in ("wide", "long") else [])
        if features:
            targets = [features.index(target) for target in recipe.data.targets or features if target in features]
            return forecast.network_spec_of(recipe, len(features), tuple(targets)), ()
        return forecast.network_spec(recipe, read_series(recipe.data, recipe.forecast, data)), ()
    if recipe.task == "tensor":
        num_features = len(source.values) or len(read_rows(recipe.data, data, recipe.seed).features)
        return tabular.network_spec(recipe, num_features), ()
    given = recipe.data.labels
    labels = tuple(dict.fromkeys(given.values() if isinstance(given, dict) else given))
    most = recipe.tokenizer.most_tokens
    if labels and most is not None:
        embedding = next((table for table in recipe.layers if table.get("type") == "embedding"), {})
        is_fixed = embedding.get("input_dim") is not None
        note = f"The vocabulary is learned from the texts: {most:,} tokens at most, and so many are counted here."
        return _classify_spec(recipe, most, labels), () if is_fixed else (note,)
    split = read_texts(recipe.data, data, recipe.seed)
    tokenizer = learn_tokenizer(split.train.texts, recipe.tokenizer)
    return _classify_spec(recipe, tokenizer.get_vocab_size(), split.labels), ()


def _classify_spec(recipe: Recipe, vocabulary_size: int, labels: tuple[str, ...]) -> NetworkSpec:
    return ClassifySpec(layers=tuple(recipe.layers), vocabulary_size=vocabulary_size, labels=labels)


def _names(layers: list[Layer]) -> Iterator[tuple[str, str]]:
    """Name and class of each layer: Keras counts the layers of a class, and does not number the first."""
    counts: dict[str, int] = {}
    for layer in layers:
        kind = type(layer).__name__
        base = layer.config.type
        count = counts.get(base, 0)
        counts[base] = count + 1
        yield layer.config.name or (f"{base}_{count}" if count else base), KERAS_NAMES.get(kind, kind)


def _shape(layer: Layer) -> str:
    def told(shape: Shape) -> str:
        axes = ["None", *("None" if isinstance(axis, str) else str(axis) for axis in shape.axes)]
        return f"({', '.join(axes)})"

    return ", ".join([told(layer.output), *(told(shape) for _, shape in layer.others)])


def _size(num_bytes: float) -> str:
    for unit in ("B", "KB", "MB"):
        if num_bytes < 1024:
            return f"{num_bytes:.2f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.2f} GB"
