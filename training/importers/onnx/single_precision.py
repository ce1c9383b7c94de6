"""A graph of float64 in float32: onnxruntime runs no recurrent node of float64, and what the service answers is float32."""

from __future__ import annotations

import numpy as np
from onnx import GraphProto, TensorProto, numpy_helper

from training.importers.onnx.recurrent_nodes import RECURRENT


def put_in_single_precision(graph: GraphProto) -> bool:
    """Change all of a graph that is float64, where it has a recurrent node and float64 inputs; returns whether it was."""
    doubles = [entry for entry in graph.input if entry.type.tensor_type.elem_type == TensorProto.DOUBLE]
    if not doubles or not any(node.op_type in RECURRENT for node in graph.node):
        return False
    _change(graph)
    return True


def _change(graph: GraphProto) -> None:
    for entry in [*graph.input, *graph.output, *graph.value_info]:
        if entry.type.tensor_type.elem_type == TensorProto.DOUBLE:
            entry.type.tensor_type.elem_type = TensorProto.FLOAT
    for tensor in graph.initializer:
        _change_tensor(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == TensorProto.DOUBLE:
                attribute.i = TensorProto.FLOAT
            if attribute.HasField("t"):
                _change_tensor(attribute.t)
            for body in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
                _change(body)


def _change_tensor(tensor: TensorProto) -> None:
    if tensor.data_type == TensorProto.DOUBLE:
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(numpy_helper.to_array(tensor)).astype(np.float32), name))
