"""Any torch module as a model folder: `publish(net, "name", example=[row, row])`, one function from top to bottom.

The contract: the answer for a row is `model(row[None])` alone, unpadded, whatever batch the server puts it in. Nothing is
published that was not measured to keep it.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import training
from training.export.answers import format_forecast
from training.export.publish import Publication, next_version, put_in_place, require_free
from training.export.publish import publish as write
from training.importers.torch.artifact import Artifact, Batching
from training.importers.torch.axes import canonical
from training.importers.torch.calling import (
    Axis,
    InputSpec,
    Names,
    StateSpec,
    Subject,
    flatten,
    name_outputs,
    parameter_names,
    read_axes,
    read_rows,
)
from training.importers.torch.checks import TOLERANCE, Reference, Verdict, verify
from training.importers.torch.errors import ModuleRefused, Untranslatable
from training.importers.torch.export import EXPORTERS, Exports, shape_of
from training.importers.torch.places import Place
from training.importers.torch.program import unify
from training.importers.torch.recording import Recording, record
from training.importers.torch.refusals import require_network
from training.importers.torch.translate import LENGTHS, GraphTensor, translate
from training.importers.torch.wrappers import (
    Classify,
    ClassifyHead,
    Forecast,
    ForecastHead,
    Scaled,
    read_scaler,
)
from training.importers.torch.writer import DATATYPE
from training.scoring.evaluate import Scores

Wanted = Literal["auto", "ragged", "equal"]
NUM_DIGITS = 9  # what gives a float32 back exactly


@dataclass(frozen=True)
class Published:
    """What came of a publication: the folder (None in a dry run), the route and what was measured."""

    folder: Path | None
    route: str
    batching: Batching
    verdict: Verdict
    notes: tuple[str, ...]
    tried: tuple[str, ...]
    """Routes that came before and what stood in their way."""

    def __str__(self) -> str:
        lines = [f"{self.folder or 'dry run'}: {self.route}, batches of {_BATCHES[self.batching]}"]
        lines += [f"  {line}" for line in self.tried]
        for check in self.verdict.checks:
            lines.append(f"  {check.name:32} {check.error:8.1e}  (allowed {check.allowed:.0e})")
        lines.append(f"  shortest row {self.verdict.min_length}; the module's own rounding {self.verdict.rounding:.0e}")
        lines.append(f"  one row {self.verdict.ms_per_row:.2f} ms, in torch {self.verdict.ms_per_row_torch:.2f} ms")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


_BATCHES = {"ragged": "rows of any length", "equal": "rows of equal length"}


@dataclass(frozen=True)
class _Form:
    """What the folder is of, in the place of a recipe."""

    name: str
    version: int | None
    task: str
    description: str
    licence: str
    options: Mapping[str, Any]
    seed: int = 0

    def as_json(self) -> dict[str, Any]:
        return dict(self.options)


@dataclass
class _Trial:
    """Everything that is known of the module before a graph is made."""

    subject: Subject
    names: Names
    outputs: tuple[GraphTensor, ...]
    recordings: list[Recording] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def publish(
    model: nn.Module,
    name: str,
    *,
    example: Sequence[Any],
    task: Literal["tensor"] | Forecast | Classify = "tensor",
    inputs: Mapping[str, Sequence[Axis]] | None = None,
    lengths: str | None = None,
    batch_first: bool = True,
    state: Mapping[str, str] | None = None,
    scale: Any = None,
    unscale: Any = None,
    expected: Sequence[Any] | None = None,
    scores: Scores | None = None,
    batching: Wanted = "auto",
    tolerance: float = TOLERANCE,
    description: str = "",
    licence: str = "",
    version: int | None = None,
    replace: bool = False,
    dry_run: bool = False,
    models: str | Path = "models",
) -> Published:
    """Publish a module, unchanged, as `models/<name>/<version>`.

    `example` are rows of at least two lengths, without a batch axis: arrays, tuples of arrays in the order of `forward`'s
    arguments, or dicts by their names. What differs between the rows is time, unless `inputs` gives the axes of a row
    (numbers, and "time"). `lengths` names the argument that takes the rows' lengths, if there is one. `state` maps an argument
    to the output that carries it on; `scale` and `unscale` are fitted scalers for the first input and the first output.
    `expected` are answers that were recorded elsewhere, one for each example row.

    Raises ModuleRefused with the sentence that helps, and PublishError where the version exists. Writes nothing then.
    """
    network = require_network(model)
    _require_options(batching, tolerance)
    form = _Form(
        name, version, _task_name(task), description or f"a {type(network).__name__} of torch", licence, _options(locals())
    )
    root = Path(models)
    require_free(form, root, replace=replace)
    with _as_served(network) as served:
        wrapped, parameters, notes = _wrap(served, task, scale, unscale)
        trial = _try(wrapped, parameters, example, task, inputs, lengths, batch_first, state)
        trial.notes += notes
        answers = None if expected is None else _read_expected(expected, trial)
        artifact, verdict, tried = _make(trial, batching, tolerance, answers)
        publication = _publication(form, trial, artifact, verdict, tried, task, scores or {})
        result = Published(None, _route(artifact), artifact.batching, verdict, (*trial.notes, *artifact.notes), tuple(tried))
        if dry_run:
            return result
        return _with_folder(result, _write(publication, form, root, replace_version=replace))


# ------------------------------------------------------------------------------------------------------------ the module


@contextmanager
def _as_served(model: nn.Module) -> Iterator[nn.Module]:
    """The module as it predicts: in eval mode, on the CPU, in float32. The caller's own is as it was afterwards."""
    first = next(model.parameters(), None)
    if first is not None and (first.device.type != "cpu" or any(p.dtype == torch.float64 for p in model.parameters())):
        yield copy.deepcopy(model).cpu().float().eval()
        return
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield model
    finally:
        for module, was_training in training.items():
            module.training = was_training


def _wrap(
    model: nn.Module, task: Literal["tensor"] | Forecast | Classify, scale: Any, unscale: Any
) -> tuple[nn.Module, list[str], list[str]]:
    """The module between its scalers and with the task's outputs, and the names of its arguments."""
    parameters = parameter_names(model)
    before = None if scale is None else read_scaler(scale, "scale")
    after = None if unscale is None else read_scaler(unscale, "unscale").inverse
    target_scale = None
    if isinstance(task, Forecast) and task.scaler is not None:
        before = read_scaler(task.scaler, "scaler")
        features = list(task.features) or [f"value_{index}" for index in range(len(before.factor))]
        targets = list(task.targets) or features
        target_scale = before.inverse.take([features.index(target) for target in targets])
    wrapped = model if before is None and after is None else Scaled(model, before, after)
    if isinstance(task, Forecast):
        num_targets = len(task.targets) or len(task.features) or 1
        wrapped = ForecastHead(wrapped, task.horizon, num_targets, task.quantiles, target_scale)
        parameters = ["history"]
    elif isinstance(task, Classify):
        wrapped = ClassifyHead(wrapped, len(task.labels), False)
        parameters = ["tokens", *parameters[1:]]
    return wrapped.eval() if wrapped is not model else model, parameters, []


def _try(
    model: nn.Module,
    parameters: list[str],
    example: Sequence[Any],
    task: Any,
    inputs: Mapping[str, Sequence[Axis]] | None,
    lengths: str | None,
    batch_first: bool,
    state: Mapping[str, str] | None,
) -> _Trial:
    """Read the example, run the module as it will be served, and refuse what no graph can serve."""
    if isinstance(example, np.ndarray | Tensor | str | Mapping) or not isinstance(example, Sequence) or len(example) < 2:
        raise ModuleRefused("example: expected a list of at least two rows, of different length, each without a batch axis")
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
    if isinstance(task, Forecast) and inputs is None:
        inputs = {"history": ("time", rows[0]["history"].shape[-1])}
    specs = read_axes(rows, inputs)
    _require_names(specs)
    subject = Subject(model, specs, rows, lengths, batch_first, parameters=parameters)
    _require_lengths(subject, inputs)
    if state:
        subject = _with_state(subject, state, given)
    first = _run_alone(subject)
    names = name_outputs(_innermost(model), first)
    names, subject = _name_states(subject, names, state or {})
    outputs, places = _read_outputs(subject, names)
    subject.batch_places = places
    trial = _Trial(subject, names, outputs)
    _require_same_twice(trial)
    _require_independent_rows(trial)
    return trial


def _innermost(model: nn.Module) -> nn.Module:
    while isinstance(model, Scaled):
        model = model.model
    return model


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
                    f"{where}: the length is frozen: example row 0 of {subject.num_steps(subject.rows[0])} steps works, row {number} of "
                    f"{subject.num_steps(row)} does not ({what})"
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


def _with_state(subject: Subject, state: Mapping[str, str], given: Mapping[str, NDArray[Any]]) -> Subject:
    """The arguments of state as inputs: their shapes are those of the example, of the outputs, or of the recurrent layer."""
    states: list[StateSpec] = []
    tuples: set[str] = set()
    recurrent = next((module for module in subject.model.modules() if isinstance(module, nn.RNNBase)), None)
    for argument, output in state.items():
        if argument in given:
            states.append(StateSpec(argument, output, argument, tuple(given[argument].shape)))
            continue
        if recurrent is None:
            raise ModuleRefused(
                f'state: the shape of "{argument}" is unknown: put it into the example rows, without the batch axis'
            )
        layers = recurrent.num_layers * (2 if recurrent.bidirectional else 1)
        hidden = (layers, recurrent.proj_size or recurrent.hidden_size)
        if isinstance(recurrent, nn.LSTM) and len(state) == 1:
            tuples.add(argument)
            sizes = [hidden, (layers, recurrent.hidden_size)]
        elif isinstance(recurrent, nn.LSTM) and argument.startswith("c"):
            sizes = [(layers, recurrent.hidden_size)]
        else:
            sizes = [hidden]
        suffixes = [""] if argument not in tuples else ["_h", "_c"]
        states += [StateSpec(f"{argument}{suffix}", output, argument, size) for suffix, size in zip(suffixes, sizes, strict=True)]
    changed = copy.copy(subject)
    changed.states, changed.tuples = tuple(states), frozenset(tuples)
    return changed


def _name_states(subject: Subject, names: Names, state: Mapping[str, str]) -> tuple[Names, Subject]:
    """Give every state its output's own name; one that is an input's too gets another."""
    if not state:
        return names, subject
    flat = _flat_names(names)
    taken = {spec.name for spec in subject.inputs} | {part.input for part in subject.states}
    renamed: dict[str, str] = {}
    states: list[StateSpec] = []
    for argument, output in state.items():
        parts = [part for part in subject.states if part.argument == argument]
        found = [name for name in flat if name == output or name.startswith(f"{output}_")]
        exact = [name for name in found if name == output]
        found = exact if exact and len(parts) == 1 else found
        if len(found) != len(parts):
            raise ModuleRefused(f'state: no output is called "{output}"; the outputs are {flat}')
        for part, name in zip(parts, found, strict=True):
            own = name if name not in taken else f"{part.input}_out"
            renamed[name] = own
            states.append(replace(part, output=own))
    changed = copy.copy(subject)
    changed.states = tuple(states)
    return _rename(names, renamed), changed


def _flat_names(names: Names) -> list[str]:
    if isinstance(names, dict):
        return [name for part in names.values() for name in _flat_names(part)]
    if isinstance(names, tuple):
        return [name for part in names for name in _flat_names(part)]
    return [names]


def _rename(names: Names, renamed: Mapping[str, str]) -> Names:
    if isinstance(names, dict):
        return {key: _rename(part, renamed) for key, part in names.items()}
    if isinstance(names, tuple):
        return tuple(_rename(part, renamed) for part in names)
    return renamed.get(names, names)


def _sizes(subject: Subject) -> list[tuple[int, int | None]]:
    """Rows and steps of three runs: more steps in the second, more rows in the third."""
    if not subject.is_open:
        return [(2, None), (2, None), (3, None)]
    lengths = sorted({subject.num_steps(row) for row in subject.rows})
    first = max(lengths[0], min(lengths[-1], 7))
    while first in (2, 3):
        first += 1
    return [(2, first), (2, first + 2), (3, first)]


def _read_outputs(subject: Subject, names: Names) -> tuple[tuple[GraphTensor, ...], dict[str, int]]:
    """The outputs' names, types and axes, and where they have the rows: by their sizes in three runs."""
    sizes = _sizes(subject)
    found: list[dict[str, Tensor]] = []
    for num_rows, num_steps in sizes:
        try:
            result = subject.call(subject.batch(num_rows, num_steps), [num_steps or 1] * num_rows)
        except Exception as exc:  # a module raises what it likes
            what = f"{type(exc).__name__}: {str(exc).splitlines()[0] if str(exc) else ''}"
            steps = "" if num_steps is None else f" of {num_steps} steps"
            frozen = "the length is frozen: " if num_steps else ""
            raise ModuleRefused(f"{_last_line(exc)}: {frozen}forward fails for {num_rows} rows{steps}: {what}") from exc
        found.append(flatten(names, result))
    outputs, places = [], {}
    open_steps = [number or 0 for _, number in sizes] if subject.is_open else None
    for name, first in found[0].items():
        if first.is_complex() or first.dtype in (torch.float16, torch.bfloat16):
            raise ModuleRefused(f'output "{name}" is {str(first.dtype).removeprefix("torch.")}')
        dims = list(zip(*(run[name].shape for run in found), strict=True))
        axes, place = shape_of(dims, [rows for rows, _ in sizes], open_steps)
        if place > 0:
            places[name] = place
        rest = [axis for index, axis in enumerate(axes) if index != place]
        outputs.append(GraphTensor(name, DATATYPE[canonical(first.dtype)], ("batch", *rest)))
    return tuple(outputs), places


def _require_same_twice(trial: _Trial) -> None:
    """Refuse a module that answers the same row in two ways; recording it first names the line."""
    subject = trial.subject
    num_rows, num_steps = _sizes(subject)[0]
    arrays, lengths = subject.batch(num_rows, num_steps), [num_steps or 1] * num_rows
    for rows, steps in _sizes(subject):
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
                f'two calls with the same row differ in "{apart[0]}": the module keeps state in {", ".join(kept)}: make it an argument '
                "and an output of forward, and name it by state="
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


def _require_independent_rows(trial: _Trial) -> None:
    """Refuse a module whose answer for a row depends on the other rows of its batch."""
    subject = trial.subject
    num_rows, num_steps = _sizes(subject)[2]
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
    return f'the answer "{output}" for a row depends on the other rows in its batch{reason}; batch_first=False is for rows along axis 1'


# ------------------------------------------------------------------------------------------------------------- the graph


def _make(
    trial: _Trial, batching: Wanted, tolerance: float, expected: Sequence[Mapping[str, NDArray[Any]]] | None
) -> tuple[Artifact, Verdict, list[str]]:
    """The first candidate that keeps the contract, and what stood in the way of those before it."""
    tried: list[str] = []
    last: Verdict | None = None
    for make in _candidates(trial, batching):
        try:
            artifact = make()
            verdict = verify(artifact, trial.subject, trial.names, tolerance=tolerance, expected=expected)
        except Untranslatable as exc:
            tried.append(f"not translated: {exc}" if not str(exc).startswith(EXPORTERS) else f"not exported: {exc}")
            continue
        if not verdict.broken:
            return artifact, verdict, tried
        tried.append(f"{_route(artifact)}, {artifact.batching} batches: {verdict.broken[0]}")
        last = verdict
        if any(check.name == "expected answers" for check in verdict.broken) and len(verdict.broken) == 1:
            raise ModuleRefused(f"the expected answers are not the module's: {verdict.broken[0]}")
    reason = "no graph keeps the contract" if last else "no way to a graph was found"
    raise ModuleRefused("\n  ".join([f"{reason}:", *tried]))


def _candidates(trial: _Trial, batching: Wanted) -> Iterator[Any]:
    subject = trial.subject
    exports = Exports(subject, trial.names, trial.outputs)
    if batching != "equal" or not subject.is_open:
        yield lambda: _translate(trial)
    for kind in ("ragged", "equal"):
        if batching not in ("auto", kind) or (kind == "equal" and not subject.is_open):
            continue
        for exporter in EXPORTERS:
            # Bound now: the loop goes on before the candidate is made.
            yield lambda exporter=exporter, kind=kind: _export(trial, exports, exporter, kind)


def _translate(trial: _Trial) -> Artifact:
    subject = trial.subject
    program = unify(trial.recordings)
    translation = translate(program, subject.graph_inputs(), [output.name for output in trial.outputs])
    model = translation.model
    opset = max(entry.version for entry in model.opset_import)
    return Artifact(model.SerializeToString(), translation.inputs, translation.outputs, "translate", "ragged", opset)


def _export(trial: _Trial, exports: Exports, exporter: Any, batching: Batching) -> Artifact:
    others = [output.name for output in trial.outputs if "other" in output.shape]
    if others:
        raise Untranslatable(
            f'{exporter} exporter: output "{others[0]}" has an axis whose size is neither the rows nor the steps'
        )
    return exports.artifact(exporter, batching)


def _route(artifact: Artifact) -> str:
    return "translated" if artifact.route == "translate" else f"exported ({', '.join(artifact.notes)})"


def _read_expected(expected: Sequence[Any], trial: _Trial) -> list[dict[str, NDArray[Any]]]:
    names = [output.name for output in trial.outputs if output.name not in {part.output for part in trial.subject.states}]
    if len(expected) != len(trial.subject.rows):
        raise ModuleRefused(f"expected: {len(expected)} answers for {len(trial.subject.rows)} example rows")
    read = []
    for answer in expected:
        given = (
            answer
            if isinstance(answer, Mapping)
            else dict(zip(names, answer if isinstance(answer, tuple) else (answer,), strict=False))
        )
        unknown = [name for name in given if name not in names]
        if unknown:
            raise ModuleRefused(f'expected: no output is called "{unknown[0]}"; the outputs are {names}')
        read.append({str(name): np.asarray(value) for name, value in given.items()})
    return read


# ------------------------------------------------------------------------------------------------------------ the folder


def _publication(
    form: _Form,
    trial: _Trial,
    artifact: Artifact,
    verdict: Verdict,
    tried: Sequence[str],
    task: Any,
    scores: Scores,
) -> Publication:
    states = [{"input": part.input, "output": part.output} for part in trial.subject.states]
    tensors = {
        "inputs": [_entry(tensor) for tensor in artifact.inputs],
        "outputs": [_entry(tensor) for tensor in artifact.outputs],
        "state": states,
    }
    block, files, instances, predictions = _example(trial, artifact, verdict, task)
    network = _innermost(trial.subject.model)
    facts = {
        "import": {"from": "torch", "class": type(network).__name__, "route": _route(artifact), "tried": list(tried)},
        "checks": {
            "min_length": verdict.min_length,
            "batching": artifact.batching,
            "rounding": verdict.rounding,
            **{
                check.name: {"error": float(f"{check.error:.3g}"), "allowed": float(f"{check.allowed:.3g}")}
                for check in verdict.checks
            },
        },
        "num_parameters": sum(parameter.numel() for parameter in network.parameters()),
    }
    return Publication(
        recipe=form,
        graph=artifact.graph,
        tensors=tensors,
        face=block,
        instances=instances,
        predictions=predictions,
        metrics=scores,
        baselines={},
        data=[],
        facts=facts,
        files=files,
        opset=artifact.opset,
    )


def _entry(tensor: GraphTensor) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}


def _example(
    trial: _Trial, artifact: Artifact, verdict: Verdict, task: Any
) -> tuple[dict[str, Any], dict[str, str], list[Any], list[Any]]:
    """The manifest's block, further files, and the example rows with the module's own answers."""
    subject = trial.subject
    reference = Reference(subject, trial.names, {output.name: output.shape for output in artifact.outputs})
    states = {part.output for part in subject.states}
    rows = subject.rows[:4]
    answers = [{name: value for name, value in reference.answer(row).items() if name not in states} for row in rows]
    if isinstance(task, Forecast):
        return _forecast_example(task, rows, answers, verdict)
    instances = [_plain(row) for row in rows]
    return {}, {}, instances, [_plain(answer) for answer in answers]


def _plain(values: Mapping[str, NDArray[Any]]) -> Any:
    """One tensor as nested lists, several as an object."""
    lists = {name: _numbers(array) for name, array in values.items()}
    return lists if len(lists) != 1 else next(iter(lists.values()))


def _numbers(array: NDArray[Any]) -> Any:
    if array.ndim:
        return [_numbers(part) for part in array]
    return float(f"{float(array):.{NUM_DIGITS}g}") if array.dtype.kind == "f" else array.item()


def _forecast_example(
    task: Forecast, rows: Sequence[Mapping[str, NDArray[Any]]], answers: Sequence[Mapping[str, NDArray[Any]]], verdict: Verdict
) -> tuple[dict[str, Any], dict[str, str], list[Any], list[Any]]:
    num_features = rows[0]["history"].shape[-1]
    features = list(task.features) or (["value"] if num_features == 1 else [f"value_{index}" for index in range(num_features)])
    targets = list(task.targets) or features
    longest = max(len(row["history"]) for row in rows)
    block = {
        "context_length": task.context_length or longest,
        "min_length": verdict.min_length,
        "horizon": task.horizon,
        "frequencies": list(task.frequencies),
        "season_length": task.season_length,
        "quantiles": list(task.quantiles),
        "point": "median" if task.quantiles else "mean",
        "features": features,
        "targets": targets,
    }
    instances = [{"history": _numbers(row["history"][:, 0] if num_features == 1 else row["history"])} for row in rows]
    predictions = [
        format_forecast({name: value[None] for name, value in answer.items()}, list(task.quantiles)) for answer in answers
    ]
    return block, {}, instances, predictions


def _write(publication: Publication, form: _Form, models: Path, *, replace_version: bool) -> Path:
    """Write the folder aside, let it answer its example through the service's own loader, and put it in place."""
    models.mkdir(parents=True, exist_ok=True)
    home = models / form.name
    number = form.version or (next_version(home) if home.exists() else 1)
    # A name that begins with a dot is no model: whoever lists the folders passes it over.
    with tempfile.TemporaryDirectory(dir=models, prefix=".new-") as aside:
        folder = write(replace(publication, recipe=replace(form, version=number)), Path(aside))
        _check_served(folder)
        home.mkdir(exist_ok=True)
        try:
            require_free(form, models, replace=replace_version)
            put_in_place(folder, home / str(number))
        except BaseException:
            if not any(home.iterdir()):
                home.rmdir()
            raise
    return home / str(number)


def _check_served(folder: Path) -> None:
    """Raise ModuleRefused unless the service, in a process of its own, serves the folder and answers its example."""
    home = str(Path(training.__file__).parent.parent)
    # Without the working folder on the path: a user's own "service" may lie there.
    command = [sys.executable, "-P", "-m", "service", "check", str(folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH", "")]))}
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
    if found.returncode:
        raise ModuleRefused(f"the service does not serve the folder: {(found.stdout + found.stderr).strip()[:500]}")


def _with_folder(result: Published, folder: Path) -> Published:
    return replace(result, folder=folder)


def _task_name(task: Any) -> str:
    if isinstance(task, Forecast):
        return "forecast"
    if isinstance(task, Classify):
        return "classify"
    if task != "tensor":
        raise ModuleRefused(f'task: expected "tensor", Forecast(...) or Classify(...), got {task!r}')
    return "tensor"


def _require_options(batching: str, tolerance: float) -> None:
    if batching not in ("auto", "ragged", "equal"):
        raise ModuleRefused(f'batching: expected "auto", "ragged" or "equal", got {batching!r}')
    if not 0 < tolerance < 1:
        raise ModuleRefused(f"tolerance: expected a number between 0 and 1, got {tolerance}")


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given, as JSON, for the manifest."""
    plain: dict[str, Any] = {
        "inputs": None,
        "lengths": None,
        "batch_first": True,
        "state": None,
        "batching": "auto",
        "tolerance": TOLERANCE,
    }
    kept = {name: given[name] for name, default in plain.items() if given[name] != default}

    def as_json(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: as_json(part) for key, part in value.items()}
        return list(value) if isinstance(value, tuple | list) else value

    return {name: as_json(value) for name, value in kept.items()}


__all__ = ["Classify", "Forecast", "Published", "publish"]
