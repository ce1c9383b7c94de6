"""Whether a graph keeps tensors in other files. Looks at bytes: opens nothing.

onnxruntime looks for external data relative to the working directory of the server when a graph is given as bytes, and the
manifest has no hash of it: such a graph could show any file that the server may read, as weights.
"""

from __future__ import annotations

from collections.abc import Iterator

from service.models.protobuf import read_fields, read_values

# Field numbers of onnx.proto.
_MODEL_GRAPH, _MODEL_FUNCTIONS, _MODEL_TRAINING = 7, 25, 20
_FUNCTION_NODE = 7
_TRAINING_GRAPHS = (1, 2)
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_NODE_ATTRIBUTE = 5
# A tensor and a list of them, a graph and a list of them.
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS = (5, 10), (6, 11)
_ATTRIBUTE_SPARSE = (22, 23)
_SPARSE_TENSORS = (1, 2)
_TENSOR_NAME, _TENSOR_EXTERNAL_DATA = 8, 13
MAX_DEPTH = 64
"""Graphs within graphs; onnxruntime itself stops far below."""


def find_external_data(graph: bytes) -> str | None:
    """The name of a tensor whose values are not in the file, "" for one without a name; None: all are.

    Raises ValueError where the bytes cannot be read as an ONNX file: onnxruntime must not be more lenient than this.
    """
    try:
        for tensor in _tensors_of_model(memoryview(graph)):
            if any(True for _ in read_fields(tensor, _TENSOR_EXTERNAL_DATA)):
                return next((bytes(name).decode("utf-8", "replace") for name in read_fields(tensor, _TENSOR_NAME)), "")
    except IndexError as exc:
        raise ValueError("a field ends beyond the file") from exc
    return None


def _tensors_of_model(model: memoryview) -> Iterator[memoryview]:
    for graph in read_fields(model, _MODEL_GRAPH):
        yield from _tensors_of_graph(graph, 0)
    for function in read_fields(model, _MODEL_FUNCTIONS):
        for node in read_fields(function, _FUNCTION_NODE):
            yield from _tensors_of_node(node, 0)
    for training in read_fields(model, _MODEL_TRAINING):
        for number in _TRAINING_GRAPHS:
            for graph in read_fields(training, number):
                yield from _tensors_of_graph(graph, 0)


def _tensors_of_graph(graph: memoryview, depth: int) -> Iterator[memoryview]:
    if depth > MAX_DEPTH:
        raise ValueError("graphs within graphs, too deep")
    for number, value in read_values(graph):
        if number == _GRAPH_INITIALIZER:
            yield value
        elif number == _GRAPH_SPARSE:
            yield from _tensors_of_sparse(value)
        elif number == _GRAPH_NODE:
            yield from _tensors_of_node(value, depth)


def _tensors_of_node(node: memoryview, depth: int) -> Iterator[memoryview]:
    for attribute in read_fields(node, _NODE_ATTRIBUTE):
        for number, value in read_values(attribute):
            if number in _ATTRIBUTE_TENSORS:
                yield value
            elif number in _ATTRIBUTE_SPARSE:
                yield from _tensors_of_sparse(value)
            elif number in _ATTRIBUTE_GRAPHS:
                yield from _tensors_of_graph(value, depth + 1)


def _tensors_of_sparse(sparse: memoryview) -> Iterator[memoryview]:
    return (value for number, value in read_values(sparse) if number in _SPARSE_TENSORS)
