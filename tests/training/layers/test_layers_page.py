"""docs/reference/layers.md names every option of every layer, and nothing that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from training.importers.keras.steps import graph_classes
from training.layers.activations import ACTIVATIONS, read_activation
from training.layers.base import LayerConfig
from training.layers.registry import LAYERS, options_of

PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "layers.md").read_text(encoding="utf-8")
COMMON = [name for name in LayerConfig.model_fields if name != "type"]
VERDICTS = ("exact", "exact, CPU only", "refused, because ", "as the layer's own: exact")


def sections() -> dict[str, list[list[str]]]:
    """The rows of each section's table, without its head."""
    found: dict[str, list[list[str]]] = {}
    for part in PAGE.split("\n## ")[1:]:
        title, _, text = part.partition("\n")
        lines = [line for line in text.splitlines() if line.startswith("|")][2:]
        found[title] = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return found


def documented() -> dict[tuple[str, ...], list[list[str]]]:
    """The tables of layers, by the layers' names."""
    titles = {title: tuple(re.findall(r"`(\w+)`", title)) for title in sections()}
    return {types: sections()[title] for title, types in titles.items() if types}


def test_every_layer_has_its_section_and_every_section_its_layer() -> None:
    names = [name for types in documented() for name in types]
    assert sorted(names) == sorted(LAYERS)


@pytest.mark.parametrize("types", documented(), ids="-".join)
def test_every_option_is_on_the_page_and_every_option_on_the_page_is_there(types: tuple[str, ...]) -> None:
    rows = {cells[0].strip("`"): cells for cells in documented()[types]}
    options = {option for name in types for option in options_of(name)} - set(COMMON)
    assert set(rows) == options
    for option, cells in rows.items():
        assert len(cells) == 4, option
        having = [name for name in types if option in options_of(name)]
        # where only some of the section's layers have it, the row says which
        if len(having) < len(types):
            assert re.match(rf"`{having[0]}`.* only", cells[1]) or "only" in cells[1], option


@pytest.mark.parametrize("types", documented(), ids="-".join)
def test_every_verdict_is_one_of_the_three(types: tuple[str, ...]) -> None:
    for cells in documented()[types]:
        assert cells[3].startswith(VERDICTS), cells


def test_every_layer_that_only_imports_have_is_on_the_page() -> None:
    cells = [row[0] for row in sections()["Keras layers that only imports have"]]
    recipes = {layer.keras_class for layer in LAYERS.values()}
    named = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert {name for name in graph_classes() if name not in recipes} <= named <= set(graph_classes())


def test_the_options_that_all_layers_have_are_told_once() -> None:
    assert [cells[0].strip("`") for cells in sections()["Every layer"]] == COMMON


def test_the_table_of_activations_is_that_of_the_code() -> None:
    rows = {cells[0].strip("`"): cells for cells in sections()["Activations"]}
    assert list(rows) == list(ACTIVATIONS)
    for name, (_, in_node, verdict) in rows.items():
        known = read_activation(name).in_node
        assert in_node == ("a Scan" if known is None else known.name)
        # onnxruntime's CUDA provider takes recurrent nodes with sigmoid and tanh alone
        on_cuda = known is None or name in ("sigmoid", "tanh")
        assert verdict == ("exact" if on_cuda else "exact, CPU only"), name
