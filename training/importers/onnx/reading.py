"""An ONNX file as a checked model: within bounds, with all its values inside, of operators that end. Runs nothing.

Everything in the file is a claim until it was compared with the bytes that are there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, inliner

from training.importers.model import ModelImportError
from training.importers.onnx.batchwise import put_steps_first
from training.importers.onnx.operators import require_operators
from training.importers.onnx.single_precision import put_in_single_precision

MAX_FILE_BYTES = 1 << 30
MAX_NODES = 200_000
"""Nodes of a graph with its functions written out; the largest unrolled LSTM in public code has some 40,000."""
MIN_OPSET = 7
"""Before it, recurrent operators had other inputs, and onnxruntime runs them by chance only."""
IN_SINGLE = "the file computes in float64, in which onnxruntime runs no recurrent node: published in float32"
DOMAINS = ("", "ai.onnx")

TYPES: Mapping[int, np.dtype[Any]] = {
    TensorProto.FLOAT: np.dtype(np.float32),
    TensorProto.DOUBLE: np.dtype(np.float64),
    TensorProto.INT64: np.dtype(np.int64),
    TensorProto.INT32: np.dtype(np.int32),
    TensorProto.INT16: np.dtype(np.int16),
    TensorProto.INT8: np.dtype(np.int8),
    TensorProto.UINT8: np.dtype(np.uint8),
    TensorProto.BOOL: np.dtype(np.bool_),
}
"""Types of a graph's inputs and outputs."""

Dim = int | str | None
"""A size, the name of an open axis, or an open axis without a name."""


@dataclass(frozen=True)
class Port:
    """An input or output of the file's graph."""

    name: str
    dtype: np.dtype[Any]
    dims: tuple[Dim, ...]

    def __str__(self) -> str:
        return f"[{', '.join('?' if dim is None else str(dim) for dim in self.dims)}]"


@dataclass(frozen=True)
class Source:
    """What a file holds. `model` has its functions written out and no claims about shapes within the graph."""

    path: Path
    model: ModelProto
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    opset: int
    producer: str
    metadata: Mapping[str, str]
    notes: tuple[str, ...] = ()


def read_onnx(path: Path) -> Source:
    """Read and check a file. Raises ModelImportError that names what is refused: a tensor, an operator, a domain, a type."""
    model = _parse(path)
    _require_initializers(model)
    opset = _require_opset(model)
    model = _without_functions(model)
    nodes = sum(1 for graph in graphs_of(model.graph) for _ in graph.node)
    if nodes > MAX_NODES:
        raise ModelImportError(f"{path}: {nodes} nodes; at most {MAX_NODES} are read")
    require_operators(model.graph)
    is_changed = put_in_single_precision(model.graph)
    for graph in graphs_of(model.graph):
        put_steps_first(graph)
        # They were written for the sizes that the exporter saw; onnxruntime infers its own.
        del graph.value_info[:]
    constants = {tensor.name for tensor in model.graph.initializer} | {
        tensor.values.name for tensor in model.graph.sparse_initializer
    }
    inputs = tuple(_port(entry, "input") for entry in model.graph.input if entry.name not in constants)
    outputs = tuple(_port(entry, "output") for entry in model.graph.output)
    kept = [entry for entry in model.graph.input if entry.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    if not inputs or not outputs:
        raise ModelImportError(f"{path}: the graph has {len(inputs)} inputs and {len(outputs)} outputs, it needs one of each")
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as exc:
        raise ModelImportError(f"{path}: it is no valid ONNX graph: {_first_line(exc)}") from exc
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    producer = f"{model.producer_name} {model.producer_version}".strip()
    return Source(path, model, inputs, outputs, opset, producer, metadata, (IN_SINGLE,) if is_changed else ())


def graphs_of(graph: GraphProto) -> Iterator[GraphProto]:
    """A graph and all graphs within it. Protobuf itself reads no more than 100 levels."""
    yield graph
    for node in graph.node:
        yield from _graphs_of_node(node)


def _graphs_of_node(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH or attribute.HasField("g"):
            yield from graphs_of(attribute.g)
        for part in attribute.graphs:
            yield from graphs_of(part)


def _parse(path: Path) -> ModelProto:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ModelImportError(f"{path}: {size >> 20} MB; at most {MAX_FILE_BYTES >> 20} MB are read")
        content = path.read_bytes()
    except OSError as exc:
        raise ModelImportError(f"{path}: {exc.strerror}") from exc
    model = ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as exc:
        raise ModelImportError(f"{path}: it is not an ONNX file, is cut off, or is nested too deep: {_first_line(exc)}") from exc
    if not model.HasField("graph") or not model.opset_import:
        raise ModelImportError(f"{path}: it is not an ONNX file: it holds no graph")
    return model


# ------------------------------------------------------------------------------------------------------------ constants


def _tensors_of(model: ModelProto) -> Iterator[TensorProto]:
    yield from (tensor for graph in graphs_of(model.graph) for tensor in _tensors_of_graph(graph))
    for function in model.functions:
        for node in function.node:
            yield from _tensors_of_node(node)
            for graph in _graphs_of_node(node):
                yield from _tensors_of_graph(graph)


def _tensors_of_graph(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _tensors_of_node(node)


def _tensors_of_node(node: NodeProto) -> Iterator[TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for sparse in [attribute.sparse_tensor, *attribute.sparse_tensors]:
            yield from (sparse.values, sparse.indices)


def _require_initializers(model: ModelProto) -> None:
    """Refuse values in other files, values that are fewer than the shape claims, and numbers that are not finite."""
    for tensor in _tensors_of(model):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            raise ModelImportError(
                f'tensor "{tensor.name}" lies in another file; external data is not read: write one file with '
                "onnx.save(onnx.load(path), path, save_as_external_data=False)"
            )
        if tensor.data_type == TensorProto.UNDEFINED and not tensor.dims:
            continue
        if any(size < 0 for size in tensor.dims):
            raise ModelImportError(f'tensor "{tensor.name}" has shape {list(tensor.dims)}')
        count = math.prod(tensor.dims)
        found = _count(tensor)
        if found is not None and found != count:
            raise ModelImportError(
                f'tensor "{tensor.name}" is {list(tensor.dims)}, which are {count} values; the file holds {found}'
            )
        if tensor.data_type in (TensorProto.FLOAT, TensorProto.DOUBLE) and np.isnan(onnx.numpy_helper.to_array(tensor)).any():
            raise ModelImportError(f'tensor "{tensor.name}" holds numbers that are not a number (NaN)')


def _count(tensor: TensorProto) -> int | None:
    """How many values the file holds of a tensor; None where a count says nothing, as of four-bit numbers."""
    if tensor.data_type == TensorProto.STRING:
        return len(tensor.string_data)
    try:
        size = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        field = helper.tensor_dtype_to_field(tensor.data_type)
    except (KeyError, TypeError, ValueError) as exc:
        raise ModelImportError(f'tensor "{tensor.name}" is of the unknown type {tensor.data_type}') from exc
    if "4" in TensorProto.DataType.Name(tensor.data_type).removesuffix("64") or "2" in _four_bits(tensor.data_type):
        return None
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data) // size if len(tensor.raw_data) % size == 0 else -1
    count = len(getattr(tensor, field))
    return count // 2 if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128) else count


def _four_bits(data_type: int) -> str:
    """The name of a type whose values share bytes."""
    name = TensorProto.DataType.Name(data_type)
    return name if name in ("INT2", "UINT2") else ""


# ------------------------------------------------------------------------------------------------------------ operators


def _require_opset(model: ModelProto) -> int:
    own = {function.domain for function in model.functions}
    for entry in model.opset_import:
        if entry.domain not in (*DOMAINS, *own) and _uses(model, entry.domain):
            raise ModelImportError(
                f'operator {_uses(model, entry.domain)} of the domain "{entry.domain}" is none of ONNX\'s own; '
                "export without custom operators"
            )
    for domain in {node.domain for node in _all_nodes(model)} - {*DOMAINS, *own}:
        raise ModelImportError(f'operator {_uses(model, domain)} of the domain "{domain}" is none of ONNX\'s own')
    versions = [entry.version for entry in model.opset_import if entry.domain in DOMAINS]
    newest = onnx.defs.onnx_opset_version()
    if not versions or not MIN_OPSET <= max(versions) <= newest:
        found = max(versions, default=None)
        raise ModelImportError(f"opset {found}; {MIN_OPSET} to {newest} are read: export with another opset_version")
    return int(max(versions))


def _all_nodes(model: ModelProto) -> Iterator[NodeProto]:
    for graph in graphs_of(model.graph):
        yield from graph.node
    for function in model.functions:
        for node in function.node:
            yield node
            for graph in _graphs_of_node(node):
                yield from graph.node


def _uses(model: ModelProto, domain: str) -> str:
    return next((node.op_type for node in _all_nodes(model) if node.domain == domain), "")


def _without_functions(model: ModelProto) -> ModelProto:
    """With the model's own functions written out, of which there are few enough and none that calls itself."""
    if not model.functions:
        return model
    functions = {(function.domain, function.name): function for function in model.functions}
    sizes: dict[tuple[str, str], int] = {}
    open_calls: set[tuple[str, str]] = set()

    def size_of(key: tuple[str, str]) -> int:
        if key in open_calls:
            raise ModelImportError(f'function "{key[1]}" calls itself')
        if key not in sizes:
            open_calls.add(key)
            sizes[key] = sum(count(node) for node in functions[key].node)
            open_calls.remove(key)
        return sizes[key]

    def count(node: NodeProto) -> int:
        inner = sum(count(part) for graph in _graphs_of_node(node) for part in graph.node)
        key = (node.domain, node.op_type)
        return 1 + inner + (size_of(key) if key in functions else 0)

    try:
        total = sum(count(node) for node in model.graph.node)
    except RecursionError as exc:
        raise ModelImportError("functions within functions, too deep") from exc
    if total > MAX_NODES:
        raise ModelImportError(f"{total} nodes with its functions written out; at most {MAX_NODES} are read")
    return inliner.inline_local_functions(model)


# ------------------------------------------------------------------------------------------------------------ ports


def _port(entry: onnx.ValueInfoProto, kind: str) -> Port:
    if entry.type.WhichOneof("value") != "tensor_type":
        raise ModelImportError(
            f'{kind} "{entry.name}" is a {entry.type.WhichOneof("value") or "value without a type"}, not a tensor'
        )
    tensor = entry.type.tensor_type
    if tensor.elem_type not in TYPES:
        name = (
            TensorProto.DataType.Name(tensor.elem_type) if tensor.elem_type in TensorProto.DataType.values() else tensor.elem_type
        )
        known = ", ".join(TensorProto.DataType.Name(number) for number in TYPES)
        raise ModelImportError(f'{kind} "{entry.name}" is {name}; tensors of {known} can be served')
    if not tensor.HasField("shape"):
        if kind == "output":
            return Port(entry.name, TYPES[tensor.elem_type], ())
        raise ModelImportError(f'{kind} "{entry.name}" has no shape: not even how many axes it has')
    dims: list[Dim] = []
    for dim in tensor.shape.dim:
        if dim.HasField("dim_value"):
            # Older exporters write -1 or 0 for an open axis.
            dims.append(dim.dim_value if dim.dim_value > 0 else None)
        else:
            dims.append(dim.dim_param or None)
    return Port(entry.name, TYPES[tensor.elem_type], tuple(dims))


def _first_line(exc: BaseException) -> str:
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0][:300]
