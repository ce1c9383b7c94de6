"""A graph for one row, without a batch axis that could be open, as one for batches: a loop over the rows, each cut to its length.

For modules that take one row at a time, as those with `torch.zeros(1, 1, 8)` for a state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.compose import add_prefix_graph
from onnx.inliner import inline_local_functions

from training.importers.torch.translate import LENGTHS, GraphTensor

PREFIX = "row/"
_TYPES = {"FP32": TensorProto.FLOAT, "INT64": TensorProto.INT64, "BOOL": TensorProto.BOOL}


def loop_over_rows(model: ModelProto, inputs: Sequence[GraphTensor], outputs: Sequence[GraphTensor]) -> ModelProto:
    """A graph for (B, ...) of one whose inputs are (1, ...) and whose outputs have no axis for the row.

    An axis "time" may differ between the rows: a row goes in as long as `lengths` says, and comes out padded with zeros.
    """
    model = inline_local_functions(model)
    body = add_prefix_graph(model.graph, PREFIX)
    timed = next(((entry.name, entry.shape.index("time")) for entry in inputs if "time" in entry.shape), None)
    before = [_node("Shape", [inputs[0].name], "rows", start=0, end=1), _node("Squeeze", ["rows", "zero"], "num_rows")]
    first = [_node("Unsqueeze", ["row_number", "zero"], "row")]
    if timed is not None:
        before.append(_node("Shape", [timed[0]], "steps", start=timed[1], end=timed[1] + 1))
        first.append(_node("Gather", [LENGTHS, "row"], "length", axis=0))
        first += [_node("Sub", ["steps", "length"], "behind"), _node("Concat", ["zero", "behind"], "pads", axis=0)]
    constants = {"zero": [0]}
    for entry in inputs:
        if entry.name == LENGTHS:
            continue
        own = PREFIX + entry.name
        if "time" in entry.shape:
            constants[f"axis of {entry.name}"] = [entry.shape.index("time")]
            first.append(_node("Gather", [entry.name, "row"], f"{own}/padded", axis=0))
            first.append(_node("Slice", [f"{own}/padded", "zero", "length", f"axis of {entry.name}"], own))
        else:
            first.append(_node("Gather", [entry.name, "row"], own, axis=0))
    last = [_node("Identity", ["goes_on"], "goes_on_next")]
    for entry in outputs:
        own = PREFIX + entry.name
        if "time" in entry.shape:
            constants[f"axis of {entry.name}"] = [entry.shape.index("time") - 1]
            last.append(_node("Pad", [own, "pads", "", f"axis of {entry.name}"], f"{own}/scanned"))
        else:
            last.append(_node("Identity", [own], f"{own}/scanned"))
    loop = helper.make_graph(
        [*first, *body.node, *last],
        "one_row",
        [_value("row_number", "INT64", []), _value("goes_on", "BOOL", [])],
        [
            _value("goes_on_next", "BOOL", []),
            *(_value(f"{PREFIX}{entry.name}/scanned", entry.datatype, entry.shape[1:]) for entry in outputs),
        ],
        list(body.initializer),
    )
    graph = helper.make_graph(
        [*before, helper.make_node("Loop", ["num_rows", ""], [entry.name for entry in outputs], name="rows", body=loop)],
        "torch",
        [_value(entry.name, entry.datatype, entry.shape) for entry in inputs],
        [_value(entry.name, entry.datatype, entry.shape) for entry in outputs],
        [numpy_helper.from_array(np.array(values, np.int64), name) for name, values in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version, producer_name="sluice")
    onnx.checker.check_model(made)
    return made


def _node(operator: str, inputs: list[str], output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(operator, inputs, [output], name=f"rows/{output}", **attributes)


def _value(name: str, datatype: str, shape: Sequence[int | str]) -> Any:
    return helper.make_tensor_value_info(name, _TYPES[datatype], list(shape))
