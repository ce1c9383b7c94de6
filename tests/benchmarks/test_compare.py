"""A comparison: targets rotate, all serve the same graph, and the bare graph is measured once per kind of rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.bare_graph import BareGraph
from benchmarks.batch_invariance import TOLERANCE
from benchmarks.cases import select_cases
from benchmarks.compare import copy_model_folders, main, measure_graphs, rotate
from benchmarks.report import PAGE, PICTURE, RESULTS
from benchmarks.results import read_results
from benchmarks.targets import echo, sluice
from benchmarks.workloads import Workload

HISTORY = {"history": [float(hour % 24) for hour in range(336)]}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_a_short_run_measures_every_target_and_writes_its_page(tmp_path: Path) -> None:
    targets = ["sluice, 1 process", "hand-written, 1 process", "hand-written tuned, 1 process"]
    main(
        [
            "--targets",
            *targets,
            "--cases",
            "c64",
            "texts",
            "v2",
            "v2b64",
            "--rounds",
            "1",
            "--seconds",
            "1",
            "--results",
            str(tmp_path),
        ]
    )
    results = read_results(tmp_path / RESULTS)
    assert results.failures == ()
    measured = {(one.target.lower(), one.case) for one in results.measurements}
    cases = {(target, case) for target in [*targets, "echo"] for case in ("c64", "texts")}
    assert measured == cases | {(target, case) for target in (targets[0], "echo") for case in ("v2", "v2b64")}
    assert {(one.target.lower(), one.case) for one in results.invariances} == {(target, "texts") for target in targets}
    assert all(one.worst_difference <= TOLERANCE for one in results.invariances)
    assert "| Sluice, 1 process |" in (tmp_path / PAGE).read_text()
    assert (tmp_path / PICTURE).exists()


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
