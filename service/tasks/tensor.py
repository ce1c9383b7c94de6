"""Nested lists ↔ tensors, for graphs that no richer task describes. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from service.errors import InvalidInput
from service.manifest import Manifest
from service.runtime.tensors import (
    Array,
    Item,
    Signature,
    Tensors,
    TensorSpec,
    batch_key,
    check,
    collate,
    make_item,
    num_steps,
)
from service.tasks.base import (
    HEAVY_NUM_INSTANCES,
    HEAVY_SIZE,
    STATE,
    GroupRows,
    Prediction,
    ReadFile,
    Steps,
    Task,
    TaskDefinition,
    expect_finite,
    expect_instances,
    with_finite_rows,
)
from service.tasks.nested_lists import parse_row
from service.tasks.refusals import refuse_fields, refuse_missing, refuse_parameters, refuse_type
from service.tasks.tables import Columns, RowForm, TableOptions


class TensorTask(Task):
    """Nested lists in, nested lists out. One instance is one row of the batch."""

    @cached_property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What a request gives: `lengths` follows from the rows, state begins with zeros."""
        return tuple(spec for spec in self.signature.inputs if not self.signature.may_lack(spec.name))

    @cached_property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What a prediction holds: no state."""
        return tuple(spec for spec in self.signature.outputs if spec.name not in self.signature.state_outputs)

    def is_heavy(self, instances: Sequence[object], parameters: Mapping[str, object]) -> bool:
        return len(instances) > HEAVY_NUM_INSTANCES or sum(map(_estimate_size, instances)) > HEAVY_SIZE

    def why_not_streaming(self) -> str:
        return ""

    def with_state(self, prediction: Prediction, state: object) -> Prediction:
        values = prediction if len(self.outputs) != 1 else {self.outputs[0].name: prediction}
        return {**values, STATE: state}

    def run_steps(
        self,
        instances: Sequence[object],
        parameters: Mapping[str, object],
        group: GroupRows,
        *,
        is_plain: bool = False,
        steps_seen: Sequence[int] | None = None,
    ) -> Steps:
        rows = self.encode(instances, parameters)
        lengths = [num_steps(row, self.signature) for row in rows]
        alike: dict[tuple[int, ...], list[int]] = {}
        for index, row in enumerate(rows):
            key = batch_key(row, self.signature) or ((lengths[index],) if not self.signature.is_ragged else ())
            alike.setdefault(key, []).append(index)
        groups = [
            [indices[number] for number in numbers]
            for indices in alike.values()
            for numbers in group([lengths[index] for index in indices])
        ]
        outputs = yield [self._collate([rows[index] for index in indices], indices) for indices in groups]
        predictions: list[Prediction] = [None] * len(rows)
        for indices, output in zip(groups, outputs, strict=True):
            expect_finite(output, indices)
            for number, index in enumerate(indices):
                predictions[index] = self.decode({name: array[number] for name, array in output.items()}, lengths[index])
        return predictions

    def open_table(self, options: TableOptions) -> RowForm:
        """A column of nested lists for each input, and one for each output."""
        return RowForm([spec.name for spec in self.inputs], options, self.run_steps, self._write_columns)

    def _write_columns(self, predictions: Sequence[Prediction]) -> Columns:
        names = [spec.name for spec in self.outputs]
        rows = predictions if len(names) != 1 else [{names[0]: prediction} for prediction in predictions]
        return {name: [_to_lists(row[name]) for row in rows] for name in names}

    def prepare(self, outputs: Tensors) -> Tensors:
        """The outputs of a prediction, without the states."""
        kept = {spec.name: outputs[spec.name] for spec in self.outputs}
        return with_finite_rows(kept, list(kept.values()))

    def encode(self, instances: Sequence[object], parameters: Mapping[str, object]) -> list[Tensors]:
        """Every instance as a checked item of one row."""
        expect_instances(instances)
        if parameters:
            raise refuse_parameters(list(parameters), ())
        return [self._read_row(instance, index) for index, instance in enumerate(instances)]

    def decode(self, output: Tensors, length: int) -> Prediction:
        """The prediction of one row of the outputs; time is cut to the row's own length."""
        values = {spec.name: _to_json(self._cut(output[spec.name], spec, length)) for spec in self.outputs}
        return values if len(values) != 1 else next(iter(values.values()))

    def _cut(self, row: Array, spec: TensorSpec, length: int) -> Array:
        """`row` has no batch axis."""
        if spec.time_axis is None or not self.signature.is_ragged:
            return row
        return row[(slice(None),) * (spec.time_axis - 1) + (slice(0, length),)]

    def _collate(self, rows: Sequence[Tensors], instances: Sequence[int]) -> Item:
        return make_item(collate(rows, self.signature), self.signature, instances)

    def _read_row(self, instance: object, index: int) -> Tensors:
        names = [spec.name for spec in self.inputs]
        if isinstance(instance, dict):
            given: dict[str, object] = instance
            if not given.keys() <= set(names):
                raise refuse_fields(index, set(given) - set(names), names)
        elif len(names) == 1:
            given = {names[0]: instance}
        else:
            raise refuse_type(index, "", f"an object with {names}", instance)
        try:
            tensors: Tensors = {}
            for spec in self.inputs:
                if spec.name not in given:
                    raise refuse_missing(index, spec.name)
                tensors[spec.name] = parse_row(given[spec.name], spec, instance=index)
            check(tensors, self.signature)
        except InvalidInput as exc:
            raise _name_instance(exc, index) from exc
        return tensors


class TensorDefinition(TaskDefinition):
    """The task `tensor`: whatever tensors the manifest names."""

    name: ClassVar = "tensor"

    def build(self, manifest: Manifest, signature: Signature, read_file: ReadFile) -> TensorTask:
        return TensorTask(signature)


TASK = TensorDefinition()


def _name_instance(exc: InvalidInput, index: int) -> InvalidInput:
    """The same refusal, of an instance by its number in the request."""
    message = exc.message if exc.message.startswith(f"instance {index}") else f"instance {index}: {exc.message}"
    facts = exc.facts
    where = facts.get("where")
    return InvalidInput(
        message,
        reason=exc.reason,
        instance=index,
        where=where if isinstance(where, str) else None,
        found=facts.get("found"),
        expected=facts.get("expected"),
    )


def _to_json(values: Any) -> Prediction:
    """One row of an output, without its batch axis, as what can be written as JSON."""
    if not isinstance(values, np.ndarray | np.number | np.bool_):
        return values  # one string
    if values.dtype.kind not in "fiub" or (values.ndim == 0 and values.dtype.kind != "f"):
        return values.tolist()  # a number too: not every scalar of numpy can be written
    return np.ascontiguousarray(values) if values.ndim else values


def _to_lists(value: Any) -> Any:
    """What `_to_json` gave, without arrays."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _estimate_size(value: object) -> int:
    size = 1
    if isinstance(value, dict):
        return sum(map(_estimate_size, value.values()))
    while isinstance(value, list) and value:
        size *= len(value)
        value = value[0]
    return size
