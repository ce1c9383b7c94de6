"""What the translator knows of a tensor: its name in the graph and what each axis stands for.

A row's answer is what the module gives for that row alone. So every tensor is seen as that of one row, stacked along
`BATCH`; an axis `Time` has as many steps as the row has, and in the graph as many as the longest row: what lies behind a
row's own end is never read.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """The rows."""

    def __str__(self) -> str:
        return "batch"


@dataclass(frozen=True)
class Time:
    """Steps, `lengths` (INT64, (B,) in the graph) of each row; `steps` are how many they were in every recording."""

    lengths: str
    steps: tuple[int, ...] = field(compare=False)

    def __str__(self) -> str:
        return "time"


Plain = Batch | Time | int


@dataclass(frozen=True)
class MergedAxis:
    """Several axes that a view made into one."""

    axes: tuple[Plain, ...]

    def __str__(self) -> str:
        return "*".join(str(axis) for axis in self.axes)


BATCH = Batch()
Axis = Plain | MergedAxis
Axes = tuple[Axis, ...]


@dataclass(frozen=True)
class Value:
    """A tensor of the graph.

    `name` is empty as long as nothing had to be written for it: then it is a `constant`, or filled with one number.
    `is_order` marks row numbers (as of `torch.arange(batch)`), `is_packed` the steps of a PackedSequence, which lie time
    first in the graph. `is_clean`: zero behind every row's end.
    """

    name: str
    axes: Axes
    dtype: torch.dtype
    constant: Tensor | None = None
    fill: float | None = None
    is_order: bool = False
    is_packed: bool = False
    is_clean: bool = False

    @property
    def rank(self) -> int:
        return len(self.axes)

    @property
    def times(self) -> tuple[int, ...]:
        """Which axes are time."""
        return tuple(index for index, axis in enumerate(self.axes) if isinstance(axis, Time))

    def named(self, name: str, **changes: object) -> Value:
        """The same axes and type under another name; nothing else is known of it."""
        return replace(
            Value(name, self.axes, self.dtype),
            **changes,  # type: ignore[arg-type]
        )

    def __str__(self) -> str:
        return f"({', '.join(str(axis) for axis in self.axes)})"


def canonical(dtype: torch.dtype) -> torch.dtype:
    """The type that a graph computes with."""
    if dtype == torch.bool:
        return torch.bool
    return torch.float32 if dtype.is_floating_point else torch.int64
