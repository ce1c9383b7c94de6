"""A target's run: a target that responds wrongly or does not start is a failure, is not timed, and does not stop the others."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.bare_graph import BareGraph
from benchmarks.batch_invariance import TOLERANCE
from benchmarks.cases import HOURLY, Case, select_cases
from benchmarks.compare import copy_model_folders
from benchmarks.responses import parse_sluice_predictions
from benchmarks.results import TargetSpec
from benchmarks.rivals import RIVALS
from benchmarks.servers import ROOT
from benchmarks.target_run import TargetRun, shorten
from benchmarks.targets import Command, Target, from_rival
from benchmarks.workloads import Workload, draw_requests

needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
REQUESTS = [[{"history": [1.0, 2.0]}], [{"history": [3.0]}]]
C64, OPEN = select_cases(["c64", "open50"])


def spec(name: str) -> TargetSpec:
    return TargetSpec(name=name, family="packaged", num_processes=1)


def canned(folder: Path, wrong: str = "") -> Target:
    """A server with a canned response per case; that of the case `wrong` is not the graph's."""
    for case in (C64, OPEN):
        forecast = [1.0, 3.0] if case.name == wrong else [1.0, 2.0]
        (folder / case.name).write_text(json.dumps({"predictions": [{"forecast": forecast}]}))

    def command(_: Path, port: int) -> Command:
        return [sys.executable, "-m", "benchmarks.echo", str(folder), str(port)], {}

    def body(case: Case, instances: Any) -> bytes:
        return json.dumps(instances).encode()

    return Target(spec("canned"), command, body, parse_sluice_predictions, path=lambda case: f"/{case.name}", ready_path="/")


def run_of(target: Target) -> TargetRun:
    workload = Workload(REQUESTS, [{"point": np.array([[1.0], [2.0]])}])
    lines: list[str] = []
    return TargetRun(0, target, 1, {C64.model: Path()}, {"c64": workload, "open50": workload}, lines.append)


@needs_wrk
def test_a_run_measures_every_case_and_the_open_loop_at_its_share(tmp_path: Path) -> None:
    run = run_of(canned(tmp_path))
    run.run([OPEN, C64])
    closed, open_loop = run.measurements
    assert (closed.case, open_loop.case) == ("c64", "open50")
    assert closed.requests_per_s > 0
    assert open_loop.arrivals_per_s == pytest.approx(closed.requests_per_s / 2, rel=0.2)
    assert open_loop.p999_ms is not None
    (start,) = run.starts
    assert start.ready_s > 0
    assert start.resident_bytes > 1e6
    assert run.failures == []


@needs_wrk
def test_a_case_with_a_wrong_response_is_not_timed(tmp_path: Path) -> None:
    run = run_of(canned(tmp_path, wrong="c64"))
    run.run([C64])
    assert run.measurements == []
    (failure,) = run.failures
    assert failure.case == "c64"
    assert '"point" differs from the graph\'s output by 0.5' in failure.reason


@needs_wrk
def test_a_ragged_case_is_also_compared_with_each_row_alone(tmp_path: Path) -> None:
    case = Case("ragged", "histories of 168 to 336 values", "mixed", model=HOURLY, connections=2, lengths=(168, 336))
    (folder,) = copy_model_folders({HOURLY}, tmp_path).values()
    requests = draw_requests(case)
    workload = Workload(requests, BareGraph(folder).run_each(requests[0]))
    (rival,) = (rival for rival in RIVALS if rival.name == "hand-written tuned")
    lines: list[str] = []
    run = TargetRun(0, from_rival(rival, 1, Path(sys.executable)), 1, {HOURLY: folder}, {"ragged": workload}, lines.append)
    run.run([case])
    assert run.failures == []
    (invariance,) = run.invariances
    assert invariance.case == "ragged"
    assert 0 <= invariance.worst_difference <= TOLERANCE


def test_a_server_that_does_not_start_is_a_failure_of_its_own() -> None:
    broken = Target(spec("broken"), lambda *_: ([sys.executable, "-c", "exit(3)"], {}), lambda *_: b"", parse_sluice_predictions)
    run = run_of(broken)
    run.run([C64])
    (failure,) = run.failures
    assert failure.case is None
    assert "ended with status 3" in failure.reason


def test_a_reason_is_short_and_holds_no_paths_of_this_machine() -> None:
    text = f'broken ended with status 1:\n\nTraceback\n  File "{ROOT}/a.py"\nValueError: {ROOT}/model.onnx is not there\n'
    assert shorten(text) == "broken ended with status 1: … ValueError: model.onnx is not there"
    assert shorten("one line") == "one line"
    assert shorten(" \n") == ""
