"""ONNX graphs as people and exporters write them, made by hand with `onnx.helper`; every factory seeds its weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

FEATURES, HIDDEN, WORDS, CLASSES = 5, 8, 30, 3
Cell = Literal["LSTM", "GRU", "RNN"]
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
FLOAT, INT64, INT32 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32
Shape = Sequence[int | str | None]


def floats(*lengths: int, features: int = FEATURES) -> list[NDArray[Any]]:
    """Rows of so many steps."""
    random = np.random.default_rng(7)
    return [random.standard_normal((length, features)).astype(np.float32) for length in lengths]


def words(*lengths: int) -> list[NDArray[Any]]:
    """Rows of so many token ids."""
    random = np.random.default_rng(7)
    return [random.integers(0, WORDS, length) for length in lengths]


class Graph:
    """Nodes and constants of one graph."""

    def __init__(self, seed: int = 3) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []

    def input(self, name: str, elem_type: int, shape: Shape) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, elem_type, shape))
        return name

    def output(self, name: str, elem_type: int, shape: Shape) -> None:
        self.outputs.append(helper.make_tensor_value_info(name, elem_type, shape))

    def constant(self, values: Any, name: str = "") -> str:
        name = name or f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def weights(self, *shape: int, dtype: Any = np.float32) -> str:
        return self.constant((self.random.standard_normal(shape) * 0.4).astype(dtype))

    def add(self, operator: str, inputs: Sequence[str], outputs: Sequence[str] | str = "", **attributes: Any) -> str:
        names = [outputs or f"value_{len(self.nodes)}"] if isinstance(outputs, str) else list(outputs)
        self.nodes.append(helper.make_node(operator, list(inputs), names, **attributes))
        return names[0]

    def recurrent(
        self,
        cell: Cell,
        x: str,
        outputs: Sequence[str],
        *,
        features: int = FEATURES,
        lengths: str = "",
        state: Sequence[str] = (),
        directions: int = 1,
        **attributes: Any,
    ) -> None:
        rows = GATES[cell] * HIDDEN
        inputs = [
            x,
            self.weights(directions, rows, features),
            self.weights(directions, rows, HIDDEN),
            self.weights(directions, 2 * rows),
            lengths,
            *state,
        ]
        if directions == 2:
            attributes["direction"] = "bidirectional"
        self.add(cell, inputs, outputs, hidden_size=HIDDEN, **attributes)

    def model(self, opset: int = 17) -> ModelProto:
        graph = helper.make_graph(self.nodes, "net", self.inputs, self.outputs, self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8, producer_name="by-hand")


def with_lengths(cell: Cell = "LSTM", directions: int = 1) -> ModelProto:
    """Time first, as ONNX has it, with `sequence_lens`: a classifier of the last states."""
    g = Graph()
    x, lengths = g.input("x", FLOAT, ["time", "batch", FEATURES]), g.input("seq_lens", INT32, ["batch"])
    g.recurrent(cell, x, ["", "h"], lengths=lengths, directions=directions)
    last = g.add("Reshape", [g.add("Transpose", ["h"], perm=[1, 0, 2]), g.constant([0, -1])])
    g.add("MatMul", [last, g.weights(directions * HIDDEN, CLASSES)], "y")
    g.output("y", FLOAT, ["batch", CLASSES])
    return g.model()


def tagger(cell: Cell = "LSTM", directions: int = 1) -> ModelProto:
    """Rows first, an answer for every step, no lengths."""
    g = Graph()
    x = g.add("Transpose", [g.input("x", FLOAT, ["batch", "time", FEATURES])], perm=[1, 0, 2])
    g.recurrent(cell, x, ["steps"], directions=directions)
    steps = g.add("Reshape", [g.add("Transpose", ["steps"], perm=[2, 0, 1, 3]), g.constant([0, 0, -1])])
    g.add("MatMul", [steps, g.weights(directions * HIDDEN, CLASSES)], "y")
    g.output("y", FLOAT, ["batch", "time", CLASSES])
    return g.model()


def last_step(*, rows: int | str = "batch", steps: int | str = "time", opset: int = 17, numbers: int = CLASSES) -> ModelProto:
    """`out[:, -1]` as exporters write it."""
    g = Graph()
    x = g.add("Transpose", [g.input("x", FLOAT, [rows, steps, FEATURES])], perm=[1, 0, 2])
    g.recurrent("LSTM", x, ["steps"])
    squeezed = g.add("Squeeze", ["steps", g.constant([1])]) if opset >= 13 else g.add("Squeeze", ["steps"], axes=[1])
    out = g.add("Transpose", [squeezed], perm=[1, 0, 2])
    last = g.add("Gather", [out, g.constant(-1)], axis=1)
    g.add("MatMul", [last, g.weights(HIDDEN, numbers)], "y")
    g.output("y", FLOAT, [rows, numbers])
    return g.model(opset)


def reverse() -> ModelProto:
    """One direction, backwards, without lengths: it reads the padding first."""
    g = Graph()
    x = g.add("Transpose", [g.input("x", FLOAT, ["batch", "time", FEATURES])], perm=[1, 0, 2])
    flipped = g.add("Slice", [x, g.constant([-1]), g.constant([-(2**31)]), g.constant([0]), g.constant([-1])])
    g.recurrent("GRU", flipped, ["", "h"])
    g.add("Squeeze", ["h", g.constant([0])], "y")
    g.output("y", FLOAT, ["batch", HIDDEN])
    return g.model()


def frozen_rows(steps: int | str = "time") -> ModelProto:
    """States of zeros written into the graph for one row, as a trace of one row has them."""
    g = Graph()
    x = g.add("Transpose", [g.input("x", FLOAT, [1, steps, FEATURES])], perm=[1, 0, 2])
    zeros = g.constant(np.zeros((1, 1, HIDDEN), np.float32))
    g.recurrent("LSTM", x, ["steps", "h"], state=[zeros, zeros])
    g.add("Squeeze", ["h", g.constant([0])], "y")
    g.add("Transpose", [g.add("Squeeze", ["steps", g.constant([1])])], "all", perm=[1, 0, 2])
    g.output("y", FLOAT, [1, HIDDEN])
    g.output("all", FLOAT, [1, steps, HIDDEN])
    return g.model()


def stateful(cell: Cell = "LSTM", directions: int = 1) -> ModelProto:
    """States in and out, and an answer for every step."""
    g = Graph()
    x = g.add("Transpose", [g.input("x", FLOAT, ["batch", "time", FEATURES])], perm=[1, 0, 2])
    states = [g.input(name, FLOAT, [directions, "batch", HIDDEN]) for name in ("h0", "c0")[: 2 if cell == "LSTM" else 1]]
    g.recurrent(cell, x, ["steps", "hn", "cn"][: 1 + len(states)], state=states, directions=directions)
    g.add("Transpose", [g.add("Squeeze", ["steps", g.constant([1])])], "y", perm=[1, 0, 2])
    g.output("y", FLOAT, ["batch", "time", HIDDEN])
    for name in ("hn", "cn")[: len(states)]:
        g.output(name, FLOAT, [directions, "batch", HIDDEN])
    return g.model()


def tokens() -> ModelProto:
    """An embedding of token ids, a GRU, and probabilities; rows of int32."""
    g = Graph()
    ids = g.input("input_ids", INT32, ["batch", "time"])
    x = g.add("Transpose", [g.add("Gather", [g.weights(WORDS, FEATURES), ids])], perm=[1, 0, 2])
    g.recurrent("GRU", x, ["", "h"])
    logits = g.add("MatMul", [g.add("Squeeze", ["h", g.constant([0])]), g.weights(HIDDEN, 2)])
    g.add("Softmax", [logits], "probabilities", axis=1)
    g.output("probabilities", FLOAT, ["batch", 2])
    return g.model()


def doubles() -> ModelProto:
    """All in float64."""
    g = Graph()
    x = g.input("x", TensorProto.DOUBLE, ["batch", "time", FEATURES])
    steps = g.add("MatMul", [x, g.weights(FEATURES, CLASSES, dtype=np.float64)])
    g.add("Tanh", [steps], "y")
    g.output("y", TensorProto.DOUBLE, ["batch", "time", CLASSES])
    return g.model()


def two_inputs() -> ModelProto:
    """A sequence and facts that have no time."""
    g = Graph()
    x = g.add("Transpose", [g.input("x", FLOAT, ["batch", "time", FEATURES])], perm=[1, 0, 2])
    g.recurrent("RNN", x, ["", "h"])
    both = g.add("Concat", [g.add("Squeeze", ["h", g.constant([0])]), g.input("facts", FLOAT, ["batch", 2])], axis=1)
    g.add("MatMul", [both, g.weights(HIDDEN + 2, CLASSES)], "y")
    g.output("y", FLOAT, ["batch", CLASSES])
    return g.model()


def batch_statistics() -> ModelProto:
    """Every answer is compared with the mean of the batch."""
    g = Graph()
    x = g.input("x", FLOAT, ["batch", "time", FEATURES])
    mean = g.add("ReduceMean", [x], axes=[0], keepdims=1)
    g.add("Sub", [x, mean], "y")
    g.output("y", FLOAT, ["batch", "time", FEATURES])
    return g.model()


def batchwise() -> ModelProto:
    """A recurrent node with its rows first (`layout=1`), which onnxruntime does not run."""
    g = Graph()
    x = g.input("x", FLOAT, ["batch", "time", FEATURES])
    g.recurrent("GRU", x, ["steps", "h"], layout=1)
    g.add("Squeeze", ["h", g.constant([1])], "y")
    g.output("y", FLOAT, ["batch", HIDDEN])
    return g.model()


def counting_loop(turns: Any) -> ModelProto:
    """x doubled `turns` times: a constant, "size" for the steps of x, "value" for a number in x, or None for no bound."""
    g = Graph()
    x = g.input("x", FLOAT, ["batch", "time", FEATURES])
    if turns == "size":
        shape = g.add("Shape", [x])
        count = g.add("Squeeze", [g.add("Slice", [shape, g.constant([1]), g.constant([2])])])
    elif turns == "value":
        count = g.add("Cast", [g.add("ReduceMax", [x], keepdims=0)], to=INT64)
    else:
        count = "" if turns is None else g.constant(np.int64(turns))
    body = helper.make_graph(
        [
            helper.make_node("Mul", ["before", "half"], ["after"]),
            helper.make_node("Identity", ["go_on"], ["go_on_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", FLOAT, None),
        ],
        [helper.make_tensor_value_info("go_on_out", TensorProto.BOOL, []), helper.make_tensor_value_info("after", FLOAT, None)],
    )
    g.constant(np.float32(0.5), "half")
    g.add("Loop", [count, g.constant(np.bool_(True)), x], "y", body=body)
    g.output("y", FLOAT, ["batch", "time", FEATURES])
    return g.model()


def operator(name: str, *, domain: str = "", **attributes: Any) -> ModelProto:
    """One operator on x."""
    g = Graph()
    g.add(name, [g.input("x", FLOAT, ["batch", "time", FEATURES])], "y", domain=domain, **attributes)
    g.output("y", FLOAT, ["batch", "time", FEATURES])
    model = g.model()
    if domain:
        model.opset_import.append(helper.make_opsetid(domain, 1))
    return model


def save(model: ModelProto, path: Any) -> Any:
    """Write a model without checks, and return the path."""
    path.write_bytes(model.SerializeToString())
    return path
