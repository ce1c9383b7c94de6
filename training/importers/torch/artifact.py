"""A candidate for a model folder: a graph, what goes in and out, and how its rows may be batched. Makes none itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from training.importers.torch.calling import Arrays, Subject
from training.importers.torch.translate import LENGTHS, GraphTensor

Batching = Literal["ragged", "equal", "none"]
Route = Literal["translate", "export", "file"]


@dataclass(frozen=True)
class Artifact:
    """`graph` is a serialised ONNX model. "ragged": rows of any lengths share a run; "equal": rows of one length; "none":
    the graph goes through the rows of a run one by one, each as long as it is."""

    graph: bytes
    inputs: tuple[GraphTensor, ...]
    outputs: tuple[GraphTensor, ...]
    route: Route
    batching: Batching
    opset: int
    notes: tuple[str, ...] = ()


class GraphRun:
    """A graph in onnxruntime that answers rows given one by one."""

    def __init__(self, artifact: Artifact, subject: Subject) -> None:
        self.artifact = artifact
        self.subject = subject
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        self.session = onnxruntime.InferenceSession(artifact.graph, options, providers=["CPUExecutionProvider"])
        self.names = [output.name for output in self.session.get_outputs()]

    def run(self, batch: Mapping[str, NDArray[Any]]) -> Arrays:
        """The outputs for a batch of padded rows with their lengths."""
        feed = {entry.name: batch[entry.name] for entry in self.artifact.inputs}
        return dict(zip(self.names, self.session.run(None, feed), strict=True))

    def answer(self, rows: Sequence[Mapping[str, NDArray[Any]]], padding: float = 0.0, extra: int = 0) -> list[Arrays]:
        """The outputs for rows in one batch, each cut to its own length; `padding` fills up to `extra` steps more."""
        outputs = self.run(collate(self.subject, rows, padding, extra))
        lengths = [self.subject.num_steps(row) for row in rows]
        return [
            {entry.name: _cut(outputs[entry.name][number], entry, length) for entry in self.artifact.outputs}
            for number, length in enumerate(lengths)
        ]


def collate(
    subject: Subject, rows: Sequence[Mapping[str, NDArray[Any]]], padding: float = 0.0, extra: int = 0
) -> dict[str, NDArray[Any]]:
    """A batch of rows, filled behind each row's end; states that a row lacks are zero."""
    lengths = [subject.num_steps(row) for row in rows]
    batch: dict[str, NDArray[Any]] = {LENGTHS: np.array(lengths, np.int64)}
    longest = max(lengths) + extra
    for spec in subject.inputs:
        place = spec.time_axis
        padded = []
        for row in rows:
            array = row[spec.name]
            if place is not None and array.shape[place] < longest:
                width = [(0, 0)] * array.ndim
                width[place] = (0, longest - array.shape[place])
                number = padding if array.dtype.kind == "f" else array.max() if padding else 0
                array = np.pad(array, width, constant_values=number)
            padded.append(array)
        batch[spec.name] = np.stack(padded)
    for state in subject.states:
        zeros = np.zeros(state.axes, np.float32)
        batch[state.input] = np.stack([row.get(state.input, zeros) for row in rows])
    return batch


def _cut(row: NDArray[Any], entry: GraphTensor, length: int) -> NDArray[Any]:
    if "time" not in entry.shape:
        return row
    place = entry.shape.index("time") - 1
    return row[(slice(None),) * place + (slice(0, length),)]


def size(array: NDArray[Any]) -> float:
    """What an error of these numbers is measured against: sums of many terms cannot be better than their size."""
    largest = float(np.abs(array).max(initial=0.0)) if array.size else 0.0
    return max(1.0, largest) if math.isfinite(largest) else math.nan
