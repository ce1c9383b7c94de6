"""Which graph runs, by requested and promise; and what precision a file has, whatever the manifest says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from service.errors import FolderError
from service.manifest import Graph
from service.models.precision import INT8_OPERATORS, RequestedPrecision, choose_graph, precision_of


def graph(precision: str, *losses: tuple[float, float]) -> Graph:
    entries = [{"measure": "accuracy", "kind": "absolute", "value": value, "bound": bound} for value, bound in losses]
    return Graph.model_validate(
        {"file": f"{precision}.onnx", "sha256": "0" * 64, "precision": precision, "opset": 17, "loss": entries}
    )


FP32 = graph("fp32")
GOOD, BAD = graph("int8", (0.001, 0.005), (-0.01, 0.005)), graph("int8", (0.001, 0.005), (0.02, 0.005))
WITHOUT_LOSS = graph("int8")


@pytest.mark.parametrize(
    ("graphs", "requested", "chosen", "note"),
    [
        ([FP32], "auto", FP32, None),
        ([FP32], "fp32", FP32, None),
        ([FP32], "int8", FP32, "int8 was asked for, the folder has no int8 graph"),
        ([FP32, GOOD], "auto", GOOD, None),
        ([FP32, GOOD], "fp32", FP32, None),
        ([FP32, GOOD], "int8", GOOD, None),
        ([FP32, BAD], "auto", FP32, "int8.onnx loses more than its bound: accuracy 2 points (bound 0.5 points)"),
        ([FP32, BAD], "int8", BAD, None),
        ([FP32, WITHOUT_LOSS], "auto", FP32, "the manifest does not say what int8.onnx loses"),
        ([FP32, BAD, GOOD], "int8", BAD, None),
        ([GOOD], "auto", GOOD, None),
    ],
    ids=str,
)
def test_the_graph_is_chosen_by_request_and_loss(
    graphs: list[Graph], requested: RequestedPrecision, chosen: Graph, note: str | None
) -> None:
    choice = choose_graph(graphs, requested)
    assert graphs[choice.index] is chosen
    assert choice.note == note


@pytest.mark.parametrize(("graphs", "requested"), [([GOOD], "fp32"), ([BAD], "auto")], ids=str)
def test_a_folder_without_a_graph_that_fits_is_refused(graphs: list[Graph], requested: RequestedPrecision) -> None:
    with pytest.raises(FolderError, match=r"no fp32 graph.*SLUICE_PRECISION=int8"):
        choose_graph(graphs, requested)


def model(operator: str) -> bytes:
    node = helper.make_node(operator, ["x", "w"], ["y"], domain="some.domain")
    weights = numpy_helper.from_array(np.zeros((300, 300), np.float32), "w")
    value: Any = helper.make_tensor_value_info
    graph = helper.make_graph([node], "g", [value("x", TensorProto.FLOAT, [1])], [value("y", TensorProto.FLOAT, [1])], [weights])
    return bytes(helper.make_model(graph).SerializeToString())


@pytest.mark.parametrize("operator", ["LSTM", "MatMul", "GRU", "DynamicQuantize"])
def test_a_graph_of_float_operators_is_fp32(operator: str) -> None:
    assert precision_of(model(operator)) == "fp32"


@pytest.mark.parametrize("operator", sorted(name.decode() for name in INT8_OPERATORS))
def test_a_graph_with_an_integer_operator_is_int8(operator: str) -> None:
    assert precision_of(model(operator)) == "int8"


def test_a_name_in_the_weights_makes_no_operator() -> None:
    assert precision_of(model("LSTM").replace(b"some.domain", b"MatMulInteg")) == "fp32"


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\xff" * 40, model("LSTM")[:-7], model("LSTM")[:100]], ids=range(5))
def test_what_is_no_onnx_file_has_no_precision(content: bytes) -> None:
    assert precision_of(content) is None
