"""The second graph: measured on the same test part, held against the recipe's bounds, and added to a folder only if verified."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from training.__main__ import app
from training.export.graph import write_graph
from training.export.quantize import (
    MARGIN,
    QuantizeError,
    Trial,
    make_second_graph,
    measure_degradations,
    measure_ranges,
    measure_speed,
    require_quantizable,
)
from training.network.heads.forecast import ForecastSpec
from training.network.network import Network
from training.recipe import ForecastRecipe, Quantize, parse_recipe
from training.runs.train import train
from training.scoring.evaluate import Graph

CLI = CliRunner()
QUIET = Console(quiet=True)
RECIPE = """
task = "forecast"
name = "toy"
[[data.train]]
builtin = "air-passengers"
[forecast]
context_length = 24
min_length = 12
horizon = 6
season_length = 12
[scaling]
kind = "standard"
[[layers]]
type = "lstm"
units = 12
[[layers]]
type = "dense"
[fit]
loss = "mse"
epochs = 1
[evaluate]
baselines = ["seasonal_naive"]
"""


def published(tmp_path: Path, text: str = RECIPE) -> Path:
    tmp_path.mkdir(exist_ok=True)
    path = tmp_path / "toy.toml"
    path.write_text(text)
    return train(parse_recipe(text), path, data=None, models=tmp_path / "models", runs=tmp_path / "runs", console=QUIET)


def graphs_of(folder: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads((folder / "manifest.json").read_text())["graphs"]
    return entries


def network(kind: str = "lstm") -> Network:
    torch.manual_seed(0)
    net = Network(ForecastSpec(layers=({"type": kind, "units": 4}, {"type": "dense"})))
    net.set_statistics(torch.tensor([[-1.0], [1.0]]))  # a scale of one
    return net


def trial(net: Network, answer: Callable[[Graph], list[Any]]) -> Trial:
    history = np.random.default_rng(0).normal(size=(8, 9, 1)).astype(np.float32)
    return Trial(net, [{"history": history, "lengths": np.full(8, 9)}], lambda graph: {"mae": 1.0}, answer)


# ------------------------------------------------------------------------------------------------------------ measuring


def test_accuracies_lose_points_and_errors_grow_by_a_share() -> None:
    bounds = Quantize(max_points_lost=0.5, max_error_gained=2.0)
    first = {"a_accuracy": 0.9, "b_accuracy": 0.8, "f1": 0.7, "mae": 10.0, "owa": 0.5, "pinball": 4.0, "rmse": 3.0}
    second = {"a_accuracy": 0.894, "b_accuracy": 0.81, "f1": 0.1, "mae": 10.1, "owa": 0.52, "pinball": 3.0, "rmse": 9.0}
    found = {loss.measure: loss for loss in measure_degradations(first, second, bounds)}
    assert {name: (loss.kind, round(loss.value, 6), loss.bound, loss.is_within) for name, loss in found.items()} == {
        "a_accuracy": ("absolute", 0.006, 0.005, False),
        "b_accuracy": ("absolute", -0.01, 0.005, True),
        "mae": ("relative", 0.01, 0.02, True),
        "owa": ("relative", 0.04, 0.02, False),
        "pinball": ("relative", -0.25, 0.02, True),
    }


def test_a_measure_that_int8_does_not_reach_is_an_error() -> None:
    with pytest.raises(QuantizeError, match="no mae"):
        measure_degradations({"mae": 1.0}, {}, Quantize())


def test_ranges_are_those_of_the_true_steps_with_a_margin() -> None:
    payload = write_graph(network()).SerializeToString()
    history = np.zeros((2, 4, 1), np.float32)
    history[0, :, 0], history[1, :, 0] = [1, 2, 3, 99], [-2, 0, 99, 99]
    (low, high) = measure_ranges(payload, [{"history": history, "lengths": np.array([3, 2])}])["lstm_0/Transpose"]
    assert (low, high) == pytest.approx((-2 - 5 * MARGIN, 3 + 5 * MARGIN))


def test_an_answer_with_another_label_is_no_second_graph() -> None:
    net = network()
    payload = write_graph(net).SerializeToString()
    with pytest.raises(QuantizeError, match="answers the example with 'good', the first one with 'bad'"):
        make_second_graph(payload, trial(net, lambda _: [{"label": "good"}]), {"mae": 1.0}, [{"label": "bad"}], Quantize(), 0)


def test_the_tolerance_is_twice_the_distance_from_the_first_answers() -> None:
    net = network()
    payload = write_graph(net).SerializeToString()
    second = make_second_graph(
        payload, trial(net, lambda _: [{"forecast": [1.0, 2.25]}]), {"mae": 1.0}, [{"forecast": [1.0, 2.0]}], Quantize(), 0
    )
    assert second.tolerance == {"absolute": 0.5, "relative": 0.01}
    assert second.entry["tolerance"] == second.tolerance


def test_a_graph_is_as_fast_as_itself() -> None:
    net = network()
    payload = write_graph(net).SerializeToString()
    assert measure_speed(payload, payload, trial(net, lambda _: []).rows[0], duration_s=0.0) > 0


@pytest.mark.parametrize("kind", ["gru", "simple_rnn"])
def test_a_recipe_that_asks_for_what_cannot_be_is_refused_before_training(kind: str, tmp_path: Path) -> None:
    with pytest.raises(QuantizeError, match=r"the recipe has the table \[quantize\], but .* onnxruntime has no quantised"):
        require_quantizable(network(kind))
    path = tmp_path / "toy.toml"
    path.write_text(RECIPE.replace('"lstm"', f'"{kind}"') + "[quantize]\n")
    result = CLI.invoke(app, ["run", str(path), "--models", str(tmp_path / "models"), "--runs", str(tmp_path / "runs")])
    assert result.exit_code == 1
    assert f'"{kind}_0" stays fp32' in " ".join(result.output.split())
    assert not list(tmp_path.glob("**/*.ckpt"))


# ------------------------------------------------------------------------------------------------------------- folders


def test_a_run_publishes_both_graphs_when_its_recipe_asks(tmp_path: Path) -> None:
    folder = published(tmp_path, RECIPE + "[quantize]\nmax_error_gained = 5.0\n")
    first, second = graphs_of(folder)
    assert (first["file"], first["precision"], first.get("loss")) == ("model.onnx", "fp32", None)
    assert (second["file"], second["precision"]) == ("model.int8.onnx", "int8")
    assert second["score"].keys() == first["score"].keys()
    assert second["score"] != first["score"]
    (loss,) = second["loss"]
    growth = second["score"]["mae"] / first["score"]["mae"] - 1
    assert loss == {"measure": "mae", "kind": "relative", "value": pytest.approx(growth), "bound": 0.05}
    assert (folder / "model.int8.onnx").stat().st_size > 0


def test_the_command_adds_what_the_run_would_have_published(tmp_path: Path) -> None:
    together = published(tmp_path / "a", RECIPE + "[quantize]\n")
    folder = published(tmp_path / "b")
    assert len(graphs_of(folder)) == 1
    of_graphs = ("manifest.json", "README.md")  # which say what graphs there are
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name not in of_graphs}
    result = CLI.invoke(app, ["quantize", str(folder)])
    assert result.exit_code == 0, result.output
    assert graphs_of(folder) == graphs_of(together)
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert (folder / "plots").is_dir()
    assert [path.name for path in folder.parent.iterdir()] == ["1"]
    # Again: it replaces its own graph.
    assert CLI.invoke(app, ["quantize", str(folder)]).exit_code == 0
    assert graphs_of(folder) == graphs_of(together)


def test_a_folder_that_another_version_wrote_is_refused_by_its_outputs(tmp_path: Path) -> None:
    folder = published(tmp_path)
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"name": "forecast"', '"name": "mean"'))
    result = CLI.invoke(app, ["quantize", str(folder)])
    assert result.exit_code == 1
    assert "its graph gives mean, lstm_0_hidden_next, lstm_0_cell_next, the recipe's network now gives forecast," in " ".join(
        result.output.split()
    )
    assert len(graphs_of(folder)) == 1


def test_other_data_than_the_manifest_was_scored_on_are_refused(tmp_path: Path) -> None:
    folder = published(tmp_path)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["graphs"][0]["score"]["mae"] *= 1.5
    path.write_text(json.dumps(manifest))
    result = CLI.invoke(app, ["quantize", str(folder)])
    assert result.exit_code == 1
    assert "measured on other data" in " ".join(result.output.split())
    assert len(graphs_of(folder)) == 1


@pytest.mark.parametrize("training", [{}, {"recipe": {"task": "tensor", "name": "imported"}}], ids=["none", "imported"])
def test_a_folder_that_no_recipe_made_is_refused(tmp_path: Path, training: dict[str, Any]) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"training": training}))
    result = CLI.invoke(app, ["quantize", str(tmp_path)])
    assert result.exit_code == 1
    assert "with the recipe of a run" in " ".join(result.output.split())


def test_a_folder_of_a_gru_is_refused_and_left_alone(tmp_path: Path) -> None:
    folder = published(tmp_path, RECIPE.replace('"lstm"', '"gru"'))
    result = CLI.invoke(app, ["quantize", str(folder)])
    assert result.exit_code == 1
    assert "no quantised GRU" in " ".join(result.output.split())
    assert not (folder / "model.int8.onnx").exists()


def test_bounds_are_not_below_zero() -> None:
    recipe = json.loads(parse_recipe(RECIPE).model_dump_json())
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        ForecastRecipe.model_validate_json(json.dumps({**recipe, "quantize": {"max_points_lost": -1}}))
