"""The ONNX node of a recurrent layer: LSTM, GRU or RNN, of one direction or of two; a Scan where none has the activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from training.graph.builder import GraphBuilder
from training.layers import ragged
from training.layers.activations import Activation
from training.layers.base import StatePart, Symbol


class Cell(Protocol):
    """What a node is written from: the sizes, weights and activations of one direction."""

    operator: ClassVar[str]

    @property
    def units(self) -> int: ...
    @property
    def num_gates(self) -> int: ...
    @property
    def goes_backwards(self) -> bool: ...
    @property
    def state(self) -> tuple[StatePart, ...]: ...
    @property
    def has_node(self) -> bool:
        """Whether `operator` has all activations; if not, the graph holds a loop over the steps."""
        ...

    @property
    def onnx_activations(self) -> tuple[Activation, ...]:
        """In ONNX's order."""
        ...

    @property
    def onnx_defaults(self) -> tuple[Activation, ...]:
        """What ONNX takes for `activations` where they are not given."""
        ...

    @property
    def onnx_attributes(self) -> dict[str, Any]:
        """Attributes of the node beyond size, direction and activations."""
        ...

    def onnx_weights(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """W (G · H, F), R (G · H, H) and B (2 · G · H), gates in ONNX's order."""
        ...

    def write_inputs(self, graph: GraphBuilder, values: str) -> str:
        """All steps (B, T, F) times the kernel: (B, T, G · H), gates in the order of `write_step`."""
        ...

    def write_step(self, graph: GraphBuilder, inputs: str, state: tuple[str, ...]) -> tuple[str, ...]:
        """One step from inputs (B, G · H) and the state to the new state, the output first."""
        ...


@dataclass(frozen=True)
class Node:
    """A node's results: outputs (T, D, B, H) in the order of time without the masked steps, final states (D, B, H)."""

    outputs: str
    finals: tuple[str, ...]
    is_read: str | None  # (B, T); None: no step is masked
    is_empty: str | None  # (B, 1): rows that have no step at all


def write_node(graph: GraphBuilder, cells: Sequence[Cell], symbol: Symbol, states: Sequence[tuple[str, ...]]) -> Node:
    """One node for a cell, or for one that reads forward and one that reads backward. `states` are theirs, or empty."""
    first = cells[0]
    values, lengths, is_read, is_empty = symbol.values, symbol.lengths, None, None
    if symbol.mask is not None:
        is_read = ragged.write_is_read(graph, symbol)
        assert is_read is not None
        values, count = ragged.write_compact(graph, values, is_read)
        lengths = graph.add("Max", count, graph.constant(1))
        is_empty = ragged.write_column(graph, graph.add("Equal", count, graph.constant(0)))
    if not first.has_node:
        assert len(cells) == 1, cells
        outputs, finals = _write_loop(graph, first, values, lengths, states[0])
        return Node(outputs, finals, is_read, is_empty)
    weights = [np.stack(parts) for parts in zip(*(cell.onnx_weights() for cell in cells), strict=True)]
    inputs = [graph.add("Transpose", values, perm=[1, 0, 2])]
    inputs += [graph.constant(part, name) for part, name in zip(weights, ("kernel", "recurrent_kernel", "bias"), strict=True)]
    inputs.append(graph.add("Cast", lengths, to=6) if lengths is not None else "")  # sequence_lens is INT32
    zero = graph.constant([0])
    for parts in zip(*states, strict=True):
        directions = [graph.add("Unsqueeze", part, zero) for part in parts]  # (B, H) → (1, B, H)
        inputs.append(directions[0] if len(directions) == 1 else graph.add("Concat", *directions, axis=0))
    direction = "bidirectional" if len(cells) == 2 else "reverse" if first.goes_backwards else "forward"
    attributes = {"direction": direction, "hidden_size": first.units, **first.onnx_attributes, **_activations_of(cells)}
    num_outputs = 1 + len(first.state)
    outputs, *results = graph.add_many(first.operator, *inputs, num_outputs=num_outputs, named=True, **attributes)
    return Node(outputs, tuple(results), is_read, is_empty)


def _activations_of(cells: Sequence[Cell]) -> dict[str, Any]:
    """The node's attributes for activations that are not ONNX's defaults."""
    if all(cell.onnx_activations == cell.onnx_defaults for cell in cells):
        return {}
    chosen = [activation.in_node for cell in cells for activation in cell.onnx_activations]
    attributes: dict[str, Any] = {"activations": [activation.name for activation in chosen if activation]}
    # onnxruntime assigns these numbers in order, to those activations that have one.
    alphas = [activation.alpha for activation in chosen if activation and activation.alpha is not None]
    betas = [activation.beta for activation in chosen if activation and activation.beta is not None]
    attributes |= {"activation_alpha": alphas} if alphas else {}
    attributes |= {"activation_beta": betas} if betas else {}
    return attributes


def _write_loop(
    graph: GraphBuilder, cell: Cell, values: str, lengths: str | None, state: tuple[str, ...]
) -> tuple[str, tuple[str, ...]]:
    """What `write_node`'s node gives, as an ONNX Scan: for activations that recurrent nodes do not know."""
    scanned = [graph.add("Transpose", cell.write_inputs(graph, values), perm=[1, 0, 2])]
    if not state:
        num_rows = graph.add("Shape", values, start=0, end=1)
        shape = graph.add("Concat", num_rows, graph.constant([cell.units]), axis=0)
        state = (graph.add("Expand", graph.constant(0.0), shape),) * len(cell.state)

    body = graph.body("step")
    before = tuple(body.input(f"{body.name}/{part.name}", "FP32", ["batch", cell.units]) for part in cell.state)
    step_inputs = body.input(f"{body.name}/inputs", "FP32", ["batch", cell.num_gates * cell.units])
    after = cell.write_step(body, step_inputs, before)
    if lengths is not None:
        within = ragged.write_mask(graph, values, lengths)  # (B, T, 1)
        scanned.append(graph.add("Transpose", within, perm=[1, 0, 2]))
        is_within = body.input(f"{body.name}/is_within", "BOOL", ["batch", 1])
        after = tuple(body.add("Where", is_within, now, old) for now, old in zip(after, before, strict=True))
    for part, value in zip(cell.state, after, strict=True):
        body.output(value, f"{body.name}/{part.name}_next", "FP32", ["batch", cell.units])
    body.output(after[0], f"{body.name}/output", "FP32", ["batch", cell.units])

    backward = int(cell.goes_backwards)
    results = graph.add_many(
        "Scan",
        *state,
        *scanned,
        num_outputs=len(state) + 1,
        named=True,
        body=body.build_body(),
        num_scan_inputs=len(scanned),
        scan_input_directions=[backward] * len(scanned),
        scan_output_directions=[backward],
    )
    zero, one = graph.constant([0]), graph.constant([1])
    outputs = graph.add("Unsqueeze", results[-1], one)  # (T, 1, B, H)
    return outputs, tuple(graph.add("Unsqueeze", final, zero) for final in results[:-1])
