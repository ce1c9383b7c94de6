"""Nested lists ↔ tensors, for graphs that no richer face describes. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from service.errors import InvalidInput
from service.runtime.tensors import (
    LENGTHS,
    Array,
    Item,
    Signature,
    Tensors,
    TensorSpec,
    batch_key,
    check,
    collate,
    item_of,
    num_steps,
    parse_row,
)
from service.tasks.base import (
    HEAVY_NUM_INSTANCES,
    HEAVY_SIZE,
    IS_FINITE,
    Dialogue,
    ItemLimits,
    Prediction,
    expect_finite,
    expect_instances,
    finite_rows,
    grouped,
    missing,
    unknown_fields,
    unknown_parameters,
    wrong_type,
)


@dataclass(frozen=True)
class TensorRows:
    """Nested lists in, nested lists out: for graphs that no richer face describes. One instance is one row of the batch."""

    signature: Signature
    limits: ItemLimits = field(default_factory=ItemLimits)

    @cached_property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What a caller gives: `lengths` follows from the rows, state begins with zeros."""
        states = {name for name, _ in self.signature.state}
        return tuple(
            spec
            for spec in self.signature.inputs
            if spec.name not in states and not (spec.name == LENGTHS and self.signature.is_ragged)
        )

    @cached_property
    def outputs(self) -> tuple[TensorSpec, ...]:
        states = {name for _, name in self.signature.state}
        return tuple(spec for spec in self.signature.outputs if spec.name not in states)

    def is_heavy(self, instances: Sequence[object], parameters: Mapping[str, object]) -> bool:
        return len(instances) > HEAVY_NUM_INSTANCES or sum(map(_approximate_size, instances)) > HEAVY_SIZE

    def dialogue(self, instances: Sequence[object], parameters: Mapping[str, object], *, is_plain: bool = False) -> Dialogue:
        rows = self.encode(instances, parameters)
        lengths = [num_steps(row, self.signature) for row in rows]
        alike: dict[tuple[int, ...], list[int]] = {}
        for index, row in enumerate(rows):
            key = batch_key(row, self.signature) or ((lengths[index],) if not self.signature.is_ragged else ())
            alike.setdefault(key, []).append(index)
        groups = [
            [indices[place] for place in group]
            for indices in alike.values()
            for group in grouped([lengths[index] for index in indices], self.limits)
        ]
        outputs = yield [self._item([rows[index] for index in group]) for group in groups]
        predictions: list[Prediction] = [None] * len(rows)
        for group, output in zip(groups, outputs, strict=True):
            expect_finite(output, group)
            for place, index in enumerate(group):
                predictions[index] = self.decode({name: array[place] for name, array in output.items()}, lengths[index])
        return predictions

    def prepare(self, outputs: Tensors) -> Tensors:
        """The outputs that are answered, without the states."""
        answered = {spec.name: outputs[spec.name] for spec in self.outputs}
        is_finite = finite_rows(list(answered.values()))
        return answered if is_finite is None else {**answered, IS_FINITE: is_finite}

    def encode(self, instances: Sequence[object], parameters: Mapping[str, object]) -> list[Tensors]:
        """Every instance as a checked item of one row."""
        expect_instances(instances)
        if parameters:
            raise unknown_parameters(list(parameters), ())
        return [self._row(instance, index) for index, instance in enumerate(instances)]

    def decode(self, answer: Tensors, length: int) -> Prediction:
        """The prediction of one row of the outputs; time is cut to the row's own length."""
        values = {spec.name: _json(self._cut(answer[spec.name], spec, length)) for spec in self.outputs}
        return values if len(values) != 1 else next(iter(values.values()))

    def _cut(self, row: Array, spec: TensorSpec, length: int) -> Array:
        """`row` has no batch axis."""
        if spec.time_axis is None or not self.signature.is_ragged:
            return row
        return row[(slice(None),) * (spec.time_axis - 1) + (slice(0, length),)]

    def _item(self, rows: Sequence[Tensors]) -> Item:
        return item_of(collate(rows, self.signature), self.signature)

    def _row(self, instance: object, index: int) -> Tensors:
        names = [spec.name for spec in self.inputs]
        if isinstance(instance, dict):
            given: dict[str, object] = instance
            if not given.keys() <= set(names):
                raise unknown_fields(index, set(given) - set(names), names)
        elif len(names) == 1:
            given = {names[0]: instance}
        else:
            raise wrong_type(index, "", f"an object with {names}", instance)
        try:
            tensors: Tensors = {}
            for spec in self.inputs:
                if spec.name not in given:
                    raise missing(index, spec.name)
                tensors[spec.name] = parse_row(given[spec.name], spec, instance=index)
            check(tensors, self.signature)
        except InvalidInput as exc:
            raise _of_instance(exc, index) from exc
        return tensors


def _of_instance(exc: InvalidInput, index: int) -> InvalidInput:
    """The same complaint, about an instance by its number in the request."""
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


def _json(values: Any) -> Prediction:
    """One row of an output, without its batch axis, as what can be written as JSON."""
    if not isinstance(values, np.ndarray | np.number | np.bool_):
        return values  # one string
    if values.dtype.kind not in "fiub":
        return values.tolist()
    return np.ascontiguousarray(values) if values.ndim else values


def _approximate_size(value: object) -> int:
    size = 1
    if isinstance(value, dict):
        return sum(map(_approximate_size, value.values()))
    while isinstance(value, list) and value:
        size *= len(value)
        value = value[0]
    return size
