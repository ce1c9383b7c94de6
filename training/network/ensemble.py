"""Several members of a network as one: which rows each learns from, and how their values become one.

In training each member reads rows of its own, so that they differ by more than their first weights (Breiman 1996 draws rows
for each, too); else all read all rows, and their values are combined element by element.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from training.graph.builder import GraphBuilder

Combine = Literal["mean", "median"]


def rows_of(number: int, num_members: int) -> slice:
    """The rows of a batch that member `number` learns from."""
    return slice(number, None, num_members)


def merge(parts: Sequence[Tensor], num_rows: int) -> Tensor:
    """What each member gave for its own rows (`rows_of`), as one tensor in the order of the batch."""
    merged = parts[0].new_empty((num_rows, *parts[0].shape[1:]))
    for number, part in enumerate(parts):
        merged[rows_of(number, len(parts))] = part
    return merged


def combine(parts: Sequence[Tensor], how: Combine) -> Tensor:
    """The mean or the median over members; the median of an even number is the mean of the two in the middle."""
    stacked = torch.stack(list(parts))
    if how == "mean":
        return stacked.mean(0)
    return stacked.sort(0).values[list(_middle(len(parts)))].mean(0)


def write_combine(graph: GraphBuilder, parts: Sequence[str], how: Combine) -> str:
    """`combine` in the graph."""
    first = graph.constant([0])
    stacked = graph.add("Concat", *(graph.add("Unsqueeze", part, first) for part in parts), axis=0)
    if how == "median":
        count = graph.constant([len(parts)])
        ordered, _ = graph.add_many("TopK", stacked, count, num_outputs=2, axis=0, largest=0, sorted=1)
        stacked = graph.add("Gather", ordered, graph.constant(list(_middle(len(parts)))), axis=0)
    return graph.add("ReduceMean", stacked, axes=[0], keepdims=0)


def _middle(count: int) -> tuple[int, ...]:
    return tuple(sorted({(count - 1) // 2, count // 2}))
