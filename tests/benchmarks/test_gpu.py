"""The table of devices: what is measured, and the reason where a device cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.gpu import max_steps, measure_device, signature_of, time_runs
from service.runtime.base import CUDA
from service.runtime.onnx_runtime import open_runtime, require_runtime
from service.runtime.tensors import Tensors
from service.tasks.registry import built_in_tasks
from tests.fakes import SUM_SIGNATURE, FakeRuntime, ManualClock
from tests.folders import write_forecast_folder, write_text_folder


def test_rows_per_second_and_latencies_are_those_of_the_runs() -> None:
    clock = ManualClock()

    def run(tensors: Tensors) -> Tensors:
        clock.advance(0.002)
        return {}

    timing = time_runs(FakeRuntime(SUM_SIGNATURE, run), SUM_SIGNATURE, 10, 5, 0.1, clock.now)
    assert timing.rows_per_s == pytest.approx(5000)
    assert timing.p50_ms == pytest.approx(2)
    assert timing.p99_ms == pytest.approx(2)


def test_each_batch_size_of_a_device_is_a_row(tmp_path: Path) -> None:
    folder = write_forecast_folder(tmp_path, context_length=24)
    manifest = built_in_tasks().read_manifest(folder)
    reference = open_runtime(folder / "model.onnx")
    table = measure_device("cpu", folder / "model.onnx", reference, signature_of(manifest), max_steps(manifest), (1, 4), 0.0, 0)
    assert [row.split(" | ")[:2] for row in table] == [["| cpu", "1"], ["| cpu", "4"]]


def test_an_unavailable_device_is_listed_with_the_reason(tmp_path: Path) -> None:
    if CUDA in require_runtime().get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    folder = write_text_folder(tmp_path)
    manifest = built_in_tasks().read_manifest(folder)
    reference = open_runtime(folder / "model.onnx")
    [row] = measure_device("cuda", folder / "model.onnx", reference, signature_of(manifest), max_steps(manifest), (1,), 0.0, 0)
    assert row.startswith("| cuda | | not measured: device cuda was asked for, but this onnxruntime only has")
