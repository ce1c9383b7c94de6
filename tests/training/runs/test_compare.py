"""Which layers stand in the place of recurrent ones, and what is concluded from the scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from training.network.network import Network
from training.recipe import RECIPES, Recipe, RecipeError, parse_recipe, read_recipe
from training.runs import forecast, tabular
from training.runs.compare import CELLS, CellRun, Comparison, compare, conclusions, format_scores, rows, with_cell, write
from training.runs.registry import TASKS


def kinds(recipe: Recipe) -> list[Any]:
    return [table["layer"]["type"] if table["type"] == "bidirectional" else table["type"] for table in recipe.layers]


@pytest.mark.parametrize(
    "name", ["passengers", "close-price", "sentiments", "question-type", "feature-vectors", "forecast-hourly"]
)
@pytest.mark.parametrize("cell", CELLS)
def test_every_bundled_recipe_can_be_built_with_every_cell(name: str, cell: str) -> None:
    recipe = read_recipe(RECIPES / f"{name}.toml")
    task = TASKS[recipe.task]
    changed = with_cell(recipe, task, cell)
    spec, _ = task.spec_of_recipe(changed, None)
    assert Network(spec).num_parameters > 0
    is_recurrent = {"lstm", "gru", "simple_rnn"} & set(kinds(changed))
    assert is_recurrent == {"bilstm": {"lstm"}, "bigru": {"gru"}, "birnn": {"simple_rnn"}, "mlp": set()}.get(cell, {cell})


def test_options_that_the_new_cell_knows_are_kept() -> None:
    recipe = read_recipe(RECIPES / "close-price.toml", ["layers.0.unit_forget_bias=false", "layers.0.dropout=0.5"])
    first = with_cell(recipe, forecast.TASK, "gru").layers[0]
    assert first == {"type": "gru", "units": 50, "return_sequences": True, "dropout": 0.5}
    assert with_cell(recipe, forecast.TASK, "bilstm").layers[0]["layer"]["unit_forget_bias"] is False


@pytest.mark.parametrize(("cell", "message"), [("lstmm", 'no cell "lstmm"; there are simple_rnn'), ("gru", "no recurrent layer")])
def test_a_comparison_that_cannot_be_made_is_refused(cell: str, message: str) -> None:
    recipe = read_recipe(RECIPES / "feature-vectors.toml")
    dense = recipe.model_copy(update={"layers": [{"type": "dense", "units": 1, "activation": "sigmoid"}]})
    with pytest.raises(RecipeError, match=message):
        with_cell(dense, tabular.TASK, cell)


def comparison(measure: str, **scores: list[float]) -> Comparison:
    runs = [CellRun(cell, i, {measure: score}, 10, 2.0, 4) for cell, found in scores.items() for i, score in enumerate(found)]
    return Comparison("toy", tuple(runs), {"naive": {measure: 2.0}}, ("accuracy",))


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (comparison("mae", lstm=[1.0, 1.01], mlp=[2.0, 2.02]), "lstm beats mlp by 50.0 %"),
        (comparison("accuracy", lstm=[0.80, 0.81], mlp=[0.90, 0.91]), "mlp beats lstm by 12.4 %"),
        (comparison("mae", lstm=[1.0, 2.0], mlp=[1.4, 2.4]), "no clear difference"),
        (comparison("mae", lstm=[1.0], mlp=[2.0]), "one seed has no spread"),
    ],
)
def test_a_difference_is_claimed_only_beyond_the_spread_of_the_seeds(found: Comparison, sentence: str) -> None:
    assert sentence in conclusions(found)[0]


def test_the_table_has_mean_and_spread_of_cells_and_baselines() -> None:
    header, body = rows(comparison("mae", lstm=[1.0, 3.0], mlp=[2.0, 2.0]))
    assert header == ["cell", "parameters", "s per epoch", "epochs", "mae"]
    assert body[0] == ["lstm", "10", "0.50", "4", "2 ± 1.4"]
    assert body[2] == ["naive", "", "", "", "2"]
    assert format_scores([1.5]) == "1.5"


def test_a_comparison_trains_every_cell_and_writes_its_results(tmp_path: Path) -> None:
    recipe = parse_recipe((RECIPES / "feature-vectors.toml").read_text(), ["fit.epochs=1"])
    found = compare(recipe, tabular.TASK, ["lstm", "mlp"], 2, data=None, folder=tmp_path / "c", console=Console(quiet=True))
    assert [(run.cell, run.seed) for run in found.runs] == [("lstm", 1), ("mlp", 1), ("lstm", 2), ("mlp", 2)]
    assert set(found.baselines) == {"majority", "logistic"}
    picture, table, numbers = write(found, tmp_path / "c")
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert "| lstm | 18,737 |" in table.read_text()
    assert len(json.loads(numbers.read_text())["runs"]) == 4
