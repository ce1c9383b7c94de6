"""A contestant's turn: what answers wrongly or does not start is named and not timed, and the others go on."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.bare_graph import BareGraph
from benchmarks.cases import Case, choose
from benchmarks.compare import graph_speeds, in_turn, served_folders
from benchmarks.contestants import Command, Contestant, contestants, echo, sluice
from benchmarks.servers import ROOT
from benchmarks.turns import Question, Turn, shortened
from service.process.machine import num_cores
from service.settings import read_settings

needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
ASKED = [[{"history": [1.0, 2.0]}], [{"history": [3.0]}]]
C64, OPEN = choose(["c64", "open50"])


def means(answer: bytes) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = json.loads(answer)["predictions"]
    return content


def canned(folder: Path, wrong: str = "") -> Contestant:
    """A server that answers a file, and answers one case wrongly."""
    for case in (C64, OPEN):
        mean = [1.0, 3.0] if case.name == wrong else [1.0, 2.0]
        (folder / case.name).write_text(json.dumps({"predictions": [{"mean": mean}]}))

    def command(_: Path, port: int) -> Command:
        return [sys.executable, "-m", "benchmarks.echo", str(folder), str(port)], {}

    def body(case: Case, instances: Any) -> bytes:
        return json.dumps(instances).encode()

    return Contestant("canned", "packaged", 1, command, body, means, path=lambda case: f"/{case.name}", ready_path="/")


def turn(contestant: Contestant) -> Turn:
    question = Question(ASKED, [{"mean": np.array([[1.0], [2.0]])}])
    said: list[str] = []
    return Turn(0, contestant, 1, {C64.model: Path()}, {"c64": question, "open50": question}, said.append)


@needs_wrk
def test_a_turn_measures_every_case_and_the_open_loop_at_its_share(tmp_path: Path) -> None:
    taken = turn(canned(tmp_path))
    taken.take([OPEN, C64])
    closed, open_loop = taken.measurements
    assert (closed.case, open_loop.case) == ("c64", "open50")
    assert closed.requests_per_s > 0
    assert open_loop.arrivals_per_s == pytest.approx(closed.requests_per_s / 2, rel=0.2)
    assert open_loop.p999_ms is not None
    (start,) = taken.starts
    assert start.ready_s > 0
    assert start.resident_bytes > 1e6
    assert taken.failures == []


@needs_wrk
def test_a_wrong_answer_is_not_timed(tmp_path: Path) -> None:
    taken = turn(canned(tmp_path, wrong="c64"))
    taken.take([C64])
    assert taken.measurements == []
    (failure,) = taken.failures
    assert failure.case == "c64"
    assert '"mean" differs from the graph\'s answer by 0.5' in failure.reason


def test_a_server_that_does_not_start_is_a_failure_of_its_own(tmp_path: Path) -> None:
    broken = Contestant("broken", "packaged", 1, lambda *_: ([sys.executable, "-c", "exit(3)"], {}), lambda *_: b"", means)
    taken = turn(broken)
    taken.take([C64])
    (failure,) = taken.failures
    assert failure.case is None
    assert "ended with status 3" in failure.reason


def test_a_reason_is_short_and_tells_no_paths_of_this_machine() -> None:
    said = f'broken ended with status 1:\n\nTraceback\n  File "{ROOT}/a.py"\nValueError: {ROOT}/model.onnx is not there\n'
    assert shortened(said) == "broken ended with status 1: … ValueError: model.onnx is not there"
    assert shortened("one line") == "one line"
    assert shortened(" \n") == ""


def test_sluice_gets_only_settings_that_it_knows(tmp_path: Path) -> None:
    command, env = sluice(2).command(tmp_path / "lstm-2x64" / "1", 1234)
    settings = read_settings(env)
    assert command[1:] == ["-m", "service"]
    assert (settings.models, settings.port, settings.workers) == (tmp_path, 1234, 2)


def test_contestants_are_chosen_by_how_their_names_begin() -> None:
    counts = sorted({1, num_cores()})
    found, left_out = contestants(["sluice", "hand-written, 1"])
    assert [(one.family, one.num_processes) for one in found] == [
        *(("sluice", count) for count in counts),
        ("hand-written", 1),
    ]
    assert left_out == {}
    with pytest.raises(SystemExit, match="no contestant triton; there are: Sluice, hand-written"):
        contestants(["sluice", "triton"])


def test_each_round_begins_with_another_contestant(tmp_path: Path) -> None:
    field = [sluice(1), sluice(2), echo(tmp_path)]
    assert [[one.name for one in in_turn(field, number)] for number in range(4)] == [
        ["Sluice, 1 process", "Sluice, 2 processes", "echo"],
        ["Sluice, 2 processes", "echo", "Sluice, 1 process"],
        ["echo", "Sluice, 1 process", "Sluice, 2 processes"],
        ["Sluice, 1 process", "Sluice, 2 processes", "echo"],
    ]


def test_every_server_gets_one_model_with_one_graph(tmp_path: Path) -> None:
    (folder,) = served_folders({"forecast-hourly"}, tmp_path).values()
    assert folder == tmp_path / "forecast-hourly" / "forecast-hourly" / "1"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [(graph["file"], graph["precision"]) for graph in manifest["graphs"]] == [("model.onnx", "fp32")]
    assert BareGraph(folder).answers([{"history": [float(hour % 24) for hour in range(336)]}])[0]["mean"].shape == (48, 1)


def test_the_bare_graph_is_measured_once_per_kind_of_rows(tmp_path: Path) -> None:
    hourly = choose(["hourly", "open50"])
    (folder,) = served_folders({"forecast-hourly"}, tmp_path).values()
    asked = {"hourly": Question([[{"history": [float(hour % 24) for hour in range(336)]}]], [])}
    (speed,) = graph_speeds(3, hourly, asked, {"forecast-hourly": BareGraph(folder)}, 0.0)
    assert (speed.case, speed.round) == ("hourly", 3)
    assert speed.rows_per_s > 0
