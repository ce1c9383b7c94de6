"""The reference network is a sound model folder, and its bare graph answers the folder's own example."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.answers import WrongAnswer, check, sluice_predictions
from benchmarks.bare_graph import BareGraph
from benchmarks.reference import reference_folder
from benchmarks.servers import ROOT
from service.__main__ import main
from training.summary import network_of_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reference_folder(tmp_path_factory.mktemp("models"))


def test_the_reference_folder_is_sound(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder}: ok\n"


def test_the_reference_is_two_layers_of_64_units(folder: Path) -> None:
    # Four gates, each with weights for input and state and (ours has one) a bias; then the head.
    num_weights = 4 * 64 * (1 + 64 + 1) + 4 * 64 * (64 + 64 + 1) + 24 * (64 + 1)
    assert network_of_folder(folder).num_parameters == num_weights
    face = json.loads((folder / "manifest.json").read_text())["forecast"]
    assert (face["min_length"], face["context_length"], face["horizon"], face["quantiles"]) == (8, 512, 24, [])


def test_a_folder_that_is_there_is_used_and_another_networks_is_replaced(tmp_path: Path) -> None:
    folder = reference_folder(tmp_path)
    (folder / "mark").touch()
    assert (reference_folder(tmp_path) / "mark").exists()
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["training"]["network"]["horizon"] = 12
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert not (reference_folder(tmp_path) / "mark").exists()


@pytest.mark.parametrize("name", ["lstm-2x64", "forecast-hourly", "sentiment-en"])
def test_the_bare_graph_answers_a_folders_example_as_sluice_does(name: str, folder: Path) -> None:
    home = folder if name == "lstm-2x64" else ROOT / "models" / name / "1"
    example = json.loads((home / "example.json").read_text())
    instances = [each["text"] if isinstance(each, dict) and "text" in each else each for each in example["request"]["instances"]]
    predictions = sluice_predictions(json.dumps(example["response"]).encode())
    check(predictions, BareGraph(home).answers(instances))


def test_a_wrong_answer_is_named(folder: Path) -> None:
    truth = [{"mean": np.array([[100.0], [200.0]]), "quantiles": np.zeros((2, 1, 3))}]
    good = {"mean": [100.0, 200.01], "quantiles": np.zeros((2, 3))}
    check([good], truth)
    for prediction, message in (
        ({**good, "mean": [100.0, 200.1]}, r'instance 0: "mean" differs from the graph\'s answer by 0.0005'),
        ({**good, "mean": [100.0, float("nan")]}, "differs"),
        ({**good, "quantiles": np.zeros((3, 2))}, r'"quantiles" has the shape \(3, 2\), expected \(2, 3\)'),
        ({"mean": good["mean"]}, 'no "quantiles"'),
    ):
        with pytest.raises(WrongAnswer, match=message):
            check([prediction], truth)
    with pytest.raises(WrongAnswer, match="2 predictions for 1 instances"):
        check([good, good], truth)


def test_the_bare_graph_runs_rows_of_any_length_at_its_best_batch_size(folder: Path) -> None:
    graph = BareGraph(folder)
    rows = graph.rows([{"history": [float(step) for step in range(1, length + 1)]} for length in (8, 20, 9)])
    rate, size = graph.best(rows, duration_s=0.0)
    assert rate > 0
    assert size in (1, 4, 8, 16, 32, 64, 128)
