"""Which graphs have loops or branches."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from service.models.control_flow import is_bounded
from service.models.folder import ModelOptions
from service.models.loading import load_model
from tests.folders import write_forecast_folder, write_tensor_folder, write_text_folder
from tests.hostile_graphs import write_input_loop_folder


@pytest.mark.parametrize("write", [write_forecast_folder, write_text_folder, write_tensor_folder])
def test_the_usual_graphs_are_bounded(write: object, tmp_path: Path) -> None:
    assert callable(write)
    assert is_bounded((write(tmp_path) / "model.onnx").read_bytes())


def test_the_bundled_graphs_are_bounded() -> None:
    graphs = list(Path("models").glob("*/*/*.onnx"))
    assert graphs
    for graph in graphs:
        assert is_bounded(graph.read_bytes()), graph


def test_a_loop_an_unknown_operator_a_function_and_what_is_no_graph_are_not(tmp_path: Path) -> None:
    assert not is_bounded((write_input_loop_folder(tmp_path) / "model.onnx").read_bytes())
    unknown = helper.make_node("Identity", ["x"], ["y"], domain="example.com")
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([unknown], "g", tensors[:1], tensors[1:])
    assert not is_bounded(helper.make_model(graph).SerializeToString())
    function = helper.make_function(
        "example.com", "Identity", ["x"], ["y"], [helper.make_node("Identity", ["x"], ["y"])], [onnx.OperatorSetIdProto()]
    )
    assert not is_bounded(helper.make_model(graph, functions=[function]).SerializeToString())
    assert not is_bounded(b"no graph at all")


async def test_a_graph_with_a_loop_never_runs_on_the_event_loop(tmp_path: Path) -> None:
    bounded = await load_model(write_forecast_folder(tmp_path), ModelOptions("cpu", measure_s=0.05))
    looping = await load_model(write_input_loop_folder(tmp_path), ModelOptions("cpu", measure_s=0.05))
    assert (bounded.limits.max_inline_ms > 0, looping.limits.max_inline_ms) == (True, 0.0)
    await bounded.stop()
    await looping.stop()
