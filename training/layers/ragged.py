"""Steps of rows of different length: each operation twice, for torch and as ONNX nodes.

Rows are padded on the right; nothing here lets a value beyond `lengths` reach a value within.
In all shapes B is batch, T time (padded), N the steps taken, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.graph.builder import GraphBuilder
from training.layers.base import Symbol


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


def compact(values: Tensor, is_read: Tensor) -> tuple[Tensor, Tensor]:
    """The steps of (B, T, F) where is_read (B, T), in their order, at the front; and how many they are, (B,)."""
    order = is_read.logical_not().to(torch.int8).argsort(dim=1, stable=True)
    return take_steps(values, order), is_read.sum(1)


def spread(outputs: Tensor, is_read: Tensor, *, zeros: bool) -> Tensor:
    """Undo `compact`: a step not read repeats the one read before it, or is zero if there is none, or if `zeros`."""
    count = is_read.cumsum(1)
    is_kept = is_read if zeros else count > 0
    return take_steps(outputs, (count - 1).clamp(min=0)).masked_fill(~is_kept.unsqueeze(2), 0.0)


def write_is_read(graph: GraphBuilder, symbol: Symbol) -> str | None:
    """(B, T), true where a step exists and is not masked; None: everywhere."""
    if symbol.lengths is None:
        return symbol.mask
    within = graph.add("Less", write_range(graph, write_num_steps(graph, symbol.values)), write_column(graph, symbol.lengths))
    return within if symbol.mask is None else graph.add("And", symbol.mask, within)


def write_compact(graph: GraphBuilder, values: str, is_read: str) -> tuple[str, str]:
    """`compact` in the graph."""
    num_steps = write_num_steps(graph, values)
    steps = write_range(graph, num_steps)
    # Steps that are read have the large keys, among themselves the earlier ones the larger.
    keys = graph.add("Sub", graph.add("Where", is_read, num_steps, graph.constant([0])), steps)
    _, order = graph.add_many("TopK", keys, num_steps, num_outputs=2, axis=1, largest=1, sorted=1)
    return write_take_steps(graph, values, order), write_count(graph, is_read)


def write_count(graph: GraphBuilder, is_read: str) -> str:
    """How many steps are read, INT64 (B,)."""
    return graph.add("ReduceSum", graph.add("Cast", is_read, to=7), graph.constant([1]), keepdims=0)


def write_spread(graph: GraphBuilder, outputs: str, is_read: str, *, zeros: bool, backward: bool = False) -> str:
    """`spread` in the graph; `backward`: the steps were read from the last to the first, yet are in the order of time."""
    as_number = graph.add("Cast", is_read, to=7)
    count = graph.add("CumSum", as_number, graph.constant(1))
    one, zero = graph.constant(1), graph.constant(0)
    if backward:
        # The step read before step t is the first one read at t or behind it.
        index = graph.add("Sub", count, as_number)
        is_kept = graph.add("Less", index, write_column(graph, write_count(graph, is_read)))
        index = graph.add("Min", index, graph.add("Sub", write_num_steps(graph, outputs), graph.constant([1])))
    else:
        index = graph.add("Max", graph.add("Sub", count, one), zero)
        is_kept = graph.add("Greater", count, zero)
    kept = graph.add("Unsqueeze", is_read if zeros else is_kept, graph.constant([2]))
    return graph.add("Where", kept, write_take_steps(graph, outputs, index), graph.constant(0.0))


def reverse(values: Tensor, lengths: Tensor) -> Tensor:
    """Each row of (B, T, F) reversed within its own length; the padding stays where it is."""
    steps = torch.arange(values.shape[1], device=values.device)
    ends = lengths.unsqueeze(1)
    return take_steps(values, torch.where(steps < ends, ends - 1 - steps, steps))


def write_reverse(graph: GraphBuilder, values: str, lengths: str | None) -> str:
    """`reverse` in the graph; without lengths all rows are whole."""
    if lengths is None:
        starts, ends, axes = (graph.constant([value]) for value in (-1, -(2**63), 1))
        return graph.add("Slice", values, starts, ends, axes, graph.constant([-1]))
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
