"""Every graph of a folder is measured with rows that it accepts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.precision import measure, rows_of
from service.runtime.base import Runtime
from service.runtime.onnx_runtime import open_runtime
from tests.folders import add_int8_graph, write_forecast_folder, write_tensor_folder, write_text_folder


@pytest.mark.parametrize("write", [write_forecast_folder, write_text_folder, write_tensor_folder])
def test_rows_of_any_model_run(write: Callable[[Path], Path], tmp_path: Path) -> None:
    runtime = open_runtime(write(tmp_path) / "model.onnx", "cpu")
    rows = rows_of(runtime, 7, 3)
    if "tokens" in rows:
        rows["tokens"] %= 12  # the toy vocabulary has no more words
    assert all(len(values) == 3 for values in runtime.run(rows).values())


def test_every_graph_has_a_rate(tmp_path: Path) -> None:
    folder = write_forecast_folder(tmp_path)
    add_int8_graph(folder)
    runtimes: dict[str, Runtime] = {
        name: open_runtime(folder / file, "cpu") for name, file in (("fp32", "model.onnx"), ("int8", "model.int8.onnx"))
    }
    rates = measure(runtimes, rows_of(runtimes["fp32"], 9, 4), duration_s=0.0)
    assert list(rates) == ["fp32", "int8"]
    assert min(rates.values()) > 0
