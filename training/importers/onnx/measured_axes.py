"""Which axes of a graph's values are its rows and its steps: by running it at three sizes, for inference of shapes loses them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto, helper

# Rows and steps; far enough from small sizes of layers not to be taken for them by chance in all three.
SIZES = ((2, 23), (2, 29), (3, 23))
AXES = {"batch": tuple(rows for rows, _ in SIZES), "time": tuple(steps for _, steps in SIZES)}
MAX_NODES = 5000


def measure_axes(model: ModelProto) -> dict[str, tuple[tuple[str, ...], np.dtype[Any]]]:
    """By value "batch", "time" or "" for each axis, and the value's type.

    The model's inputs have the axes "batch" and "time". Empty where it does not run at these sizes.
    """
    if len(model.graph.node) > MAX_NODES:
        return {}
    probe = ModelProto()
    probe.CopyFrom(model)
    known = {output.name for output in probe.graph.output}
    names = [name for node in probe.graph.node for name in node.output if name and name not in known]
    probe.graph.output.extend(ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    # Fused nodes would take values away.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
        wanted = [output.name for output in session.get_outputs()]
        runs = [session.run(None, _zeros(model, rows, steps)) for rows, steps in SIZES]
    except Exception:  # onnxruntime's exceptions have no common base; a graph may not take such rows
        return {}
    return {
        name: (_axes_of([array.shape for array in arrays]), arrays[0].dtype)
        for name, arrays in zip(wanted, zip(*runs, strict=True), strict=True)
        if all(isinstance(array, np.ndarray) and array.ndim == arrays[0].ndim for array in arrays)
    }


def _axes_of(shapes: list[tuple[int, ...]]) -> tuple[str, ...]:
    found = {sizes: axis for axis, sizes in AXES.items()}
    return tuple(found.get(sizes, "") for sizes in zip(*shapes, strict=True))


def _zeros(model: ModelProto, rows: int, steps: int) -> Mapping[str, NDArray[Any]]:
    sizes = {"batch": rows, "time": steps}
    constants = {tensor.name for tensor in model.graph.initializer}
    feed = {}
    for entry in model.graph.input:
        if entry.name in constants:
            continue
        tensor = entry.type.tensor_type
        shape = [sizes.get(dim.dim_param, dim.dim_value or 1) for dim in tensor.shape.dim]
        # Lengths that are none would end the run.
        fill = steps if shape == [rows] and tensor.elem_type in (6, 7) else 0
        feed[entry.name] = np.full(shape, fill, helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    return feed
