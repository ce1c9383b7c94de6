"""Rows of features: read, cut in each label's share, complained of by place, and a run on each kind of answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from training.data.rows import RowSplit, hold_back, read_rows
from training.data.sources import DataError
from training.layers.registry import LayerError
from training.recipe import RecipeError, RowData, RowSource, TabularRecipe, parse_recipe
from training.runs import tabular
from training.runs.train import train

RECIPE = """\
task = "tensor"
name = "toy"

[data]
{data}

[[data.train]]
path = "rows.csv"
label = "kind"
values = ["a", "b"]

[[layers]]
type = "normalization"

[[layers]]
type = "reshape"
target_shape = [1, 2]

[[layers]]
type = "simple_rnn"
units = 8

[[layers]]
type = "dense"
units = {units}
activation = "{activation}"
{last}
[fit]
loss = "{loss}"
learning_rate = 0.02
epochs = 30
batch_size = 16
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    lines = ["a,b,kind,sum,product"]
    for _ in range(120):
        a, b = rng.normal(50, 10), rng.normal(-3, 0.1)
        kind = "xyz"[min(2, int(a > 46) + int(a > 54))]
        lines.append(f"{a:.4f},{b:.4f},{kind},{a + b:.4f},{a * b:.4f}")
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    return tmp_path


def read(folder: Path, **options: Any) -> RowSplit:
    data = options.pop("data", {})
    return read_rows(RowData.model_validate({"train": [{"path": "rows.csv", "label": "kind", **options}], **data}), folder, 1)


def test_each_label_keeps_its_share_on_both_sides_of_a_cut() -> None:
    labels = np.array([0] * 50 + [1] * 20)
    kept, back = hold_back(70, labels, 0.2, np.random.default_rng(0))
    assert np.bincount(labels[back]).tolist() == [10, 4]
    assert sorted([*kept, *back]) == list(range(70))
    assert [len(part) for part in hold_back(70, None, 0.0, np.random.default_rng(0))] == [70, 0]


def test_all_columns_but_the_answer_are_features(folder: Path) -> None:
    split = read(folder)
    assert split.features == ("a", "b", "sum", "product")
    assert split.labels == ("x", "y", "z")
    assert (len(split.train), len(split.validation), len(split.test)) == (87, 10, 23)
    numbers = read(folder, values=["a", "b"], data={"targets": ["sum", "product"]})
    assert (numbers.labels, numbers.targets, numbers.test.answers.shape) == ((), ("sum", "product"), (24, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "sort"}, 'rows.csv: has no column "sort"; there are'),
        ({"values": ["a", "c"]}, 'rows.csv: has no column "c"; there are'),
        ({"values": ["a", "kind"]}, 'column "kind": .* is not a number'),
        ({"data": {"labels": ["x", "y"]}}, r"rows.csv: row \d+: label 'z' is not one of"),
        ({"data": {"test_share": 0.0}}, "nothing left to test with"),
    ],
)
def test_what_cannot_be_read_is_named(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(folder, **options)


def test_a_missing_value_is_named_by_row_and_column(folder: Path) -> None:
    text = (folder / "rows.csv").read_text().splitlines()
    text[5] = ",".join(["", *text[5].split(",")[1:]])
    (folder / "rows.csv").write_text("\n".join(text))
    with pytest.raises(DataError, match=r'rows\.csv: row 5: column "a" has no value'):
        read(folder)


KINDS = [
    ("", 3, "softmax", "categorical_crossentropy", "accuracy", 0.8),
    ('labels = { x = "low", y = "high", z = "high" }', 1, "sigmoid", "binary_crossentropy", "accuracy", 0.8),
    ('targets = ["sum", "product"]', 2, "linear", "mse", "r2", 0.5),
]


@pytest.mark.parametrize(("data", "units", "activation", "loss", "measure", "least"), KINDS)
def test_rows_are_answered_with_labels_or_numbers(
    folder: Path, data: str, units: int, activation: str, loss: str, measure: str, least: float
) -> None:
    # Numbers come in their own units: the last layer undoes what scaled them.
    last = '[[layers]]\ntype = "normalization"\ninvert = true\n' if loss == "mse" else ""
    recipe = parse_recipe(RECIPE.format(data=data, units=units, activation=activation, loss=loss, last=last))
    path = folder / "toy.toml"
    published = train(recipe, path, data=folder, models=folder / "models", runs=folder / "runs", console=Console(quiet=True))
    manifest = json.loads((published / "manifest.json").read_text())
    assert manifest["task"] == "tensor"
    assert manifest["inputs"] == [{"name": "features", "datatype": "FP32", "shape": ["batch", 2]}]
    assert manifest["outputs"] == [{"name": "output", "datatype": "FP32", "shape": ["batch", units]}]
    assert manifest["training"]["metrics"][measure] > least
    assert len(manifest["training"]["baselines"]) == 2


def test_a_run_on_rows_is_resumed_only_by_the_recipe_that_began_it(folder: Path) -> None:
    text = RECIPE.format(data="", units=3, activation="softmax", loss="categorical_crossentropy", last="")

    def go(changes: list[str], *, resume: bool = False) -> None:
        recipe, path, console = parse_recipe(text, changes), folder / "toy.toml", Console(quiet=True)
        train(recipe, path, data=folder, models=folder / "models", runs=folder / "runs", resume=resume, console=console)

    go(["fit.epochs=1"])
    with pytest.raises(RecipeError, match="the recipe has changed since that run: seed"):
        go(["fit.epochs=1", "seed=9"], resume=True)


@pytest.mark.parametrize(
    ("units", "activation", "loss", "message"),
    [
        (
            2,
            "softmax",
            "categorical_crossentropy",
            r"layers\[3\] \(dense\): .*3 labels need the answer \(batch, 3\), got \(batch, 2\)",
        ),
        (3, "sigmoid", "categorical_crossentropy", r"option \"activation\": loss .* needs 'softmax', got 'sigmoid'"),
        (1, "sigmoid", "binary_crossentropy", "is for two labels"),
    ],
)
def test_a_last_layer_that_does_not_fit_the_loss_is_refused(
    folder: Path, units: int, activation: str, loss: str, message: str
) -> None:
    recipe = parse_recipe(RECIPE.format(data="", units=units, activation=activation, loss=loss, last=""))
    assert isinstance(recipe, TabularRecipe)
    with pytest.raises(LayerError, match=message):
        tabular.run(recipe, data=folder, folder=folder / "runs", resume=False, console=Console(quiet=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (['scaling.kind="minmax"'], "unknown key \"scaling\"; it is for task 'forecast'"),
        (["fit.word_dropout=0.1"], "unknown key \"fit.word_dropout\"; it is for task 'classify'"),
        (['fit.loss="mse"'], 'loss "mse" does not fit: labels need a crossentropy'),
        (['fit.loss="quantile"'], '"fit.loss": Input should be .*categorical_crossentropy'),
        (['evaluate.baselines=["theta"]'], r'"evaluate.baselines.0": Input should be .*, got .theta.'),
        (['data.train.0.path=""', 'data.train.0.builtin="air-passengers"'], "Input should be 'breast-cancer'"),
    ],
)
def test_parts_that_do_not_fit_the_task_are_refused(changes: list[str], message: str) -> None:
    text = RECIPE.format(data="", units=3, activation="softmax", loss="categorical_crossentropy", last="")
    with pytest.raises(RecipeError, match=message):
        parse_recipe(text, changes)


def test_a_source_is_a_file_or_builtin() -> None:
    with pytest.raises(ValueError, match="either `path` or `builtin`"):
        RowSource.model_validate({"path": "a", "builtin": "breast-cancer"})
