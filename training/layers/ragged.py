"""Steps of rows of different length: each operation twice, for torch and as ONNX nodes.

Rows are padded on the right; nothing here lets a value beyond `lengths` reach a value within.
In all shapes B is batch, T time (padded), N the steps taken, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.onnx_graph import GraphBuilder


def take_steps(values: Tensor, index: Tensor) -> Tensor:
    """values (B, T, F) at the steps index (B, N): (B, N, F)."""
    num_rows, num_steps, num_features = values.shape
    # index_select of whole rows: its gradient is an index_add, several times faster on a CPU than gather's scatter.
    flat = index + torch.arange(num_rows, device=index.device).unsqueeze(1) * num_steps
    taken = values.reshape(num_rows * num_steps, num_features).index_select(0, flat.reshape(-1))
    return taken.view(num_rows, index.shape[1], num_features)


def write_take_steps(graph: GraphBuilder, values: str, index: str) -> str:
    """`take_steps` in the graph."""
    return graph.add("GatherND", values, graph.add("Unsqueeze", index, graph.constant([2])), batch_dims=1)


def mask(values: Tensor, lengths: Tensor) -> Tensor:
    """(B, T, 1), true within each row's length."""
    steps = torch.arange(values.shape[1], device=values.device)
    return (steps < lengths.unsqueeze(1)).unsqueeze(2)


def write_mask(graph: GraphBuilder, values: str, lengths: str) -> str:
    """`mask` in the graph."""
    within = graph.add("Less", write_range(graph, write_num_steps(graph, values)), write_column(graph, lengths))
    return graph.add("Unsqueeze", within, graph.constant([2]))


def reverse(values: Tensor, lengths: Tensor) -> Tensor:
    """Each row of (B, T, F) reversed within its own length; the padding stays where it is."""
    steps = torch.arange(values.shape[1], device=values.device)
    ends = lengths.unsqueeze(1)
    return take_steps(values, torch.where(steps < ends, ends - 1 - steps, steps))


def write_reverse(graph: GraphBuilder, values: str, lengths: str) -> str:
    """`reverse` in the graph."""
    return graph.add("ReverseSequence", values, lengths, batch_axis=0, time_axis=1)


def last_step(values: Tensor, lengths: Tensor) -> Tensor:
    """The last step within each row's length: (B, F)."""
    return take_steps(values, (lengths - 1).unsqueeze(1)).squeeze(1)


def last_steps(values: Tensor, lengths: Tensor, offsets: Tensor, num_steps: int) -> Tensor:
    """Of each row's last `num_steps` steps those at `offsets` (N,), counted from the oldest: (B, N, F).

    A row shorter than that repeats its first step.
    """
    index = (lengths - num_steps).unsqueeze(1) + offsets
    return take_steps(values, index.clamp(min=0))


def write_last_steps(graph: GraphBuilder, values: str, lengths: str, offsets: list[int], num_steps: int) -> str:
    """`last_steps` in the graph."""
    relative = graph.constant([offset - num_steps for offset in offsets], "offsets")
    index = graph.add("Add", write_column(graph, lengths), relative)
    return write_take_steps(graph, values, graph.add("Max", index, graph.constant([0])))


def fold_steps(values: Tensor, lengths: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Fold every `size` steps into one: (B, T // size, size * F) and the new lengths.

    Each row is aligned to its own end: of a row of length n the first n mod `size` steps are left out.
    """
    num_rows, num_steps, num_features = values.shape
    num_folded = num_steps // size
    steps = torch.arange(num_folded * size, device=values.device)
    index = ((lengths % size).unsqueeze(1) + steps).clamp(max=num_steps - 1)
    return take_steps(values, index).view(num_rows, num_folded, size * num_features), lengths // size


def write_fold_steps(graph: GraphBuilder, values: str, lengths: str, size: int, num_features: int) -> tuple[str, str]:
    """`fold_steps` in the graph."""
    folding = graph.constant([size])
    num_steps = write_num_steps(graph, values)
    steps = write_range(graph, graph.add("Mul", graph.add("Div", num_steps, folding), folding))
    index = graph.add("Add", write_column(graph, graph.add("Mod", lengths, folding)), steps)
    index = graph.add("Min", index, graph.add("Sub", num_steps, graph.constant([1])))
    taken = write_take_steps(graph, values, index)
    # 0 copies the batch axis, -1 is what is left: the folded steps. Neither is frozen.
    folded = graph.add("Reshape", taken, graph.constant([0, -1, size * num_features]))
    return folded, graph.add("Div", lengths, folding)


def write_num_steps(graph: GraphBuilder, values: str) -> str:
    """The length of the time axis, INT64 (1,)."""
    return graph.add("Shape", values, start=1, end=2)


def write_range(graph: GraphBuilder, count: str) -> str:
    """0, 1, ... below `count` (1,)."""
    scalar = graph.add("Squeeze", count, graph.constant([0]))
    return graph.add("Range", graph.constant(0), scalar, graph.constant(1))


def write_column(graph: GraphBuilder, lengths: str) -> str:
    """(B,) as (B, 1)."""
    return graph.add("Unsqueeze", lengths, graph.constant([1]))
