"""The reference network is a valid model folder, and the bare graph's outputs are the predictions of a folder's example."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.bare_graph import BareGraph
from benchmarks.reference import reference_folder
from benchmarks.responses import parse_sluice_predictions, verify
from benchmarks.servers import ROOT
from service.__main__ import main
from training.summary import network_of_folder

LONGEST_IN_ONE_PIECE = 500
"""In words."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reference_folder(tmp_path_factory.mktemp("models"))


def test_the_reference_folder_is_valid(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder}: ok\n"


def test_the_reference_is_two_layers_of_64_units(folder: Path) -> None:
    # Four gates, each with weights for input and state and (ours has one) a bias; then the head.
    num_weights = 4 * 64 * (1 + 64 + 1) + 4 * 64 * (64 + 64 + 1) + 24 * (64 + 1)
    assert network_of_folder(folder).num_parameters == num_weights
    spec = json.loads((folder / "manifest.json").read_text())["forecast"]
    assert (spec["min_length"], spec["context_length"], spec["horizon"], spec["quantiles"]) == (8, 512, 24, [])


def test_an_existing_folder_is_reused_and_that_of_another_network_replaced(tmp_path: Path) -> None:
    folder = reference_folder(tmp_path)
    (folder / "mark").touch()
    assert (reference_folder(tmp_path) / "mark").exists()
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["training"]["network"]["horizon"] = 12
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert not (reference_folder(tmp_path) / "mark").exists()


@pytest.mark.parametrize("name", ["lstm-2x64", "forecast-hourly", "sentiment-en"])
def test_the_bare_graphs_outputs_are_the_predictions_of_a_folders_example(name: str, folder: Path) -> None:
    home = folder if name == "lstm-2x64" else ROOT / "models" / name / "1"
    example = json.loads((home / "example.json").read_text())
    instances = [each["text"] if isinstance(each, dict) and "text" in each else each for each in example["request"]["instances"]]
    predictions = parse_sluice_predictions(json.dumps(example["response"]).encode())
    # A long text is read in pieces, each a row; the bare graph runs one row for each instance.
    whole = [at for at, each in enumerate(instances) if not isinstance(each, str) or len(each.split()) < LONGEST_IN_ONE_PIECE]
    assert len(whole) >= 2
    verify([predictions[at] for at in whole], BareGraph(home).run_each([instances[at] for at in whole]))


def test_the_bare_graph_runs_rows_of_any_length_at_its_best_batch_size(folder: Path) -> None:
    graph = BareGraph(folder)
    rows = graph.encode([{"history": [float(step) for step in range(1, length + 1)]} for length in (8, 20, 9)])
    rate, size = graph.measure_best(rows, duration_s=0.0)
    assert rate > 0
    assert size in (1, 4, 8, 16, 32, 64, 128)
