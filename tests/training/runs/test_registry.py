"""A task that no file of training names is registered, and then every command has it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.toy_task.run import TASK
from training.__main__ import app
from training.recipe import Recipe, RecipeError, parse_recipe
from training.runs.registry import TASKS, register, unregister
from training.summary import network_of_folder

RECIPE = """\
task = "sum"
name = "toy"
data = { train = [{ path = "rows.csv" }] }
sum = { num_columns = 3 }

[[layers]]
type = "dense"
units = 1

[fit]
loss = "mse"
learning_rate = 0.1
epochs = 60
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    lines = [f"{i % 3},{i % 5},{i % 7},text" for i in range(40)]
    (tmp_path / "rows.csv").write_text("\n".join(["a,b,c,d", *lines]))
    (tmp_path / "toy.toml").write_text(RECIPE)
    register(TASK)
    yield tmp_path
    unregister("sum")


def test_a_task_of_three_files_is_trained_and_published_by_its_recipe(folder: Path) -> None:
    options = ["--data", str(folder), "--runs", str(folder / "runs"), "--models", str(folder / "models")]
    result = CliRunner().invoke(app, ["run", str(folder / "toy.toml"), *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    published = folder / "models" / "toy" / "1"
    manifest = json.loads((published / "manifest.json").read_text())
    assert (manifest["task"], manifest["sum"]) == ("sum", {"num_columns": 3})
    assert manifest["training"]["metrics"]["mae"] < 0.5
    assert network_of_folder(published).num_parameters == 4
    summary = CliRunner().invoke(app, ["summary", str(folder / "toy.toml")], catch_exceptions=False)
    assert "Total params: 4" in " ".join(summary.output.split())


def test_a_fault_in_its_own_table_is_named_with_line_and_key(folder: Path) -> None:
    with pytest.raises(RecipeError, match=r'line 4: "sum.num_columns": .* greater than or equal to 1, got 0'):
        parse_recipe(RECIPE.replace("num_columns = 3", "num_columns = 0"))


def test_an_unregistered_task_is_unknown_again(folder: Path) -> None:
    unregister("sum")
    assert "sum" not in TASKS
    with pytest.raises(RecipeError, match="no task 'sum'; there are forecast, classify, tensor"):
        parse_recipe(RECIPE)
    register(TASK)
    assert isinstance(parse_recipe(RECIPE), Recipe)


def test_a_layer_that_does_not_fit_its_head_is_named_with_its_line(folder: Path) -> None:
    (folder / "toy.toml").write_text(RECIPE.replace("units = 1", "units = 2"))
    result = CliRunner().invoke(app, ["run", str(folder / "toy.toml"), "--data", str(folder), "--runs", str(folder / "runs")])
    assert result.exit_code == 1
    assert "toy.toml, line 6: layers[0] (dense): a sum is one number per row" in " ".join(result.output.split())


def test_a_name_has_one_task(folder: Path) -> None:
    with pytest.raises(ValueError, match='there is a task "sum" already'):
        register(replace(TASK, larger_is_better=("mae",)))
    assert TASKS["sum"] is TASK
