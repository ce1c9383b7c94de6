"""Collects the nodes of an ONNX graph under speaking names. Knows no layer and no network.

What a layer looks like in ONNX stands beside its torch code in `layers/`. Of the network side only this file imports onnx;
`export/int8_graph.py` rewrites finished graphs.

Written by hand because no exporter of torch writes a graph that takes rows of different length in one batch (measured by
`benchmarks/exporters.py`); these nodes match torch to 1e-6 at any batch size and length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

__all__ = ["IR_VERSION", "OPSET", "GraphBuilder", "ModelProto"]

# The newest versions that onnxruntime 1.20 and its CUDA kernels know in full; nothing here needs a newer one.
OPSET = 17
IR_VERSION = 8

_ONNX_TYPES = {"FP32": TensorProto.FLOAT, "INT64": TensorProto.INT64, "BOOL": TensorProto.BOOL}


class GraphBuilder:
    """Collects nodes, constants, inputs and outputs of one graph. A tensor is known by its name, a string.

    Inside `scope("lstm_0")` nodes are named `lstm_0/Transpose`, `lstm_0/Transpose_1`, ...; `named=True` gives a node the
    scope's own name. Equal constants are stored once, and equal nodes computed once.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._scopes: list[str] = []
        self._names: set[str] = set()
        self._nodes: list[onnx.NodeProto] = []
        self._outputs_of: dict[tuple[Any, ...], tuple[str, ...]] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._initializers: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def __repr__(self) -> str:
        return f"GraphBuilder({self.name!r}, {len(self._nodes)} nodes, {len(self._initializers)} constants)"

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Name what is added inside after `name`."""
        self._scopes.append(name)
        try:
            yield
        finally:
            self._scopes.pop()

    def input(self, name: str, datatype: str, shape: Sequence[int | str]) -> str:
        """Declare an input of the graph."""
        self._names.add(name)
        self._inputs.append(helper.make_tensor_value_info(name, _ONNX_TYPES[datatype], list(shape)))
        return name

    def reserve(self, names: Iterable[str]) -> None:
        """Keep names for outputs: no node is called so."""
        self._names.update(names)

    def output(self, value: str, name: str, datatype: str, shape: Sequence[int | str]) -> None:
        """Declare `value` an output of the graph, called `name`."""
        self._nodes.append(helper.make_node("Identity", [value], [name], name=self._unique(f"{name}/output")))
        self._names.add(name)
        self._outputs.append(helper.make_tensor_value_info(name, _ONNX_TYPES[datatype], list(shape)))

    def constant(self, values: NDArray[Any] | float | Sequence[float], name: str = "constant") -> str:
        """A constant; Python ints become INT64, floats FP32."""
        array = np.asarray(values)
        if array.dtype.kind in "iu" and not isinstance(values, np.ndarray):
            array = array.astype(np.int64)
        elif array.dtype.kind == "f":
            array = array.astype(np.float32)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            unique = self._unique(self._path(name))
            self._initializers.append(numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), unique))
            self._constants[key] = unique
        return self._constants[key]

    def add(self, operator: str, *inputs: str, named: bool = False, **attributes: Any) -> str:
        """Add a node with one output; returns the output's name."""
        return self.add_many(operator, *inputs, num_outputs=1, named=named, **attributes)[0]

    def add_many(self, operator: str, *inputs: str, num_outputs: int, named: bool = False, **attributes: Any) -> tuple[str, ...]:
        """Add a node with several outputs; an empty input name leaves an optional input out."""
        # The body of a loop is known by its name.
        described = {name: value.name if isinstance(value, onnx.GraphProto) else value for name, value in attributes.items()}
        key = (operator, inputs, num_outputs, repr(sorted(described.items())))
        if key not in self._outputs_of:
            name = self._unique("/".join(self._scopes) if named else self._path(operator))
            outputs = [name] if num_outputs == 1 else [f"{name}:{index}" for index in range(num_outputs)]
            self._nodes.append(helper.make_node(operator, list(inputs), outputs, name=name, **attributes))
            self._outputs_of[key] = tuple(outputs)
        return self._outputs_of[key]

    def build(self) -> ModelProto:
        """The checked model."""
        model = helper.make_model(
            self.build_body(), opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="sluice"
        )
        onnx.checker.check_model(model, full_check=True)
        return model

    def body(self, name: str) -> GraphBuilder:
        """The builder of a loop's body, whose nodes are named inside this scope; to be given as `body.build_body()`."""
        path = self._unique(self._path(name))
        body = GraphBuilder(path)
        body._scopes.append(path)
        return body

    def build_body(self) -> onnx.GraphProto:
        """The graph alone."""
        # A layer may name a constant and then not need it; onnxruntime warns of those.
        used = {name for node in self._nodes for name in node.input}
        constants = [constant for constant in self._initializers if constant.name in used]
        return helper.make_graph(self._nodes, self.name, self._inputs, self._outputs, constants)

    def _path(self, name: str) -> str:
        return "/".join([*self._scopes, name])

    def _unique(self, name: str) -> str:
        candidate, count = name, 0
        while candidate in self._names:
            count += 1
            candidate = f"{name}_{count}"
        self._names.add(candidate)
        return candidate
