"""How a module is called for rows: which argument is which input, where its batch and its steps are, what carries state.

Knows nothing of graphs; `recording.py` runs what `Subject.arguments` gives.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.importers.torch.errors import ModuleRefused
from training.importers.torch.translate import LENGTHS, GraphInput

Array = NDArray[Any]
Axis = int | str
Names = Any  # nested as the result is, a name for every tensor
Arrays = dict[str, Array]
"""Inputs of the graph by name, batch first."""


@dataclass(frozen=True)
class InputSpec:
    """One argument of `forward` that varies from row to row: its axes in one row, "time" where rows differ in length."""

    name: str
    axes: tuple[Axis, ...]
    dtype: np.dtype[Any]

    @property
    def time_axis(self) -> int | None:
        return self.axes.index("time") if "time" in self.axes else None


@dataclass(frozen=True)
class StateSpec:
    """One tensor of state: the graph's input and output, and its axes in one row."""

    input: str
    output: str
    argument: str
    axes: tuple[int, ...]


@dataclass
class Subject:
    """A module, what it reads, and rows to try it on.

    `batch_axis` is where the module's tensors have the rows: 0, or 1 behind the time axis for `batch_first=False`.
    """

    model: nn.Module
    inputs: tuple[InputSpec, ...]
    rows: list[Arrays]
    lengths_argument: str | None = None
    batch_first: bool = True
    states: tuple[StateSpec, ...] = ()
    tuples: frozenset[str] = field(default_factory=frozenset)
    """Arguments of state that are tuples of tensors."""
    parameters: Sequence[str] = ()
    """The names of `forward`'s arguments."""
    batch_places: Mapping[str, int] = field(default_factory=dict)
    """Where each output has the rows, if not in front."""
    is_double: bool = False
    """Whether the module computes in float64."""
    takes_one_row: bool = False
    """Whether it is only run on one row at a time."""

    @property
    def is_open(self) -> bool:
        """Whether rows may differ in length."""
        return any(spec.time_axis is not None for spec in self.inputs)

    def graph_inputs(self) -> list[GraphInput]:
        """The inputs as the graph has them, in the order of `tensors`."""
        entries = []
        for spec in self.inputs:
            axes = ("batch", *spec.axes)
            entries.append(GraphInput(spec.name, axes, tuple(self._order(len(axes), spec.time_axis is not None))))
        if self.lengths_argument is not None:
            entries.append(GraphInput(LENGTHS, ("batch",), (0,)))
        for state in self.states:
            # (layers, batch, units) in torch, (batch, layers, units) here.
            order = (1, 0, 2) if len(state.axes) == 2 else (0, *range(1, len(state.axes) + 1))
            entries.append(GraphInput(state.input, ("batch", *state.axes), order))
        return entries

    def _order(self, rank: int, has_time: bool) -> list[int]:
        """Which axis of the graph's input each axis of the module's is."""
        if self.batch_first or not has_time:
            return list(range(rank))
        return [1, 0, *range(2, rank)]

    def tensors(self, arrays: Mapping[str, Array], lengths: Sequence[int] | None = None) -> dict[str, Tensor]:
        """The module's tensors by the graph's names, with axes where the module has them."""
        tensors = {}
        for entry in self.graph_inputs():
            if entry.name == LENGTHS:
                tensors[LENGTHS] = torch.tensor(list(lengths or []), dtype=torch.int64)
            else:
                array = np.ascontiguousarray(arrays[entry.name].transpose(entry.order))
                tensor = torch.from_numpy(array)
                tensors[entry.name] = tensor.double() if self.is_double and tensor.is_floating_point() else tensor
        return tensors

    def arguments(self, tensors: Mapping[str, Tensor]) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments of the module's call."""
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        names = list(self.parameters or parameter_names(self.model))
        by_name: dict[str, Any] = {spec.name: tensors[spec.name] for spec in self.inputs}
        if self.lengths_argument is not None:
            by_name[self.lengths_argument] = tensors[LENGTHS]
        for argument in dict.fromkeys(state.argument for state in self.states):
            parts = tuple(tensors[state.input] for state in self.states if state.argument == argument)
            by_name[argument] = parts if argument in self.tuples else parts[0]
        for name in names:
            if name in by_name and len(args) == names.index(name):
                args.append(by_name.pop(name))
        kwargs.update(by_name)
        if kwargs and not set(kwargs) <= set(names):
            # A module without names for its arguments, as nn.Sequential or a compiled one.
            args += [kwargs.pop(name) for name in list(kwargs)]
        return args, kwargs

    def call(self, arrays: Mapping[str, Array], lengths: Sequence[int] | None = None) -> Any:
        """What the module gives, as nested tuples and dicts of tensors."""
        args, kwargs = self.arguments(self.tensors(arrays, lengths))
        with torch.no_grad():
            return structure(self.model(*args, **kwargs))

    def batch(self, num_rows: int, num_steps: int | None) -> Arrays:
        """Rows of `num_steps` steps made of the example's, which are repeated where they are too short; states of zeros."""
        arrays: Arrays = {}
        for spec in self.inputs:
            rows = []
            for number in range(num_rows):
                row = self.rows[number % len(self.rows)][spec.name]
                place = spec.time_axis
                if place is not None and num_steps is not None:
                    # Another row of the example begins elsewhere: rows that are alike hide much.
                    index = (np.arange(num_steps) + number // len(self.rows)) % row.shape[place]
                    row = row.take(index, axis=place)
                rows.append(row)
            arrays[spec.name] = np.stack(rows)
        for state in self.states:
            arrays[state.input] = np.zeros((num_rows, *state.axes), np.float32)
        return arrays

    def num_steps(self, row: Mapping[str, Array]) -> int:
        """The length of a row (without a batch axis); 1 if it has no time axis."""
        for spec in self.inputs:
            if spec.time_axis is not None:
                return int(row[spec.name].shape[spec.time_axis])
        return 1


def parameter_names(model: nn.Module) -> list[str]:
    """The names of `forward`'s arguments; none where they cannot be read."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        schema = getattr(model, "forward", None)
        schema = getattr(schema, "schema", None)
        return [argument.name for argument in schema.arguments[1:]] if schema is not None else []
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [parameter.name for parameter in parameters if parameter.kind in kinds]


def structure(value: Any) -> Any:
    """Nested tuples and dicts: named tuples and data classes as dicts, lists as tuples."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        return {str(key): structure(part) for key, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {name: structure(part) for name, part in zip(value._fields, value, strict=True)}
    if isinstance(value, list | tuple):
        return tuple(structure(part) for part in value)
    if hasattr(value, "__dataclass_fields__"):
        return {name: structure(getattr(value, name)) for name in value.__dataclass_fields__}
    return value


def name_outputs(model: nn.Module, result: Any) -> Any:
    """Names for the tensors of a result, nested as it is: keys and fields, the names in `return a, (b, c)`, or numbers."""
    if isinstance(result, dict):
        return {key: _names_under(key, part) for key, part in result.items()}
    if isinstance(result, tuple):
        returned = _returned(model)
        if isinstance(returned, ast.Tuple) and len(returned.elts) == len(result):
            return tuple(
                _names_by(node, part, number) for number, (node, part) in enumerate(zip(returned.elts, result, strict=True))
            )
        return _names_under("output", result)
    return "output"


def _names_by(node: ast.expr, part: Any, number: int) -> Any:
    if isinstance(node, ast.Tuple) and isinstance(part, tuple) and len(node.elts) == len(part):
        return tuple(_names_by(inner, value, index) for index, (inner, value) in enumerate(zip(node.elts, part, strict=True)))
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    if not name:
        name = "output" if number == 0 else f"output_{number}"
    return _names_under(name, part)


def _names_under(name: str, part: Any) -> Any:
    if isinstance(part, tuple):
        return tuple(_names_under(f"{name}_{number}", inner) for number, inner in enumerate(part))
    if isinstance(part, dict):
        return {key: _names_under(f"{name}_{key}", inner) for key, inner in part.items()}
    return name


def _returned(model: nn.Module) -> ast.expr | None:
    """What `forward` returns, where its source can be read and all its returns are alike."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(type(model).forward)))
    except (OSError, TypeError, SyntaxError):
        return None
    found = [node.value for node in ast.walk(tree) if isinstance(node, ast.Return) and node.value is not None]
    return found[0] if found and len({ast.dump(node) for node in found}) == 1 else None


def flatten(names: Any, result: Any) -> dict[str, Any]:
    """The tensors of a result by name, those that are None left out. Raises ModuleRefused for what is no tensor."""
    if isinstance(names, dict):
        return {key: value for part in names for key, value in flatten(names[part], result[part]).items()}
    if isinstance(names, tuple):
        return {key: value for one, part in zip(names, result, strict=True) for key, value in flatten(one, part).items()}
    if result is None:
        return {}
    if not isinstance(result, Tensor):
        raise ModuleRefused(f'output "{names}" is {type(result).__name__}, not a tensor: a graph gives tensors only')
    return {str(names): result}


def read_rows(rows: Sequence[Any], names: Sequence[str]) -> list[dict[str, Array]]:
    """Example rows as arrays by argument. A row is an array, a tuple of arrays in the order of `forward`, or a dict."""
    read = []
    for number, row in enumerate(rows):
        place = f"example row {number}"
        if isinstance(row, Mapping):
            given = dict(row)
        else:
            parts = row if isinstance(row, tuple) else (row,)
            if names and len(parts) > len(names):
                raise ModuleRefused(f"{place} has {len(parts)} parts, forward takes {list(names)}")
            own = list(names[: len(parts)]) or [f"input_{index}" if index else "input" for index in range(len(parts))]
            given = dict(zip(own, parts, strict=True))
        read.append({str(name): _array(value, f'{place}, "{name}"') for name, value in given.items()})
    if len({tuple(row) for row in read}) > 1:
        raise ModuleRefused(f"the example rows have other arguments: {[list(row) for row in read]}")
    return read


def _array(value: Any, place: str) -> Array:
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    try:
        array = np.asarray(value)
    except ValueError as exc:
        raise ModuleRefused(f"{place}: the nested lists have different lengths") from exc
    if array.dtype.kind == "f":
        array = array.astype(np.float32)
    elif array.dtype.kind in "iu":
        array = array.astype(np.int64)
    elif array.dtype.kind != "b":
        raise ModuleRefused(f"{place}: expected numbers, got {array.dtype}")
    if array.size == 0:
        raise ModuleRefused(f"{place}: it is empty, shape {array.shape}; a row has at least one step and no batch axis")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ModuleRefused(f"{place}: it holds numbers that are not finite")
    return array


def read_axes(rows: Sequence[Mapping[str, Array]], declared: Mapping[str, Sequence[Axis]] | None = None) -> tuple[InputSpec, ...]:
    """The axes of every argument: as declared, or read off the rows: what differs between them is time."""
    specs = []
    for name, first in rows[0].items():
        arrays = [row[name] for row in rows]
        ranks = {array.ndim for array in arrays}
        if len(ranks) > 1:
            raise ModuleRefused(
                f'example rows of "{name}" have {sorted(ranks)} axes: a row has no batch axis, and all have the same'
            )
        if len({array.dtype.kind for array in arrays}) > 1:
            raise ModuleRefused(f'example rows of "{name}" have other types: {sorted({str(array.dtype) for array in arrays})}')
        axes: tuple[Axis, ...]
        if declared is not None and name in declared:
            axes = tuple(declared[name])
            if len(axes) != first.ndim:
                raise ModuleRefused(f'inputs["{name}"] has {len(axes)} axes {axes}, the example rows have shape {first.shape}')
        else:
            differ = [place for place in range(first.ndim) if len({array.shape[place] for array in arrays}) > 1]
            if len(differ) > 1:
                raise ModuleRefused(
                    f'example rows of "{name}" differ in {len(differ)} axes {[a.shape for a in arrays]}: one can be time'
                )
            axes = tuple("time" if place in differ else size for place, size in enumerate(first.shape))
        for array in arrays:
            sizes = [(size, axis) for size, axis in zip(array.shape, axes, strict=True) if axis != "time" and size != axis]
            if sizes:
                raise ModuleRefused(f'an example row of "{name}" has shape {array.shape}, its axes are {axes}')
        specs.append(InputSpec(name, axes, first.dtype))
    for row in rows:
        lengths = {spec.name: row[spec.name].shape[spec.time_axis] for spec in specs if spec.time_axis is not None}
        if len(set(lengths.values())) > 1:
            raise ModuleRefused(
                f"a row has one length, this one has {lengths}: sequences of other lengths are two inputs of two models"
            )
    return tuple(specs)
