"""An ONNX file as a model folder: read, tried on rows, written rows first, verified, published; one function.

The contract is that of every import: the answer for a row is what the file's graph gives for that row alone, unpadded,
whatever batch the server puts it in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from training.export.publish import Publication, require_free
from training.importers.model import ModelImportError
from training.importers.onnx.darts import as_forecast, read_spec
from training.importers.onnx.graph_module import GraphModule
from training.importers.onnx.layout import find_roles, gives_probabilities
from training.importers.onnx.reading import Source
from training.importers.onnx.served_graph import Head, Way, make_artifact
from training.importers.onnx.trial import GraphTrial, Layout, answers_of, name_outputs_of, try_graph, try_layouts
from training.importers.torch.artifact import Artifact, Batching
from training.importers.torch.calling import Array, Arrays
from training.importers.torch.candidates import Wanted, read_expected
from training.importers.torch.checks import TOLERANCE, Verdict, verify
from training.importers.torch.errors import Untranslatable
from training.importers.torch.publishing import (
    NUM_EXAMPLES,
    Form,
    describe_folder,
    require_name,
    require_options,
    write_folder,
)
from training.importers.torch.tasks import Classify, Forecast, Lists, Task
from training.importers.torch.translate import GraphTensor

WAYS: tuple[tuple[Batching, Way], ...] = (
    ("ragged", "as in the file"),
    ("ragged", "with lengths"),
    ("equal", "as in the file"),
)
WAYS_OF_TASKS: tuple[tuple[Batching, Way], ...] = (*WAYS[:2], ("ragged", "row by row"))
"""A task's rows may have any length."""
BATCHES = {"ragged": "rows of any length", "equal": "rows of equal length"}
FIXED = "rows, all of the one length that the graph takes"


@dataclass(frozen=True)
class OnnxOptions:
    """How a file is imported; `lengths` and `state` name its inputs and outputs where they are not found by themselves."""

    task: Task = field(default_factory=Lists)
    lengths: str | None = None
    state: Mapping[str, str] | None = None
    time_first: bool = False
    batching: Wanted = "auto"
    tolerance: float = TOLERANCE
    description: str = ""
    licence: str = ""
    version: int | None = None
    replace: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class OnnxResult:
    """What came of an import: the folder (None in a dry run) and what was measured."""

    folder: Path | None
    source: Source
    artifact: Artifact
    verdict: Verdict
    notes: tuple[str, ...]
    tried: tuple[str, ...]
    """Ways to batch the rows that came before, and what stood in their way."""

    def __str__(self) -> str:
        signature = [f"{kind} {_word(tensor)}" for kind, tensors in self._tensors() for tensor in tensors]
        producer = f", by {self.source.producer}" if self.source.producer else ""
        is_open = any(isinstance(axis, str) for tensor in self.artifact.inputs for axis in tensor.shape[1:])
        batches = BATCHES[self.artifact.batching] if is_open else FIXED
        lines = [f"{self.folder or 'dry run'}: opset {self.source.opset}{producer}, batches of {batches}"]
        lines += [f"  {line}" for line in [*signature, *self.tried]]
        lines += [f"  {check.name:32} {check.error:8.1e}  (allowed {check.allowed:.0e})" for check in self.verdict.checks]
        lines.append(f"  shortest row {self.verdict.min_length}; one row {self.verdict.ms_per_row:.2f} ms")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def _tensors(self) -> list[tuple[str, Sequence[GraphTensor]]]:
        return [("input ", self.artifact.inputs), ("output", self.artifact.outputs)]


def import_onnx(
    source: Source,
    name: str,
    options: OnnxOptions,
    models: Path,
    *,
    example: Sequence[Any] | None = None,
    expected: Sequence[Any] | None = None,
) -> OnnxResult:
    """Publish an ONNX file that was read as `models/<name>/<version>`; one that darts wrote becomes a forecast.

    `example` are two or more rows without a batch axis, drawn at random where there are none; `expected` are answers to them
    that were recorded elsewhere. Raises ModelImportError or ModuleRefused that names what cannot be served, and PublishError
    where the version exists. Writes nothing then.
    """
    require_name(name)
    require_options(options.batching, options.tolerance)
    spec = read_spec(source)
    if spec is not None and not isinstance(options.task, Classify):
        source, forecast = as_forecast(source, spec, options.task if isinstance(options.task, Forecast) else None)
        options = changed(options, task=forecast)
    form = _form(source.path, name, options)
    require_free(form, models, replace=options.replace)
    if example is not None and len(example) < 2:
        raise ModelImportError("--example: expected two or more rows, each without a batch axis")
    task = options.task
    roles = find_roles(source, options.lengths, options.state)
    layout, rows = try_layouts(source, roles, _encoded(task, example), time_first=options.time_first)
    module = GraphModule(layout.opened.SerializeToString(), layout.inputs)
    module.output_axes = dict(layout.output_axes)
    trial, head = _try_task(layout, module, task, rows, roles)
    if isinstance(task, Forecast) and example is None and task.context_length is None and trial.subject.is_open:
        raise ModelImportError("--task forecast: the graph reads rows of any length: give --context-length, or rows by --example")
    answers = None if expected is None else read_expected(expected, trial)  # type: ignore[arg-type]  # it reads what both have
    artifact, verdict, tried = _verified(trial, head, options, answers)
    notes = [*source.notes, *layout.notes, *artifact.notes]
    result = OnnxResult(None, source, artifact, verdict, tuple(notes), tuple(tried))
    if options.dry_run:
        return result
    publication = _publication(form, trial, head, result, example if example is not None else _first_inputs(rows))
    return changed(result, folder=write_folder(publication, form, models, replace=options.replace))


# ------------------------------------------------------------------------------------------------------------ the task


def _encoded(task: Task, example: Sequence[Any] | None) -> Sequence[Any] | None:
    """The rows of the graph: texts become token ids."""
    if not isinstance(task, Classify):
        return example
    if example is None:
        raise ModelImportError("--task classify needs --example with two or more texts")
    wrong = [row for row in example if not isinstance(row, str)]
    if wrong:
        raise ModelImportError("--example: a classifier's rows are texts, which the tokenizer cuts into ids")
    return [np.array(task.encode(text), np.int64) for text in example]


def _try_task(layout: Layout, module: GraphModule, task: Task, rows: list[Arrays], roles: Any) -> tuple[GraphTrial, Head]:
    """The graph within the task's module, which a served graph is compared with."""
    if isinstance(task, Lists):
        parameters = [entry.name for entry in layout.inputs]
        return try_graph(layout, module, name_outputs_of(module), rows, roles, parameters), Head(task)
    if len(layout.specs) != 1:
        raise ModelImportError(f"--task {task.name}: the graph reads {len(layout.specs)} inputs, the task gives it one")
    (name,) = rows[0]
    values = [row[name] for row in rows]
    num_values = _count_values(module, values[0])
    wrapped: nn.Module
    if isinstance(task, Classify):
        if num_values != len(task.labels) and not (num_values == 1 and len(task.labels) == 2):
            raise ModelImportError(f"--labels: {len(task.labels)} labels, the graph gives {num_values} numbers for a row")
        known = gives_probabilities(layout.source) if task.are_probabilities is None else task.are_probabilities
        task = changed(task, are_probabilities=task.look(module, values) if known is None else known)
        wrapped, _, _ = task.prepare(module, [])
        names: Any = {"probabilities": "probabilities"}
        own, head = "tokens", Head(task, num_values=num_values, input_name="tokens")
    else:
        assert isinstance(task, Forecast)
        wrapped, _, _ = task.prepare(module, values)
        _, targets = task.names(values[0].shape[1] if values[0].ndim > 1 else 1)
        needed = task.horizon * len(targets) * max(1, len(task.quantiles))
        if num_values != needed:
            what = f"{task.horizon} steps of {len(targets)} targets" + (
                f" at {len(task.quantiles)} quantiles" if task.quantiles else ""
            )
            raise ModelImportError(f"--horizon: {what} are {needed} numbers, the graph gives {num_values} for a row")
        names = {"forecast": "forecast"} | ({"quantiles": "quantiles"} if task.quantiles else {})
        own, head = "history", Head(task, len(targets), num_values, "history")
    renamed = [{own: value} for value in values]
    return try_graph(layout, wrapped, names, renamed, roles, [own]), head


def _first_inputs(rows: Sequence[Arrays]) -> list[Array]:
    return [next(iter(row.values())) for row in rows]


def _count_values(module: GraphModule, row: Array) -> int:
    """How many numbers the graph's first output has for a row."""
    result = module(torch.from_numpy(row[None]))
    first = result[0] if isinstance(result, tuple) else result
    return int(first[0].numel())


# ------------------------------------------------------------------------------------------------------------ candidates


def _ways(head: Head, *, is_open: bool, one_by_one: bool) -> Sequence[tuple[Batching, Way]]:
    """What is tried, in order."""
    if one_by_one:
        return [("equal" if is_open and head.is_plain else "ragged", "row by row")]
    return WAYS if head.is_plain else WAYS_OF_TASKS


def _verified(trial: GraphTrial, head: Head, options: OnnxOptions, expected: Any) -> tuple[Artifact, Verdict, list[str]]:
    """The first way to batch the rows that keeps the contract, and what stood in the way of those before it."""
    tried: list[str] = []
    is_open = trial.subject.is_open
    one_by_one = options.batching == "none"
    for batching, kind in _ways(head, is_open=is_open, one_by_one=one_by_one):
        if one_by_one:
            pass
        elif is_open:
            if options.batching not in ("auto", batching):
                continue
            if trial.layout.is_single and (batching, kind) not in (("equal", "as in the file"), ("ragged", "row by row")):
                continue
        elif (batching, kind) != ("ragged", "as in the file"):
            continue
        way = f"not batches of {BATCHES[batching]} {kind}"
        try:
            artifact = make_artifact(trial, head, batching, kind)
            verdict = verify(artifact, trial.subject, trial.names, tolerance=options.tolerance, expected=expected, source="file")
        except Untranslatable as exc:
            tried.append(f"{way}: {exc}")
            continue
        broken = verdict.broken
        if not broken:
            return artifact, verdict, tried
        if [check.name for check in broken] == ["expected answers"]:
            raise ModelImportError(f"the expected answers are not the file's: {broken[0]}")
        tried.append(f"{way}: {broken[0]}")
    raise ModelImportError("\n  ".join(["no graph keeps the contract:", *tried]))


# ------------------------------------------------------------------------------------------------------------ the folder


def _form(file: Path, name: str, options: OnnxOptions) -> Form:
    given = {
        "lengths_input": options.lengths,
        "state": dict(options.state) if options.state else None,
        "time_first": options.time_first or None,
        "batching": options.batching if options.batching != "auto" else None,
        "tolerance": options.tolerance if options.tolerance != TOLERANCE else None,
    }
    about = options.description or f"imported from {file.name}"
    shown = {key: value for key, value in given.items() if value is not None}
    return Form(name, options.version, options.task.name, about, options.licence, shown)


def _publication(form: Form, trial: GraphTrial, head: Head, result: OnnxResult, example: Sequence[Any]) -> Publication:
    subject, verdict, artifact = trial.subject, result.verdict, result.artifact
    rows = subject.rows[:NUM_EXAMPLES]
    if not subject.is_open:
        # A task calls the fewest steps it takes; here they are the only ones.
        verdict = changed(verdict, min_length=subject.rows[0][subject.inputs[0].name].shape[0])
    return describe_folder(
        form,
        subject,
        artifact,
        result.verdict,
        head.task.word(example, rows, answers_of(trial, rows), verdict),
        origin={"from": "onnx", "file": result.source.path.name, "producer": result.source.producer},
        tried=result.tried,
    )


def _word(tensor: GraphTensor) -> str:
    return f"{tensor.name} {tensor.datatype} [{', '.join(str(axis) for axis in tensor.shape)}]"
