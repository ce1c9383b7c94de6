"""Which operators a graph may have: those that answer the same twice, and end after a number of steps that is bounded.

A loop is bounded where its number of turns is a constant or a size of a tensor; one that turns as long as a value says so
would let one request keep a thread for good.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, numpy_helper

from training.importers.model import ModelImportError

RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")
MAX_TURNS = 65536
# A number made of sizes by these is no larger than their sum.
_BOUNDED = (
    "Gather",
    "Cast",
    "Squeeze",
    "Unsqueeze",
    "Identity",
    "Slice",
    "Min",
    "Sub",
    "Add",
    "Reshape",
    "ReduceMin",
    "ReduceMax",
)
_SIZES = ("Shape", "Size")


def require_operators(graph: GraphProto) -> None:
    """Raise ModelImportError that names the first operator that no served graph may have."""
    _require(graph, {})


def _require(graph: GraphProto, outside: Mapping[str, NodeProto | TensorProto]) -> None:
    known: dict[str, NodeProto | TensorProto] = {**outside, **{tensor.name: tensor for tensor in graph.initializer}}
    for node in graph.node:
        where = f"operator {node.op_type}{f' ({node.name})' if node.name else ''}"
        if node.op_type in RANDOM:
            raise ModelImportError(f"{where} draws random numbers: the same row would get another answer each time")
        if node.op_type == "Dropout" and len(node.input) > 2 and node.input[2] and _constant(node.input[2], known) != 0:
            raise ModelImportError(f"{where} may drop values as in training: export the network in eval mode")
        if node.op_type == "Loop" and not _is_bounded(node.input[0] if node.input else "", known):
            raise ModelImportError(
                f"{where} has no bound: a loop may turn {MAX_TURNS} times at most, or as often as a tensor's size; "
                "export a recurrent layer instead of a loop over values"
            )
        for body in _bodies(node):
            _require(body, known)
        known |= dict.fromkeys((name for name in node.output if name), node)


def _bodies(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _is_bounded(name: str, known: Mapping[str, NodeProto | TensorProto], depth: int = 0) -> bool:
    """Whether a number of turns is a constant within bounds, or made of sizes."""
    found = known.get(name)
    if found is None or depth > 64:
        return False
    value = _constant(name, known)
    if value is not None:
        return value <= MAX_TURNS
    if not isinstance(found, NodeProto):
        return False
    if found.op_type in _SIZES:
        return True
    return found.op_type in _BOUNDED and all(
        _is_bounded(part, known, depth + 1) or _constant(part, known) is not None
        for part in (found.input[:1] if found.op_type not in ("Min", "Sub", "Add") else found.input)
    )


def _constant(name: str, known: Mapping[str, NodeProto | TensorProto]) -> float | None:
    """The largest number of a small constant; None where it is none."""
    found = known.get(name)
    tensor = None
    if isinstance(found, TensorProto):
        tensor = found
    elif isinstance(found, NodeProto) and found.op_type == "Constant":
        for attribute in found.attribute:
            if attribute.name == "value":
                tensor = attribute.t
            elif attribute.name in ("value_int", "value_float"):
                return float(attribute.i if attribute.name == "value_int" else attribute.f)
            elif attribute.name == "value_ints" and attribute.ints:
                return float(max(attribute.ints))
    if tensor is None or tensor.data_type == TensorProto.STRING:
        return None
    array = np.asarray(numpy_helper.to_array(tensor))
    return float(array.max()) if array.size else None
