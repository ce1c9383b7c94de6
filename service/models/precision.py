"""Which graph of a folder runs, and what precision a graph really has. Decides on values: opens nothing, reads no disk.

The manifest says what an int8 graph lost on the test part and what it may lose; the operator says which of the two is wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from service.errors import FolderError
from service.manifest import Graph, Precision
from service.models.protobuf import read_fields

RequestedPrecision = Literal["auto", "fp32", "int8"]

# ONNX's and onnxruntime's operators that compute with, or unpack, integers of 8 bits and less.
INT8_OPERATORS = frozenset(
    (
        b"ConvInteger",
        b"DequantizeLinear",
        b"DynamicQuantizeLSTM",
        b"DynamicQuantizeLinear",
        b"DynamicQuantizeMatMul",
        b"GatherBlockQuantized",
        b"MatMulInteger",
        b"MatMulIntegerToFloat",
        b"MatMulNBits",
        b"QAttention",
        b"QGemm",
        b"QLinearConv",
        b"QLinearMatMul",
        b"QuantizeLinear",
    )
)
# Field numbers of onnx.proto.
_MODEL_GRAPH, _GRAPH_NODE, _NODE_OPERATOR = 7, 1, 4


@dataclass(frozen=True)
class GraphChoice:
    """The graph that runs, by its place in the manifest; `note` says why it is another than could be expected."""

    index: int
    note: str | None = None


def choose_graph(graphs: Sequence[Graph], requested: RequestedPrecision) -> GraphChoice:
    """The first graph that fits: `auto` takes int8 only where every loss that the manifest gives is inside its bound.

    Raises FolderError where there is none.
    """
    first = {graph.precision: index for index, graph in reversed(list(enumerate(graphs)))}
    if requested in first:
        return GraphChoice(first[requested])
    if requested == "int8":
        return GraphChoice(first["fp32"], "int8 was asked for, the folder has no int8 graph")
    if requested == "auto" and "int8" in first:
        objection = _find_objection(graphs[first["int8"]])
        if objection is None:
            return GraphChoice(first["int8"])
        if "fp32" in first:
            return GraphChoice(first["fp32"], objection)
        raise FolderError(f"the folder has no fp32 graph, and {objection}; SLUICE_PRECISION=int8 serves it all the same")
    if "fp32" not in first:
        raise FolderError("the folder has no fp32 graph; SLUICE_PRECISION=int8 serves the int8 one")
    return GraphChoice(first["fp32"])


def precision_of(graph: bytes) -> Precision | None:
    """What precision an ONNX file has, by its operators; None: it is no ONNX file."""
    try:
        operators = {
            bytes(operator)
            for body in read_fields(memoryview(graph), _MODEL_GRAPH)
            for node in read_fields(body, _GRAPH_NODE)
            for operator in read_fields(node, _NODE_OPERATOR)
        }
    except (ValueError, IndexError):
        return None
    if not operators:
        return None
    return "int8" if operators & INT8_OPERATORS else "fp32"


def _find_objection(graph: Graph) -> str | None:
    if not graph.loss:
        return f"the manifest does not say what {graph.file} loses"
    worst = [loss for loss in graph.loss if not loss.is_within]
    if not worst:
        return None
    return f"{graph.file} loses more than its bound: " + ", ".join(str(loss) for loss in worst)
