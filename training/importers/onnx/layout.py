"""What a graph's inputs are for and where it has its rows: names, roles, axes. Runs nothing.

A file says the types and, in part, the sizes; which axis is the rows is a guess here, in the order of likelihood, and
`trial.py` holds each guess against what the graph computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from onnx import AttributeProto, GraphProto, NodeProto

from training.importers.model import ModelImportError
from training.importers.onnx.reading import Dim, Port, Source
from training.importers.onnx.recurrent_nodes import INITIAL, RECURRENT, SEQUENCE_LENS, input_of
from training.importers.torch.translate import LENGTHS

Role = Literal["row", "lengths", "state"]
ORDER: tuple[Role, ...] = ("row", "lengths", "state")
# What moves values about and changes none.
_GLUE = ("Transpose", "Slice", "Squeeze", "Unsqueeze", "Gather", "Cast", "Identity", "Concat", "Split", "Reshape")


@dataclass(frozen=True)
class FileInput:
    """An input of the file: what it is for, and which of its axes has the rows."""

    port: Port
    role: Role
    batch_axis: int = 0

    @property
    def name(self) -> str:
        """As the served graph calls it."""
        return LENGTHS if self.role == "lengths" else self.port.name

    @property
    def row_dims(self) -> tuple[Dim, ...]:
        """The axes of one row."""
        return tuple(dim for axis, dim in enumerate(self.port.dims) if axis != self.batch_axis)


@dataclass(frozen=True)
class StatePair:
    """An input of state, and the output that hands it on."""

    input: str
    output: str


@dataclass(frozen=True)
class Roles:
    """Which inputs are rows, which one holds their lengths, which carry state."""

    rows: tuple[Port, ...]
    lengths: Port | None
    states: tuple[StatePair, ...]


def find_roles(source: Source, lengths: str | None, state: Mapping[str, str] | None) -> Roles:
    """What every input is for: as given, else read from the recurrent nodes. Raises ModelImportError for a name that is none."""
    inputs = {port.name: port for port in source.inputs}
    outputs = {port.name: port for port in source.outputs}
    if lengths is not None and lengths not in inputs:
        raise ModelImportError(f'--lengths-input: no input is called "{lengths}"; the inputs are {list(inputs)}')
    for name, output in (state or {}).items():
        if name not in inputs:
            raise ModelImportError(f'--state: no input is called "{name}"; the inputs are {list(inputs)}')
        if output not in outputs:
            raise ModelImportError(f'--state: no output is called "{output}"; the outputs are {list(outputs)}')
    trace = _Trace(source.model.graph)
    of_lengths = inputs[lengths] if lengths is not None else _find_lengths(source, trace)
    if of_lengths is not None and (len(of_lengths.dims) != 1 or of_lengths.dtype.kind not in "iu"):
        raise ModelImportError(
            f'input "{of_lengths.name}" is {of_lengths.dtype} {of_lengths}: lengths are integers, one for a row'
        )
    pairs = _find_states(source, trace) if state is None else tuple(StatePair(name, output) for name, output in state.items())
    taken = {pair.input for pair in pairs} | ({of_lengths.name} if of_lengths is not None else set())
    rows = tuple(port for port in source.inputs if port.name not in taken)
    for port in rows:
        if port.name == LENGTHS:
            raise ModelImportError(f'the input "{LENGTHS}" is read by no recurrent node: name it by --lengths-input {LENGTHS}')
    if not rows:
        raise ModelImportError(f"all inputs are lengths or state: {list(inputs)}")
    return Roles(rows, of_lengths, pairs)


def guess_layouts(source: Source, roles: Roles, *, time_first: bool) -> Iterator[tuple[FileInput, ...]]:
    """The inputs with the axis of their rows, the likeliest guess first."""
    is_hinted = any(_is_time_first(port.dims) for port in roles.rows)
    for is_time_first in [True] if time_first else [True, False] if is_hinted else [False, True]:
        sequences = [port for port in roles.rows if is_time_first and _may_be_time_first(port)]
        if is_time_first and not sequences:
            continue
        inputs = [_as_input(port, roles, port in sequences) for port in source.inputs]
        yield tuple(sorted(inputs, key=lambda entry: ORDER.index(entry.role)))


def _as_input(port: Port, roles: Roles, is_time_first: bool) -> FileInput:
    if roles.lengths is not None and port.name == roles.lengths.name:
        return FileInput(port, "lengths")
    if port.name in {pair.input for pair in roles.states}:
        return FileInput(port, "state", _state_batch_axis(port))
    if not port.dims:
        raise ModelImportError(f'input "{port.name}" is a single number, which all rows of a batch would share')
    return FileInput(port, "row", 1 if is_time_first else 0)


def _state_batch_axis(port: Port) -> int:
    """(layers, batch, units) as ONNX's and torch's layers have it, (batch, units) of a cell; a name decides first."""
    for axis, dim in enumerate(port.dims):
        if isinstance(dim, str) and _is_batch(dim):
            return axis
    return 1 if len(port.dims) == 3 else 0


def _may_be_time_first(port: Port) -> bool:
    return len(port.dims) >= 2 and not (isinstance(port.dims[0], str) and _is_batch(port.dims[0]))


def _is_time_first(dims: Sequence[Dim]) -> bool:
    if len(dims) < 2:
        return False
    first, second = dims[0], dims[1]
    return (isinstance(second, str) and _is_batch(second)) or (isinstance(first, str) and is_time(first))


def _is_batch(name: str) -> bool:
    return "batch" in name.lower() or name in ("N", "B", "b", "n", "bs")


def is_time(name: str) -> bool:
    """Whether an axis is called as the steps are."""
    return any(word in name.lower() for word in ("time", "seq", "step", "len")) or name in ("T", "t", "L")


# ------------------------------------------------------------------------------------------------- what feeds which node


class _Trace:
    """Who writes and who reads a value, in the outermost graph."""

    def __init__(self, graph: GraphProto) -> None:
        self.nodes = list(graph.node)
        self.writer: dict[str, NodeProto] = {name: node for node in self.nodes for name in node.output if name}
        self.readers: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def sources(self, name: str) -> set[str]:
        """The values that `name` is made of by moving values about."""
        found, waiting = set(), [name]
        while waiting:
            value = waiting.pop()
            if value in found:
                continue
            found.add(value)
            node = self.writer.get(value)
            if node is not None and node.op_type in _GLUE:
                waiting += list(node.input) if node.op_type == "Concat" else list(node.input[:1])
        return found

    def results(self, name: str) -> set[str]:
        """The values that are made of `name` by moving values about."""
        found, waiting = set(), [name]
        while waiting:
            value = waiting.pop()
            if value in found:
                continue
            found.add(value)
            for node in self.readers.get(value, []):
                if node.op_type in _GLUE and (value == node.input[0] or node.op_type == "Concat"):
                    waiting += [output for output in node.output if output]
        return found


def recurrent_nodes(graph: GraphProto) -> list[NodeProto]:
    """The recurrent nodes of the outermost graph."""
    return [node for node in graph.node if node.op_type in RECURRENT]


def _find_lengths(source: Source, trace: _Trace) -> Port | None:
    feeds = [input_of(node, SEQUENCE_LENS) for node in recurrent_nodes(source.model.graph)]
    values = {value for name in feeds if name for value in trace.sources(name)}
    found = [port for port in source.inputs if port.name in values]
    return found[0] if len(found) == 1 else None


def _find_states(source: Source, trace: _Trace) -> tuple[StatePair, ...]:
    """Inputs that a recurrent node begins with, and the outputs that its last states become."""
    inputs = {port.name: port for port in source.inputs}
    outputs = {port.name: port for port in source.outputs}
    found: dict[str, dict[str, None]] = {}
    for node in recurrent_nodes(source.model.graph):
        for number, place in enumerate(INITIAL, 1):
            name = input_of(node, place)
            if not name or len(node.output) <= number or not node.output[number]:
                continue
            ends = [outputs[value] for value in trace.results(node.output[number]) if value in outputs]
            for value in trace.sources(name):
                if value in inputs:
                    pairs = found.setdefault(value, {})
                    pairs.update((end.name, None) for end in ends if _are_alike(inputs[value].dims, end.dims))
    for name, pairs in found.items():
        if len(pairs) > 1:
            raise ModelImportError(f'input "{name}" is a state that several outputs may hand on: say --state {name}=OUTPUT')
    return tuple(StatePair(name, next(iter(pairs))) for name, pairs in found.items() if pairs)


def _are_alike(first: Sequence[Dim], second: Sequence[Dim]) -> bool:
    if not second:
        return True  # the file does not say
    return len(first) == len(second) and all(
        one == other or not (isinstance(one, int) and isinstance(other, int)) for one, other in zip(first, second, strict=True)
    )


def count_words(source: Source, name: str) -> int | None:
    """How many rows the table has that an input of token ids looks up; None where there is no such table."""
    trace = _Trace(source.model.graph)
    tables = {tensor.name: tensor for tensor in source.model.graph.initializer}
    for value in trace.results(name):
        for node in trace.readers.get(value, []):
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
            if node.op_type == "Gather" and input_of(node, 1) == value and axis == 0 and node.input[0] in tables:
                dims = tables[node.input[0]].dims
                return int(dims[0]) if dims else None
    return None


def gives_probabilities(source: Source) -> bool | None:
    """Whether the first output is that of a softmax or a sigmoid; None where the last node does not tell."""
    trace = _Trace(source.model.graph)
    name = source.outputs[0].name
    kinds = {trace.writer[value].op_type for value in trace.sources(name) if value in trace.writer} - set(_GLUE)
    if kinds & {"Softmax", "Sigmoid"}:
        return True
    return False if kinds & {"Gemm", "MatMul", "Add"} else None


def hidden_size(source: Source) -> int | None:
    """The units of the recurrent nodes, where all have the same."""
    sizes = {
        int(attribute.i)
        for node in recurrent_nodes(source.model.graph)
        for attribute in node.attribute
        if attribute.name == "hidden_size" and attribute.type == AttributeProto.INT
    }
    return sizes.pop() if len(sizes) == 1 else None


def datatype_of(dtype: np.dtype[np.generic]) -> str:
    """The datatype that a tensor has in the served graph: numbers in float32, whole ones in int64."""
    return "BOOL" if dtype.kind == "b" else "INT64" if dtype.kind in "iu" else "FP32"
