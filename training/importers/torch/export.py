"""The exporters of torch as a second way to a graph, for modules that the translator has no rule for.

Torch's exporters freeze what they cannot see; what comes out is a candidate like any other, and checked as one.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import onnx
import torch
from torch import Tensor, nn

from training.importers.torch.artifact import Artifact, Batching
from training.importers.torch.calling import Names, Subject, flatten, structure
from training.importers.torch.errors import Untranslatable
from training.importers.torch.one_row import loop_over_rows
from training.importers.torch.translate import LENGTHS, STEPS, GraphTensor
from training.importers.torch.writer import DATATYPE

Exporter = Literal["dynamo", "torchscript"]
EXPORTERS: tuple[Exporter, ...] = ("dynamo", "torchscript")
OTHER = "other"
"""The name, or its beginning, of an output's axis whose size follows from the steps, as every second of them."""
OPSET = 18


class Exports:
    """What the exporters write of a module. Each is run once where the graph is the same for all ways to batch its rows."""

    def __init__(self, subject: Subject, names: Names, outputs: Sequence[GraphTensor]) -> None:
        self.subject, self.names, self.outputs = subject, names, outputs
        self._known: dict[Any, bytes | Untranslatable] = {}

    def artifact(self, exporter: Exporter, batching: Batching) -> Artifact:
        """The graph with its axes declared; of one row in a loop over the rows, where the module takes one at a time.

        Raises Untranslatable with the first line of what the exporter says.
        """
        key = (exporter, batching if self.subject.lengths_argument is not None else None)
        if key not in self._known:
            try:
                self._known[key] = _export(self.subject, self.names, exporter, batching, self.outputs)
            except Untranslatable as exc:
                self._known[key] = exc
        known = self._known[key]
        if isinstance(known, Untranslatable):
            raise known
        model = onnx.load_from_string(known)
        if self.subject.takes_one_row:
            return _one_row_artifact(model, self.subject, self.outputs, exporter)
        return _artifact(model, self.subject, batching, self.outputs, exporter)


def _input_names(subject: Subject, batching: Batching) -> list[str]:
    names = [entry.name for entry in subject.graph_inputs() if entry.name != LENGTHS]
    takes_lengths = batching == "ragged" and subject.lengths_argument is not None and not subject.takes_one_row
    return [*names, LENGTHS] if takes_lengths else names


def _export(subject: Subject, names: Names, exporter: Exporter, batching: Batching, outputs: Sequence[GraphTensor]) -> bytes:
    adapter = _Adapter(subject, names, batching, outputs)
    entries = [entry for entry in subject.graph_inputs() if entry.name != LENGTHS]
    num_steps = None if not subject.is_open else max(subject.num_steps(row) for row in subject.rows) + 2
    arrays = subject.batch(1 if subject.takes_one_row else 2, num_steps)
    example = [torch.from_numpy(arrays[entry.name]) for entry in entries]
    input_names = _input_names(subject, batching)
    if LENGTHS in input_names:
        example.append(torch.full((2,), num_steps or 1, dtype=torch.int64))
    axes = {entry.name: entry.axes for entry in entries} | {LENGTHS: ("batch",)}
    output_names = [output.name for output in outputs]
    with tempfile.TemporaryDirectory() as folder, quiet():
        path = Path(folder) / "model.onnx"
        options: dict[str, Any] = {"input_names": input_names, "output_names": output_names, "opset_version": OPSET}
        if exporter == "dynamo":
            dims = {"batch": torch.export.Dim("batch", min=1, max=4096), "time": torch.export.Dim("steps", min=1, max=65536)}
            if subject.takes_one_row:
                del dims["batch"]
            shapes = tuple({place: dims[axis] for place, axis in enumerate(axes[name]) if axis in dims} for name in input_names)
            options |= {"dynamo": True, "dynamic_shapes": (shapes,), "external_data": False}
        else:
            open_axes = {
                name: {place: axis for place, axis in enumerate(axes[name]) if isinstance(axis, str)} for name in input_names
            }
            shapes_of = {output.name: output.shape for output in outputs}
            first = 1 if subject.takes_one_row else 0  # outputs for one row have no axis for it
            open_axes |= {
                name: {place: axis for place, axis in enumerate(shape[first:]) if isinstance(axis, str)}
                for name, shape in shapes_of.items()
            }
            if subject.takes_one_row:
                open_axes = {
                    name: {place: axis for place, axis in own.items() if axis != "batch"} for name, own in open_axes.items()
                }
            options |= {"dynamo": False, "dynamic_axes": open_axes}
        try:
            torch.onnx.export(adapter, tuple(example), str(path), **options)
            return path.read_bytes()
        except Exception as exc:  # exporters raise what they like
            raise Untranslatable(f"{exporter} exporter: {first_line(exc)}") from exc


def first_line(exc: BaseException) -> str:
    """What the error behind a long error begins with, without colours."""
    while exc.__cause__ is not None:
        exc = exc.__cause__
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(exc))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[0] if lines else type(exc).__name__)[:200]


class _Adapter(nn.Module):
    """The module with the graph's inputs, rows first, and its outputs rows first in a flat tuple."""

    def __init__(self, subject: Subject, names: Names, batching: Batching, outputs: Sequence[GraphTensor]) -> None:
        super().__init__()
        self._outputs = outputs
        self.model = subject.model
        self._subject = subject
        self._names = names
        self._is_equal = batching == "equal" or subject.takes_one_row

    def forward(self, *given: Tensor) -> Any:
        entries = [entry for entry in self._subject.graph_inputs() if entry.name != LENGTHS]
        tensors: dict[str, Tensor] = {}
        for entry, tensor in zip(entries, given, strict=False):
            order = entry.order
            tensors[entry.name] = tensor if order == tuple(range(tensor.dim())) else tensor.permute(*order)
        if self._subject.lengths_argument is not None:
            if self._is_equal:
                spec = next(spec for spec in self._subject.inputs if spec.time_axis is not None)
                first = given[[entry.name for entry in entries].index(spec.name)]
                tensors[LENGTHS] = first.new_ones(first.shape[0], dtype=torch.int64) * first.shape[1 + (spec.time_axis or 0)]
            else:
                tensors[LENGTHS] = given[-1]
        args, kwargs = self._subject.arguments(tensors)
        outputs = flatten(self._names, structure(self.model(*args, **kwargs)))
        places = self._subject.batch_places
        if self._subject.takes_one_row:
            ranks = {output.name: len(output.shape) - 1 for output in self._outputs}
            return tuple(
                value if value.dim() == ranks[name] else value.select(places.get(name, 0), 0) for name, value in outputs.items()
            )
        return tuple(value.movedim(places.get(name, 0), 0) for name, value in outputs.items())


def _artifact(
    model: Any,
    subject: Subject,
    batching: Batching,
    outputs: Sequence[GraphTensor],
    exporter: Exporter,
) -> Artifact:
    input_names = _input_names(subject, batching)
    axes = {entry.name: entry.axes for entry in subject.graph_inputs()} | {LENGTHS: ("batch",)}
    found = {entry.name for entry in model.graph.input}
    is_equal = batching == "equal"

    def declared_shape(axes: Sequence[int | str]) -> tuple[int | str, ...]:
        return tuple(STEPS if axis == "time" and is_equal else axis for axis in axes)

    inputs = []
    for name in input_names:
        if name not in found:
            raise Untranslatable(f'{exporter} exporter: the graph does not read input "{name}"')
        inputs.append(GraphTensor(name, _input_datatype(subject, name), declared_shape(axes[name])))
    declared = tuple(GraphTensor(output.name, output.datatype, declared_shape(output.shape)) for output in outputs)
    _declare(model.graph.input, inputs, exporter)
    _declare(model.graph.output, declared, exporter)
    opset = _require_opset(model, exporter)
    if not is_equal and subject.is_open and LENGTHS not in input_names:
        # The service gives the lengths of ragged rows; this graph has no use for them.
        model.graph.input.append(onnx.helper.make_tensor_value_info(LENGTHS, onnx.TensorProto.INT64, ["batch"]))
        inputs.append(GraphTensor(LENGTHS, "INT64", ("batch",)))
    return Artifact(model.SerializeToString(), tuple(inputs), declared, "export", batching, opset, (f"{exporter} exporter",))


def _one_row_artifact(model: Any, subject: Subject, outputs: Sequence[GraphTensor], exporter: Exporter) -> Artifact:
    entries = [entry for entry in subject.graph_inputs() if entry.name != LENGTHS]
    inputs = [GraphTensor(entry.name, _input_datatype(subject, entry.name), entry.axes) for entry in entries]
    if subject.is_open:
        inputs.append(GraphTensor(LENGTHS, "INT64", ("batch",)))
    opset = _require_opset(model, exporter)
    graph = loop_over_rows(model, inputs, outputs).SerializeToString()
    return Artifact(graph, tuple(inputs), tuple(outputs), "export", "none", opset, (f"{exporter} exporter",))


def _input_datatype(subject: Subject, name: str) -> str:
    kind = next((spec.dtype.kind for spec in subject.inputs if spec.name == name), "i" if name == LENGTHS else "f")
    return "INT64" if kind in ("i", "u") else "BOOL" if kind == "b" else "FP32"


def _require_opset(model: Any, exporter: Exporter) -> int:
    """The version of ONNX's operators. Raises Untranslatable where the graph has others."""
    own = ("", "ai.onnx", "pkg.onnxscript.torch_lib.common")
    if any(opset.domain not in own for opset in model.opset_import):
        raise Untranslatable(f"{exporter} exporter: operators of a domain that is not ONNX's")
    return max(int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def _declare(entries: Any, tensors: Sequence[GraphTensor], exporter: Exporter) -> None:
    """Write the open axes into the graph under our names; one that the exporter froze stays a number, and is found out."""
    by_name = {tensor.name: tensor for tensor in tensors}
    for entry in entries:
        tensor = by_name.get(entry.name)
        if tensor is None or len(entry.type.tensor_type.shape.dim) != len(tensor.shape):
            continue
        for dim, axis in zip(entry.type.tensor_type.shape.dim, tensor.shape, strict=True):
            if isinstance(axis, str) and dim.dim_value:
                raise Untranslatable(f'{exporter} exporter: it froze the axis {axis} of "{entry.name}" at {dim.dim_value}')
            if isinstance(axis, str):
                dim.dim_param = axis
            else:
                dim.dim_value = axis


def shape_of(dims: Sequence[Sequence[int]], batch: Sequence[int], steps: Sequence[int] | None) -> tuple[list[int | str], int]:
    """Names of an output's axes by its sizes in several runs, and which of them is the batch."""
    names: list[int | str] = []
    for sizes in dims:
        if len(set(sizes)) == 1:
            names.append(int(sizes[0]))
        elif tuple(sizes) == tuple(batch):
            names.append("batch")
        elif steps is not None and tuple(sizes) == tuple(steps):
            names.append("time")
        else:
            names.append(OTHER)
    place = names.index("batch") if "batch" in names else -1
    return names, place


def datatype_of(tensor: Tensor) -> str:
    """The datatype that an output has in a graph."""
    from training.importers.torch.axes import canonical

    return DATATYPE[canonical(tensor.dtype)]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Exporters print and warn of what the checks measure; the older one prints past Python's own streams."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export")]
    levels = [logger.level for logger in loggers]
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        for number in (1, 2):
            os.dup2(nowhere, number)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)
        os.close(nowhere)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
