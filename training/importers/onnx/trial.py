"""A file's graph is tried on rows: which axis is the rows, which the steps, what it gives, and why it cannot be served.

Writes nothing. What the file says of its axes is a hint; what the graph computes decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from torch import Tensor, nn

from training.errors import TrainingError
from training.importers.model import ModelImportError
from training.importers.onnx.first_run import run_first
from training.importers.onnx.graph_module import GraphModule, as_feed
from training.importers.onnx.layout import FileInput, Roles, count_words, guess_layouts, hidden_size, is_time
from training.importers.onnx.reading import Port, Source
from training.importers.torch.artifact import size
from training.importers.torch.calling import (
    Array,
    Arrays,
    InputSpec,
    Names,
    StateSpec,
    Subject,
    flatten,
    read_axes,
    read_rows,
    structure,
)
from training.importers.torch.checks import Reference
from training.importers.torch.export import shape_of
from training.importers.torch.translate import LENGTHS, GraphInput, GraphTensor
from training.importers.torch.writer import DATATYPE

DRAWN_LENGTHS = ((12, 7, 9), (48, 40, 44), (128, 120, 124))
"""Of rows that are drawn where no example is given; a graph may need some steps."""
ROWS_APART = 1e-3
"""How far a row's answer in a batch may be from the one alone; rows that mix are further apart, and the checks are exact."""


@dataclass
class GraphSubject(Subject):
    """A graph as a module: all its tensors are batch first."""

    def graph_inputs(self) -> list[GraphInput]:
        """As of a module, with the axes in the order of the served graph."""
        return [replace(entry, order=tuple(range(len(entry.axes)))) for entry in super().graph_inputs()]


@dataclass(frozen=True)
class Layout:
    """How the file's graph is fed: `opened` is the graph with the axes open that it takes at any size.

    `output_axes` says where an output has the rows, None: nowhere. `is_single`: the graph takes one row at a time.
    """

    source: Source
    inputs: tuple[FileInput, ...]
    specs: tuple[InputSpec, ...]
    opened: ModelProto
    output_axes: Mapping[str, int | None]
    output_ranks: Mapping[str, int]
    is_single: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class GraphTrial:
    """Everything that is known of a graph before another is made of it."""

    layout: Layout
    subject: Subject
    names: Names
    outputs: tuple[GraphTensor, ...]


class _LayoutError(TrainingError):
    """A guess of the axes does not hold; says why."""


class _RunError(_LayoutError):
    """The graph does not run; it may need rows of more steps."""


# ------------------------------------------------------------------------------------------------------------ layout


def try_layouts(source: Source, roles: Roles, example: Sequence[Any] | None, *, time_first: bool) -> tuple[Layout, list[Arrays]]:
    """The first guess of the axes that holds, and the rows it was tried on.

    Raises ModelImportError where none holds, with what stands in the way of each.
    """
    reasons: list[str] = []
    single: tuple[Layout, list[Arrays]] | None = None
    for inputs in guess_layouts(source, roles, time_first=time_first):
        guess = "steps before rows" if any(entry.role == "row" and entry.batch_axis for entry in inputs) else "rows first"
        for lengths in DRAWN_LENGTHS if example is None else ((),):
            rows = _draw_rows(source, inputs, lengths) if example is None else _read_rows(inputs, example)
            try:
                layout = _try_layout(source, inputs, rows, roles)
            except _LayoutError as exc:
                reasons.append(f"{guess}{f', {lengths[0]} steps' if lengths else ''}: {exc}")
                if isinstance(exc, _RunError):
                    continue
                break
            if not layout.is_single:
                return layout, rows
            single = single or (layout, rows)
            break
    if single is not None:
        return single
    hint = "" if example is not None else "\n  rows were drawn at random: give real ones by --example"
    raise ModelImportError("\n  ".join(["the graph cannot be fed rows:", *reasons]) + hint)


def _try_layout(source: Source, inputs: tuple[FileInput, ...], rows: list[Arrays], roles: Roles) -> Layout:
    specs, is_sure = _specs_of(inputs, rows)
    inputs = _with_state_sizes(source, inputs)
    states = _states_of(inputs, roles)
    subject = GraphSubject(nn.Identity(), specs, rows, LENGTHS if roles.lengths is not None else None, states=states)
    opened = _open_axes(source, inputs, specs)
    longest, shortest = (f(rows, key=subject.num_steps) for f in (max, min))
    feeds = [_alone(subject, longest), _alone(subject, shortest)]
    num_steps = _num_steps(subject)
    if subject.is_open:
        feeds += [_batch(subject, 1, num_steps), _batch(subject, 1, num_steps + 2)]
    feeds.append(_batch(subject, 3, num_steps if subject.is_open else None))
    errors = run_first(opened.SerializeToString(), [as_feed(inputs, feed) for feed in feeds])
    if errors[0]:
        raise _RunError(f"a row alone: {errors[0]}")
    if errors[1]:
        raise _RunError(
            f"the length is frozen: a row of {subject.num_steps(longest)} steps works, "
            f"one of {subject.num_steps(shortest)} does not ({errors[1]})"
        )
    notes = []
    if subject.is_open and any(errors[2:4]):
        if is_sure:
            raise _LayoutError(f"other lengths than the example's: {errors[2] or errors[3]}")
        fixed = tuple(replace(spec, axes=rows[0][spec.name].shape) for spec in specs)
        notes.append(f"the length is frozen at {subject.num_steps(longest)} steps")
        specs, subject = fixed, replace(subject, inputs=fixed)
        opened = _open_axes(source, inputs, specs)
    is_single = bool(errors[-1])
    if is_single and not _may_be_single(inputs):
        raise _LayoutError(f"several rows: {errors[-1]}")
    module = GraphModule(opened.SerializeToString(), inputs)
    axes = _output_axes(module, subject, is_single)
    ranks = {name: array.ndim for name, array in module.run(feeds[0]).items()}
    layout = Layout(source, inputs, specs, opened, axes, ranks, is_single, tuple(notes))
    if not is_single:
        _require_independent_rows(module, subject, axes)
    return layout


def _may_be_single(inputs: Sequence[FileInput]) -> bool:
    """Whether the file itself has one row at a time, or does not say."""
    return all(
        entry.port.dims[entry.batch_axis] in (1, None) or isinstance(entry.port.dims[entry.batch_axis], str) for entry in inputs
    )


def _num_steps(subject: Subject) -> int:
    """A length that the example's rows have, and that is no number of rows here."""
    lengths = sorted({subject.num_steps(row) for row in subject.rows})
    number = max(lengths[0], min(lengths[-1], 7))
    return number + 4 if number in (1, 2, 3) else number


def _alone(subject: Subject, row: Mapping[str, Array]) -> Arrays:
    arrays = {name: value[None] for name, value in row.items()}
    return _with_rest(subject, arrays, [subject.num_steps(row)])


def _batch(subject: Subject, num_rows: int, num_steps: int | None) -> Arrays:
    return _with_rest(subject, subject.batch(num_rows, num_steps), [num_steps or 1] * num_rows)


def _with_rest(subject: Subject, arrays: Arrays, lengths: Sequence[int]) -> Arrays:
    """With lengths, and states of zeros."""
    for state in subject.states:
        arrays.setdefault(state.input, np.zeros((len(lengths), *state.axes), np.float32))
    if subject.lengths_argument is not None:
        arrays[LENGTHS] = np.array(lengths, np.int64)
    return arrays


def _open_axes(source: Source, inputs: Sequence[FileInput], specs: Sequence[InputSpec]) -> ModelProto:
    """The file's graph with rows and steps declared open, and nothing declared of its outputs."""
    model = ModelProto()
    model.CopyFrom(source.model)
    declared = {entry.name: entry.type.tensor_type for entry in model.graph.input}
    axes_of = {spec.name: spec.axes for spec in specs}
    for entry in inputs:
        dims = declared[entry.port.name].shape.dim
        axes: list[int | str] = list(axes_of.get(entry.name, [size for size in entry.row_dims if size is not None]))
        axes.insert(entry.batch_axis, "batch")
        for dim, axis in zip(dims, axes, strict=True):
            dim.Clear()
            if isinstance(axis, str):
                dim.dim_param = axis
            else:
                dim.dim_value = axis
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    return model


# ------------------------------------------------------------------------------------------------------------ inputs


def _read_rows(inputs: Sequence[FileInput], example: Sequence[Any]) -> list[Arrays]:
    """The example's rows in the types that the graph is served with. Raises ModelImportError, and ModuleRefused."""
    ports = {entry.name: entry for entry in inputs if entry.role == "row"}
    rows = read_rows(example, list(ports))
    for number, row in enumerate(rows):
        if set(row) != set(ports):
            raise ModelImportError(f"example row {number} has the inputs {sorted(row)}, the graph reads {list(ports)}")
        for name, array in row.items():
            port, place = ports[name].port, f'example row {number}, "{name}"'
            if port.dtype.kind == "f":
                row[name] = array.astype(np.float32)
            elif (array.dtype.kind == "b") != (port.dtype.kind == "b") or array.dtype.kind == "f":
                raise ModelImportError(f"{place}: the graph reads {port.dtype}, the example has {array.dtype}")
            if array.ndim != len(port.dims) - 1:
                raise ModelImportError(
                    f"{place} has shape {array.shape}; the graph reads {port}, so a row has {len(port.dims) - 1} axes"
                )
    return rows


def _specs_of(inputs: Sequence[FileInput], rows: Sequence[Arrays]) -> tuple[tuple[InputSpec, ...], bool]:
    """The axes of a row: "time" where the rows differ, or where the file has an axis open; and whether the rows show it."""
    declared: dict[str, tuple[int | str, ...]] = {}
    lengths: list[int] | None = None
    is_sure = True
    for entry in inputs:
        if entry.role != "row":
            continue
        shapes = [row[entry.name].shape for row in rows]
        differing = [place for place, sizes in enumerate(zip(*shapes, strict=True)) if len(set(sizes)) > 1]
        axes: list[int | str] = list(shapes[0])
        for place, dim in enumerate(entry.row_dims):
            if isinstance(dim, int) and place not in differing and dim != shapes[0][place]:
                raise _LayoutError(f'"{entry.name}" is {entry.port} in the file, the example rows have shape {shapes[0]}')
        steps = differing[0] if differing else _open_axis(entry)
        if steps is not None:
            own = [shape[steps] for shape in shapes]
            if differing or lengths is None or own == lengths:
                axes[steps] = "time"
                lengths = lengths or own
                is_sure = is_sure and bool(differing)
        declared[entry.name] = tuple(axes)
    return read_axes(rows, declared), is_sure


def _open_axis(entry: FileInput) -> int | None:
    """The axis of a row that the file has open: one that is called as steps are, else the first."""
    found = [place for place, dim in enumerate(entry.row_dims) if not isinstance(dim, int)]
    named = [place for place in found if is_time(str(entry.row_dims[place]))]
    return next(iter([*named, *found]), None)


def _draw_rows(source: Source, inputs: Sequence[FileInput], lengths: Sequence[int]) -> list[Arrays]:
    """Random rows of some lengths, token ids among those that the graph looks up. Raises ModelImportError where it cannot."""
    random = np.random.default_rng(0)
    rows: list[Arrays] = []
    for length in lengths:
        row: Arrays = {}
        for entry in inputs:
            if entry.role != "row":
                continue
            place = _open_axis(entry)
            shape = [length if index == place else dim for index, dim in enumerate(entry.row_dims)]
            if not all(isinstance(dim, int) for dim in shape):
                raise ModelImportError(f'input "{entry.name}" is {entry.port}, with several open axes: give rows by --example')
            sizes = [int(dim) for dim in shape if isinstance(dim, int)]
            if entry.port.dtype.kind == "f":
                row[entry.name] = random.standard_normal(sizes).astype(np.float32)
            elif entry.port.dtype.kind == "b":
                row[entry.name] = random.random(sizes) < 0.5
            else:
                num_words = count_words(source, entry.port.name)
                if num_words is None:
                    raise ModelImportError(
                        f'input "{entry.name}" is {entry.port.dtype}, of unknown range: give rows by --example'
                    )
                row[entry.name] = random.integers(0, num_words, sizes)
        rows.append(row)
    return rows


def _with_state_sizes(source: Source, inputs: Sequence[FileInput]) -> tuple[FileInput, ...]:
    """The inputs with the sizes of their states: an open last axis has the units of the recurrent nodes."""
    found = []
    for entry in inputs:
        dims = list(entry.port.dims)
        if entry.role == "state":
            if dims and not isinstance(dims[-1], int) and len(dims) - 1 != entry.batch_axis:
                dims[-1] = hidden_size(source)
            unknown = [axis for axis, dim in enumerate(dims) if axis != entry.batch_axis and not isinstance(dim, int)]
            if unknown:
                raise ModelImportError(f'the state "{entry.name}" is {entry.port}: the sizes of its axes {unknown} are unknown')
        found.append(replace(entry, port=Port(entry.port.name, entry.port.dtype, tuple(dims))))
    return tuple(found)


def _states_of(inputs: Sequence[FileInput], roles: Roles) -> tuple[StateSpec, ...]:
    outputs = {pair.input: pair.output for pair in roles.states}
    return tuple(
        StateSpec(entry.name, outputs[entry.name], entry.name, tuple(int(dim or 0) for dim in entry.row_dims))
        for entry in inputs
        if entry.role == "state"
    )


# ------------------------------------------------------------------------------------------------------------ outputs


def _sizes(subject: Subject) -> list[tuple[int, int | None]]:
    """Rows and steps of three runs: more steps in the second, more rows in the third."""
    if not subject.is_open:
        return [(2, None), (2, None), (3, None)]
    number = _num_steps(subject)
    return [(2, number), (2, number + 2), (3, number)]


def _output_axes(module: GraphModule, subject: Subject, is_single: bool) -> dict[str, int | None]:
    """Where each output has the rows. Raises _LayoutError where one has them nowhere."""
    if is_single:
        number = _num_steps(subject) if subject.is_open else None
        batch_axis = next(entry.batch_axis for entry in module.inputs if entry.role == "row")
        shapes = [module.run(_batch(subject, 1, steps)) for steps in (number, None if number is None else number + 2)]
        axes: dict[str, int | None] = {}
        for name, array in shapes[0].items():
            ones = [axis for axis, sizes in enumerate(zip(array.shape, shapes[1][name].shape, strict=True)) if sizes == (1, 1)]
            axes[name] = batch_axis if batch_axis in ones else next(iter(ones), None)
        return axes
    runs = [module.run(_batch(subject, rows, steps)) for rows, steps in _sizes(subject)]
    found: dict[str, int | None] = {}
    for name, first in runs[0].items():
        if first.dtype.kind not in "fiub":
            raise ModelImportError(f'output "{name}" is {first.dtype}')
        if len({run[name].ndim for run in runs}) > 1:
            raise _LayoutError(f'output "{name}" has another number of axes for other sizes')
        dims = list(zip(*(run[name].shape for run in runs), strict=True))
        _, place = shape_of(dims, [rows for rows, _ in _sizes(subject)], [steps or 0 for _, steps in _sizes(subject)])
        if place < 0:
            raise _LayoutError(f'output "{name}" has no axis for the rows: {list(first.shape)} for {_sizes(subject)[0][0]} rows')
        found[name] = place
    return found


def _require_independent_rows(module: GraphModule, subject: Subject, axes: Mapping[str, int | None]) -> None:
    num_rows, num_steps = _sizes(subject)[2]
    batch = _batch(subject, num_rows, num_steps)
    together = module.run(batch)
    for number in range(num_rows):
        alone = module.run({name: value[number : number + 1] for name, value in batch.items()})
        for name, values in together.items():
            axis = axes[name] or 0
            row, own = values.take(number, axis=axis), alone[name].take(0, axis=axis)
            if row.shape != own.shape or float(np.abs(row - own).max(initial=0.0)) > ROWS_APART * size(own):
                raise _LayoutError(f'the answer "{name}" for a row depends on the other rows in its batch')


def name_outputs_of(module: GraphModule) -> Names:
    """The names of what a graph module gives, nested as it is."""
    names = tuple(module.output_names)
    return names if len(names) > 1 else names[0]


def try_graph(
    layout: Layout, model: nn.Module, names: Names, rows: list[Arrays], roles: Roles, parameters: Sequence[str]
) -> GraphTrial:
    """What the file's graph, or a module around it, gives. Raises ModelImportError for what cannot be served.

    `parameters` are the names of the model's arguments, in their order; a task calls its only one in its own way, as in `rows`.
    """
    specs = layout.specs
    if specs[0].name not in parameters:
        specs = (replace(specs[0], name=parameters[0]),)
    states = tuple(state for state in _states_of(layout.inputs, roles) if state.input in parameters)
    lengths = LENGTHS if LENGTHS in parameters else None
    subject = GraphSubject(model.eval(), specs, rows, lengths, states=states, parameters=parameters)
    sizes = [(1, steps) for _, steps in _sizes(subject)[:2]] if layout.is_single else _sizes(subject)
    runs = [_run(subject, names, *pair) for pair in sizes]
    outputs = []
    for name, first in runs[0].items():
        dims = [run[name].shape for run in runs]
        axes: list[int | str] = ["batch"]
        for place, sizes_of in enumerate(zip(*dims, strict=True)):
            if place == 0:
                continue
            if len(set(sizes_of)) == 1:
                axes.append(int(sizes_of[0]))
            elif subject.is_open and list(sizes_of) == [steps for _, steps in sizes]:
                axes.append("time")
            else:
                raise ModelImportError(
                    f'output "{name}" has an axis whose size is neither the rows nor the steps: {list(sizes_of)} for the '
                    f"(rows, steps) {sizes}"
                )
        outputs.append(GraphTensor(name, DATATYPE[first.dtype], tuple(axes)))
    _require_same_twice(subject, names, *sizes[0])
    return GraphTrial(layout, subject, names, tuple(outputs))


def _run(subject: Subject, names: Names, num_rows: int, num_steps: int | None) -> dict[str, Tensor]:
    with torch.no_grad():
        result = subject.call(subject.batch(num_rows, num_steps), [num_steps or 1] * num_rows)
    found: dict[str, Tensor] = flatten(names, structure(result))
    return found


def _require_same_twice(subject: Subject, names: Names, num_rows: int, num_steps: int | None) -> None:
    first, second = (_run(subject, names, num_rows, num_steps) for _ in range(2))
    for name, values in first.items():
        if not torch.equal(torch.nan_to_num(values.double()), torch.nan_to_num(second[name].double())):
            raise ModelImportError(f'two runs with the same row differ in "{name}"')


def answers_of(trial: GraphTrial, rows: Sequence[Mapping[str, NDArray[Any]]]) -> list[Arrays]:
    """What the file's graph answers for each row alone, states left out."""
    states = {part.output for part in trial.subject.states}
    reference = Reference(trial.subject, trial.names, {entry.name: entry.shape for entry in trial.outputs})
    return [{name: value for name, value in reference.answer(row).items() if name not in states} for row in rows]
