"""What a task is: instances ↔ tensors of one model (`Task`), and all else that the service knows of it (`TaskDefinition`).

Pure: no clock, no disk, no threads. A task never runs a graph; it yields what should be run and is sent the outputs, so
that a forecast beyond the model's horizon, which needs several runs, reads from top to bottom and is tested without one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from pydantic import BaseModel

from service.errors import InferenceFailed, InvalidInput, InvalidReason
from service.manifest import Manifest, Spec
from service.runtime.tensors import LENGTHS, Array, Item, Signature, Tensors, TensorSpec, is_all_finite
from service.tasks.measures import Measures, row_means
from service.tasks.tables import TableError, TableForm, TableOptions

Prediction = Any
"""A JSON value, as POST /predict answers it; lists of numbers may be arrays (C-contiguous, finite)."""

Steps = Generator[list[Item], list[Tensors], Sequence[Prediction]]
"""Yields items to run, is sent their prepared outputs in order, perhaps several times; returns the predictions in order."""

GroupRows = Callable[[Sequence[int]], list[list[int]]]
"""The lengths of a request's rows → groups of row numbers; each group is worth a run of its own, and fits into a batch."""

ReadFile = Callable[[str], bytes]
"""The content of a file of the model folder. Raises FolderError when it cannot be read, or lies outside."""

STATE = "state"
"""The field of an instance, and of its prediction, that carries the state of a sequence."""
IS_FINITE = "/is_finite"
"""What `prepare` adds to the outputs of a batch in which something is not finite: BOOL [batch]."""

# Above these, encoding takes milliseconds and belongs on a thread: 64 histories of 336 values need about 0.5 ms.
HEAVY_NUM_INSTANCES = 64
HEAVY_SIZE = 20_000
HEAVY_NUM_ROWS = 256
"""Instead of HEAVY_NUM_INSTANCES, where instances are read and written all at once."""


class Step(NamedTuple):
    """Where a request stands: the items to run next, or None and its predictions."""

    items: list[Item] | None
    predictions: Sequence[Prediction]


def advance(steps: Steps, outputs: list[Tensors] | None) -> Step:
    """Take a task one step on with the outputs of the items that it yielded last, None at the beginning."""
    try:
        # A generator that has not begun takes only None.
        return Step(next(steps) if outputs is None else steps.send(outputs), [])
    except StopIteration as stop:
        return Step(None, stop.value)


class Task(ABC):
    """What instances mean to one model."""

    horizon: int | None = None
    """How many steps of a series one run forecasts; None where there is no such thing."""
    labels: Sequence[str] = ()
    """The names of the classes of a classifier."""
    reads_one_way: bool = False
    """Whether no node of the graph reads a sequence from its end; set by what opened the graph."""

    def __init__(self, signature: Signature) -> None:
        self.signature = signature

    @abstractmethod
    def run_steps(
        self,
        instances: Sequence[object],
        parameters: Mapping[str, object],
        group: GroupRows,
        *,
        is_plain: bool = False,
        steps_seen: Sequence[int] | None = None,
    ) -> Steps:
        """Predict all instances. Nothing is checked before the first step.

        `group` says which rows share an item. `is_plain` says that the instances hold no true, false and null
        (`wire.is_plain`): they need not be looked for. With `steps_seen`, each instance is the next piece of a sequence, which
        had so many steps before: all of it is read, and items say which instances they are; who runs them feeds the states
        (see `why_not_streaming`). Raises InvalidInput that names the instance and the place in it,
        MalformedRequest for unknown fields, and InferenceFailed when an output is not finite.
        """

    def prepare(self, outputs: Tensors) -> Tensors:
        """What can be done to the outputs of a whole batch at once, on the thread that ran it."""
        return with_finite_rows(outputs, list(outputs.values()))

    def why_not_streaming(self) -> str:
        """Why instances cannot be pieces of sequences, in words that follow "the model cannot stream"; empty where they can."""
        return "its task is not made for it"

    def with_state(self, prediction: Prediction, state: object) -> Prediction:
        """A prediction that holds the state of its sequence beside what it is."""
        return {**prediction, STATE: state}

    def is_heavy(self, instances: Sequence[object], parameters: Mapping[str, object]) -> bool:
        """Whether encoding or decoding these would hold up an event loop."""
        return len(instances) > HEAVY_NUM_INSTANCES

    def count_rows(self, instances: Sequence[object], parameters: Mapping[str, object]) -> int:
        """How many rows these are for the graph, where parameters make more of them. Raises what `run_steps` does at first."""
        return len(instances)

    def encode_tensors(self, tensors: Tensors, steps_seen: int | None = None) -> Tensors:
        """The graph's inputs for the public tensors of a request (see `TaskDefinition.public_tensors`).

        With `steps_seen`, rows are pieces of sequences, as in `run_steps`, which had at least so many steps before.
        Only names and datatypes were compared yet. Raises InvalidInput that names the instance (row).
        """
        return tensors

    def decode_tensors(self, outputs: Tensors) -> Tensors:
        """The public tensors for the graph's outputs, a row of axis 0 each; all of them finite."""
        state = self.signature.state_outputs
        return {name: array for name, array in outputs.items() if name not in state}

    def measure(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Measures:
        """What is watched of the rows of a batch, as the graph took and gave them: the means of its tensors of numbers."""
        lengths = inputs.get(LENGTHS) if self.signature.is_ragged else None
        state = self.signature.state_inputs | self.signature.state_outputs
        found: Measures = {}
        for kind, specs, tensors in (("input", self.signature.inputs, inputs), ("output", self.signature.outputs, outputs)):
            for spec in specs:
                if spec.dtype.kind == "f" and spec.name not in state and spec.name in tensors:
                    found[f"{kind}.{spec.name}"] = row_means(tensors[spec.name], lengths, spec.time_axis)
        return found

    def open_table(self, options: TableOptions) -> TableForm:
        """How the rows of one file are read as instances of this model, and its predictions written. Raises TableError."""
        raise TableError("models of this task have no form as a table")

    def describe(self) -> dict[str, Any]:
        """What `GET /models/{name}` says under the name of the task; empty where there is nothing to say."""
        return {}

    def check_graph(self, run: Callable[[Tensors], Tensors]) -> list[str]:
        """What is wrong with the graph by this task's own runs, which the example need not show; `run` raises ServiceError."""
        return []


@dataclass(frozen=True)
class Endpoint:
    """A route for one task, whose requests may leave the model out. What OpenAPI says of it stands here too."""

    path: str
    task: str
    summary: str
    description: str
    purpose: str | None = None
    """Which models of the task may answer where none is named (see `TaskDefinition.serves`); None: all."""
    default_setting: str | None = None
    """The field of the settings that names the model for requests that name none."""
    instance: Any = Any
    """The type of one instance, for OpenAPI; the task itself checks field by field."""
    parameters: Any = dict[str, Any]
    prediction: Any = Any
    examples: tuple[Mapping[str, Any], ...] = ()
    """Whole requests, for OpenAPI."""

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True)
class Criterion:
    """What of a request decides which model answers it: the values of one field, such as `frequency`."""

    field: str
    values: tuple[str, ...]
    reason: InvalidReason = "shape"
    """What is wrong with a request that no model fits."""
    is_preference: bool = False
    """Whether a request that no model fits is answered as if there were no criterion, and not refused."""

    def __str__(self) -> str:
        return f"{self.field} {', '.join(repr(value[:60]) for value in self.values[:3])}"


@dataclass(frozen=True)
class PublicTensors:
    """What protocols of named tensors show of a model, in place of its graph's own inputs and outputs."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class TaskDefinition:
    """All that the service knows of one task. A file of this folder defines one as `TASK`; `registry.py` gathers them."""

    name: ClassVar[str]
    """As manifests, requests and metrics call it."""
    spec: ClassVar[type[Spec] | None] = None
    """The manifest's block of this name; None: the task has none."""
    endpoints: ClassVar[tuple[Endpoint, ...]] = ()
    description: ClassVar[type[BaseModel] | None] = None
    """What `Task.describe` returns, for OpenAPI."""

    def configure(self, settings: Mapping[str, object]) -> Self:
        """This definition under an operator's settings, by the names of their fields."""
        return self

    def mismatches(self, manifest: Manifest) -> list[str]:
        """Where the tensors of a manifest are not what the task needs, in sentences."""
        return []

    def build(self, manifest: Manifest, signature: Signature, read_file: ReadFile) -> Task:
        """The task of one model. Raises FolderError for a file that it needs and cannot use."""
        raise NotImplementedError

    def longest_row(self, manifest: Manifest) -> int | None:
        """How many time steps a row may have; None where the manifest does not say."""
        return None

    def public_tensors(self, manifest: Manifest, signature: Signature) -> PublicTensors:
        """The tensors that a client names: without recurrent state, and in the task's own terms."""
        return PublicTensors(
            tuple(spec for spec in signature.inputs if spec.name not in signature.state_inputs),
            tuple(spec for spec in signature.outputs if spec.name not in signature.state_outputs),
        )

    def example_instance(self, manifest: Manifest) -> object | None:
        """An instance that shows what the model is for, as the start message prints it; None: there is nothing short to show."""
        return None

    def upgrade_predictions(self, predictions: list[Any]) -> list[Any]:
        """The predictions of a folder's `example.json` as they are written today."""
        return predictions

    def serves(self, manifest: Manifest, purpose: str) -> bool:
        """Whether a model of this task is meant for the purpose of an endpoint."""
        return True

    def is_special(self, manifest: Manifest) -> bool:
        """Whether the model answers requests that name no model only where no other does.

        Such are those made for sequences in pieces, and those that need more of a request than others.
        """
        return False

    def criterion(self, instances: Sequence[object], parameters: Mapping[str, object]) -> Criterion | None:
        """What of a request decides which model answers it; None: nothing.

        Takes any JSON, and raises InvalidInput for what no model takes.
        """
        return None

    def fits(self, manifest: Manifest, criterion: Criterion) -> bool:
        """Whether the model can answer requests of this criterion."""
        return True


def finite_rows(arrays: Sequence[Array]) -> Array | None:
    """Which rows (axis 0) hold only finite numbers; None if all do, which is the usual and cheap case."""
    if all(array.dtype.kind != "f" or is_all_finite(array) for array in arrays):
        return None
    rows = [np.isfinite(array).reshape(len(array), -1).all(axis=1) for array in arrays if array.dtype.kind == "f"]
    is_finite: Array = np.logical_and.reduce(rows)
    return is_finite


def with_finite_rows(outputs: Tensors, checked: Sequence[Array]) -> Tensors:
    """The outputs, with `IS_FINITE` beside them where one of the checked arrays holds a number that is not finite."""
    is_finite = finite_rows(checked)
    return outputs if is_finite is None else {**outputs, IS_FINITE: is_finite}


def expect_finite(output: Tensors, instances: Sequence[int]) -> None:
    """Raise InferenceFailed that names the first of these instances whose row is not finite, as `prepare` found it."""
    is_finite = output.get(IS_FINITE)
    if is_finite is None or is_finite.all():
        return
    row = int(np.flatnonzero(~is_finite)[0])
    names = [name for name, array in output.items() if array.dtype.kind == "f" and not np.isfinite(array[row]).all()]
    raise InferenceFailed(
        f'instance {instances[row]}: the model\'s output "{names[0]}" is not finite', instance=instances[row], output=names[0]
    )


def expect_instances(instances: Sequence[object]) -> None:
    """Raise InvalidInput where there are none."""
    if not instances:
        raise InvalidInput("instances: expected at least one, got none", where="instances", found=0, expected="at least one")
