"""A comparison: targets rotate, all serve the same graph, and the bare graph is measured once per kind of rows."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.bare_graph import BareGraph
from benchmarks.cases import select_cases
from benchmarks.compare import copy_model_folders, measure_graphs, rotate
from benchmarks.targets import echo, sluice
from benchmarks.workloads import Workload

HISTORY = {"history": [float(hour % 24) for hour in range(336)]}


def test_each_round_begins_with_the_next_target(tmp_path: Path) -> None:
    targets = [sluice(1), sluice(2), echo(tmp_path)]
    assert [[target.name for target in rotate(targets, number)] for number in range(4)] == [
        ["Sluice, 1 process", "Sluice, 2 processes", "echo"],
        ["Sluice, 2 processes", "echo", "Sluice, 1 process"],
        ["echo", "Sluice, 1 process", "Sluice, 2 processes"],
        ["Sluice, 1 process", "Sluice, 2 processes", "echo"],
    ]


def test_every_server_gets_one_model_with_one_graph(tmp_path: Path) -> None:
    (folder,) = copy_model_folders({"forecast-hourly"}, tmp_path).values()
    assert folder == tmp_path / "forecast-hourly" / "forecast-hourly" / "1"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [(graph["file"], graph["precision"]) for graph in manifest["graphs"]] == [("model.onnx", "fp32")]
    ((point, _),) = (outputs.values() for outputs in BareGraph(folder).run_each([HISTORY]))
    assert point.shape == (48, 1)


def test_the_bare_graph_is_measured_once_per_kind_of_rows(tmp_path: Path) -> None:
    (folder,) = copy_model_folders({"forecast-hourly"}, tmp_path).values()
    workloads = {"hourly": Workload([[HISTORY]], [])}
    (speed,) = measure_graphs(3, select_cases(["hourly", "open50"]), workloads, {"forecast-hourly": BareGraph(folder)}, 0.0)
    assert (speed.case, speed.round) == ("hourly", 3)
    assert speed.rows_per_s > 0
