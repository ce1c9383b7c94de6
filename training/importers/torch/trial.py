"""A module is tried on rows of its example: what it reads and gives, and why it cannot be served. Makes no graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from training.importers.torch.axes import canonical
from training.importers.torch.calling import (
    Axis,
    InputSpec,
    Names,
    Subject,
    flatten,
    name_outputs,
    read_axes,
    read_rows,
)
from training.importers.torch.checks import Reference
from training.importers.torch.errors import ModuleRefused
from training.importers.torch.export import OTHER, shape_of
from training.importers.torch.places import Place
from training.importers.torch.recording import Recording, record
from training.importers.torch.states import name_states, with_state
from training.importers.torch.translate import LENGTHS, GraphTensor
from training.importers.torch.wrappers import innermost
from training.importers.torch.writer import DATATYPE

FAR = 8
Sizes = list[tuple[int, int | None]]
"""Rows and steps of three runs."""


@dataclass
class Trial:
    """Everything that is known of the module before a graph is made."""

    subject: Subject
    names: Names
    outputs: tuple[GraphTensor, ...]
    sizes: Sizes
    recordings: list[Recording] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def try_module(
    model: nn.Module,
    parameters: list[str],
    example: Sequence[Any],
    inputs: Mapping[str, Sequence[Axis]] | None,
    lengths: str | None,
    batch_first: bool,
    state: Mapping[str, str] | None,
    *,
    takes_one_row: bool = False,
) -> Trial:
    """Read the example, run the module as it will be served, and refuse what no graph can serve.

    With `takes_one_row` the module never sees more than one: how it would answer several is of no matter.
    """
    if lengths is not None and parameters and lengths not in parameters:
        raise ModuleRefused(f'lengths="{lengths}": forward takes {parameters}')
    for argument in state or {}:
        if argument not in parameters:
            raise ModuleRefused(f'state: forward takes no "{argument}", it takes {parameters}')
    own = [name for name in parameters if name != lengths and name not in (state or {})]
    rows = read_rows(example, own)
    given = dict(rows[0])
    unknown = [name for name in given if parameters and name not in parameters]
    if unknown:
        raise ModuleRefused(f'example: forward takes no "{unknown[0]}", it takes {parameters}')
    for argument in (state or {}).keys() & given.keys():
        rows = [{name: value for name, value in row.items() if name != argument} for row in rows]
    specs = read_axes(rows, inputs)
    _require_names(specs)
    subject = Subject(model, specs, rows, lengths, batch_first, parameters=parameters, takes_one_row=takes_one_row)
    _require_lengths(subject, inputs)
    if state:
        subject = with_state(subject, state, given)
    first = _run_alone(subject)
    names = name_outputs(innermost(model), first)
    names, subject = name_states(subject, names, state or {})
    sizes = _choose_sizes(subject)
    outputs, places = _read_outputs(subject, names, sizes)
    subject.batch_places = places
    trial = Trial(subject, names, outputs, sizes)
    _require_same_twice(trial)
    if not takes_one_row:
        _require_independent_rows(trial)
    return trial


def _require_names(specs: Sequence[InputSpec]) -> None:
    for spec in specs:
        if spec.name == LENGTHS:
            raise ModuleRefused(
                f'the argument "{LENGTHS}" is an input of the example: name it by lengths="{LENGTHS}" and leave it out'
            )


def _require_lengths(subject: Subject, inputs: Mapping[str, Any] | None) -> None:
    """Rows of one length say nothing of others: refuse where the time axis is open, and where it may be."""
    if subject.is_open:
        found = {subject.num_steps(row) for row in subject.rows}
        if len(found) < 2:
            raise ModuleRefused(f"the example rows all have {found.pop()} steps while the time axis is open: give two lengths")
        return
    if inputs is not None:
        return
    for spec in subject.inputs:
        for place in range(len(spec.axes) - (1 if spec.dtype.kind == "f" else 0)):
            size = spec.axes[place]
            assert isinstance(size, int)
            if size < 3 or not _runs_shorter(subject, spec, place):
                continue
            raise ModuleRefused(
                f'the example rows of "{spec.name}" all have the shape {spec.axes}, but the module takes other sizes of axis '
                f"{place} too: give rows of two lengths, or say inputs={{{spec.name!r}: {spec.axes}}} if it never differs"
            )


def _runs_shorter(subject: Subject, spec: InputSpec, place: int) -> bool:
    arrays = subject.batch(2, None)
    size = spec.axes[place]
    assert isinstance(size, int)
    arrays[spec.name] = arrays[spec.name].take(np.arange(size - 1), axis=place + 1)
    try:
        subject.call(arrays, [size - 1] * 2)
    except Exception:  # whatever a module raises for a shape it does not take
        return False
    return True


def _run_alone(subject: Subject) -> Any:
    """Every example row alone. What the module raises becomes a sentence with the line."""
    results: list[Any] = []
    for number, row in enumerate(subject.rows):
        arrays = {name: value[None] for name, value in row.items()}
        for part in subject.states:
            arrays[part.input] = np.zeros((1, *part.axes), np.float32)
        try:
            results.append(subject.call(arrays, [subject.num_steps(row)]))
        except ModuleRefused:
            raise
        except Exception as exc:  # a module raises what it likes
            shapes = {name: list(value.shape) for name, value in row.items()}
            where = _last_line(exc)
            what = f"{type(exc).__name__}: {str(exc).splitlines()[0] if str(exc) else ''}"
            if results:
                raise ModuleRefused(
                    f"{where}: the length is frozen: example row 0 of {subject.num_steps(subject.rows[0])} steps works, "
                    f"row {number} of {subject.num_steps(row)} does not ({what})"
                ) from exc
            raise ModuleRefused(f"{where}: forward fails for example row {number} {shapes}: {what}") from exc
    return results[0]


def _last_line(exc: BaseException) -> str:
    """The innermost line outside torch that an exception came through."""
    found: Place | None = None
    trace = exc.__traceback__
    home = str(Path(torch.__file__).parent)
    here = str(Path(__file__).parent)
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not file.startswith((home, here, "<")):
            found = Place(file, trace.tb_lineno)
        trace = trace.tb_next
    return str(found or "forward")


def _choose_sizes(subject: Subject) -> Sizes:
    """Rows and steps of three runs: more steps in the second, more rows in the third."""
    few, more = (1, 1) if subject.takes_one_row else (2, 3)
    if not subject.is_open:
        return [(few, None), (few, None), (more, None)]
    lengths = sorted({subject.num_steps(row) for row in subject.rows})
    first = max(lengths[0], min(lengths[-1], 7))
    while first in (few, more):
        first += 1
    # Far enough apart to differ behind a few strides too, where the module takes rows so long.
    second = first + FAR if _takes(subject, few, first + FAR) else first + 2
    return [(few, first), (few, second), (more, first)]


def _read_outputs(subject: Subject, names: Names, sizes: Sizes) -> tuple[tuple[GraphTensor, ...], dict[str, int]]:
    """The outputs' names, types and axes, and where they have the rows: by their sizes in three runs."""
    found: list[dict[str, Tensor]] = []
    for num_rows, num_steps in sizes:
        try:
            result = subject.call(subject.batch(num_rows, num_steps), [num_steps or 1] * num_rows)
        except Exception as exc:  # a module raises what it likes
            what = f"{type(exc).__name__}: {str(exc).splitlines()[0] if str(exc) else ''}"
            steps = "" if num_steps is None else f" of {num_steps} steps"
            if num_rows > 1 and _takes(subject, 1, num_steps):
                way = 'batching="none" serves a module that takes one row at a time'
                raise ModuleRefused(
                    f"{_last_line(exc)}: forward fails for {num_rows} rows{steps}, not for one: {what}; {way}"
                ) from exc
            frozen = "the length is frozen: " if num_steps else ""
            raise ModuleRefused(f"{_last_line(exc)}: {frozen}forward fails for {num_rows} rows{steps}: {what}") from exc
        found.append(flatten(names, result))
    outputs, places = [], {}
    others: dict[tuple[int, ...], str] = {}
    open_steps = [number or 0 for _, number in sizes] if subject.is_open else None
    for name, first in found[0].items():
        if first.is_complex() or first.dtype in (torch.float16, torch.bfloat16):
            raise ModuleRefused(f'output "{name}" is {str(first.dtype).removeprefix("torch.")}')
        dims = list(zip(*(run[name].shape for run in found), strict=True))
        axes, place = shape_of(dims, [rows for rows, _ in sizes], open_steps)
        if subject.takes_one_row:
            place = axes.index(1) if 1 in axes else -1
        if place > 0:
            places[name] = place
        for index, axis in enumerate(axes):
            if axis == OTHER:
                axes[index] = others.setdefault(tuple(dims[index]), f"{OTHER}_{len(others) + 1}" if others else OTHER)
        rest = [axis for index, axis in enumerate(axes) if index != place]
        outputs.append(GraphTensor(name, DATATYPE[canonical(first.dtype)], ("batch", *rest)))
    return tuple(outputs), places


def _takes(subject: Subject, num_rows: int, num_steps: int | None) -> bool:
    try:
        subject.call(subject.batch(num_rows, num_steps), [num_steps or 1] * num_rows)
    except Exception:  # whatever a module raises for a shape it does not take
        return False
    return True


def _require_same_twice(trial: Trial) -> None:
    """Refuse a module that answers the same row in two ways; recording it first names the line."""
    subject = trial.subject
    num_rows, num_steps = trial.sizes[0]
    arrays, lengths = subject.batch(num_rows, num_steps), [num_steps or 1] * num_rows
    for rows, steps in trial.sizes:
        tensors = subject.tensors(subject.batch(rows, steps), [steps or 1] * rows)
        args, kwargs = subject.arguments(tensors)
        trial.recordings.append(record(subject.model, args, kwargs, tensors))
    before = _hidden_tensors(subject.model)
    first = flatten(trial.names, subject.call(arrays, lengths))
    second = flatten(trial.names, subject.call(arrays, lengths))
    apart = [name for name in first if not torch.equal(first[name], second[name]) and not _both_nan(first[name], second[name])]
    if apart:
        kept = [name for name, number in _hidden_tensors(subject.model).items() if before.get(name) != number]
        if kept:
            raise ModuleRefused(
                f'two calls with the same row differ in "{apart[0]}": the module keeps state in {", ".join(kept)}: '
                "make it an argument and an output of forward, and name it by state="
            )
        raise ModuleRefused(f'two calls with the same row differ in "{apart[0]}": random numbers, or state that is kept')


def _both_nan(one: Tensor, other: Tensor) -> bool:
    return (
        one.is_floating_point() and bool(torch.isnan(one).any()) and torch.equal(torch.nan_to_num(one), torch.nan_to_num(other))
    )


def _hidden_tensors(model: nn.Module) -> dict[str, int]:
    """Tensors that modules hold besides parameters and buffers, by name."""
    found: dict[str, int] = {}
    for prefix, module in model.named_modules():
        for key, value in vars(module).items():
            parts = value if isinstance(value, tuple | list) else (value,)
            if not key.startswith("_") and any(isinstance(part, Tensor) for part in parts):
                found[f"self.{prefix + '.' if prefix else ''}{key}"] = hash(tuple(id(part) for part in parts))
    return found


def _require_independent_rows(trial: Trial) -> None:
    """Refuse a module whose answer for a row depends on the other rows of its batch."""
    subject = trial.subject
    num_rows, num_steps = trial.sizes[2]
    arrays, lengths = subject.batch(num_rows, num_steps), [num_steps or 1] * num_rows
    together = flatten(trial.names, subject.call(arrays, lengths))
    reference = Reference(subject, trial.names, {output.name: output.shape for output in trial.outputs})
    for number in range(num_rows):
        alone = reference.answer({name: value[number] for name, value in arrays.items()})
        for output in trial.outputs:
            values = together[output.name].numpy()
            place = subject.batch_places.get(output.name, 0)
            if values.ndim != len(output.shape) or values.shape[place] != num_rows:
                continue
            row = values.take(number, axis=place)
            if row.size != alone[output.name].size or not np.allclose(
                row.reshape(-1), alone[output.name].reshape(-1), rtol=1e-3, atol=1e-3, equal_nan=True
            ):
                raise ModuleRefused(_neighbours(subject.model, output.name))


def _neighbours(model: nn.Module, output: str) -> str:
    culprits = [
        f'{type(module).__name__} "{name}"'
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not module.track_running_stats
    ]
    culprits += [
        f'{type(module).__name__} "{name}" without batch_first=True'
        for name, module in model.named_modules()
        if isinstance(module, nn.RNNBase) and not module.batch_first
    ]
    reason = f": {', '.join(culprits)}" if culprits else ": statistics of the batch, or an axis that is the rows"
    what = f'the answer "{output}" for a row depends on the other rows in its batch{reason}'
    return f'{what}; batch_first=False is for rows along axis 1, batching="none" for one row at a time'
