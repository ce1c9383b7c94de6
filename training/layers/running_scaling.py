"""From raw values of a stream to what a network learns on: each by the level and the spread of the values until then.

Both are exponentially weighted means, corrected for what is missing and for the beginning, as of pandas' `ewm(adjust=True)`:
the weighted sum of the values there are, divided by the sum of their weights. The spread is the mean absolute distance of a
value from the level before it. All of it goes on from piece to piece of a stream, and is nodes of the graph: an exponentially
weighted sum is an ONNX RNN with the activation Affine, so that there is no loop over the steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.graph.builder import GraphBuilder
from training.layers import ragged
from training.layers.base import Signal, StatePart, Symbol

LARGEST = 1e30
"""Values beyond are read as this one, so that no sum of them overflows."""
SMALLEST_WEIGHT = 1e-30
"""Of a mean of values so long ago that nothing is left of them."""
SMALLEST_SPREAD = 1e-5
"""In shares of the level: what is below is rounding of float32. So a constant stream has a spread too."""
ZERO_SPREAD = 1e-12
LEVEL, LEVEL_WEIGHT, SPREAD, SPREAD_WEIGHT = "level_sum", "level_weight", "spread_sum", "spread_weight"


@dataclass(frozen=True)
class Running:
    """Values (B, T, F) without gaps, where they are known, and level and spread at each step and before it.

    `state` is where each row ended, by the names of the state's parts.
    """

    values: Tensor
    known: Tensor
    level: Tensor
    spread: Tensor
    level_before: Tensor
    spread_before: Tensor
    state: Mapping[str, Tensor]


@dataclass(frozen=True)
class RunningSymbol:
    """`Running` in the graph."""

    values: str
    known: str
    level: str
    spread: str
    level_before: str
    spread_before: str
    state: Mapping[str, str]


class RunningScaler:
    """Level and spread of streams of `num_features`; of the weights of the values, half are the last 0.35 · `span` steps'."""

    def __init__(self, span: int, num_features: int) -> None:
        self.decay = 1 - 2 / (span + 1)
        self.num_features = num_features

    @property
    def state(self) -> tuple[StatePart, ...]:
        """Sums and their weights; zeros are a stream that has not begun."""
        ranges = {LEVEL: (-1.0, 1.0), LEVEL_WEIGHT: (0.5, 1.0), SPREAD: (0.1, 1.0), SPREAD_WEIGHT: (0.5, 1.0)}
        return tuple(StatePart(name, self.num_features, bounds) for name, bounds in ranges.items())

    @torch.no_grad()
    def read(self, history: Signal, state: Mapping[str, Tensor]) -> Running:
        """Level and spread along raw values (B, T, F), where NaN is a gap; `state` may be empty: the beginning."""
        values = history.values
        known = ~values.isnan()
        values = values.masked_fill(~known, 0.0).clamp(-LARGEST, LARGEST)
        start = {part.name: state.get(part.name, values.new_zeros(len(values), part.units)) for part in self.state}
        weights = known.to(values.dtype)
        sums, level_weights = self._sum(values, start[LEVEL]), self._sum(weights, start[LEVEL_WEIGHT])
        level = _mean(sums, level_weights)
        level_before = _before(level, _mean(start[LEVEL], start[LEVEL_WEIGHT]))
        has_level = known & (_before(level_weights, start[LEVEL_WEIGHT]) > SMALLEST_WEIGHT)
        distance = (values - level_before).abs().clamp(max=LARGEST).masked_fill(~has_level, 0.0)
        distances = self._sum(distance, start[SPREAD])
        distance_weights = self._sum(has_level.to(values.dtype), start[SPREAD_WEIGHT])
        spread = _floor(_mean(distances, distance_weights), level)
        first = _floor(_mean(start[SPREAD], start[SPREAD_WEIGHT]), _mean(start[LEVEL], start[LEVEL_WEIGHT]))
        parts = (sums, level_weights, distances, distance_weights)
        ends = {
            part.name: ragged.last_step(all_steps, history.lengths) for part, all_steps in zip(self.state, parts, strict=True)
        }
        return Running(values, known, level, spread, level_before, _before(spread, first), ends)

    def _sum(self, values: Tensor, start: Tensor) -> Tensor:
        """Exponentially weighted sums (B, T, F) from `start` (B, F)."""
        current, sums = start, []
        for step in ((1 - self.decay) * values).unbind(1):
            current = step + self.decay * current
            sums.append(current)
        return torch.stack(sums, 1)

    def write(self, graph: GraphBuilder, history: Symbol, state: Mapping[str, str]) -> RunningSymbol:
        """`read` in the graph."""
        zero, tiny = graph.constant(0.0), graph.constant(SMALLEST_WEIGHT)
        known = graph.add("Not", graph.add("IsNaN", history.values))
        values = graph.add("Where", known, history.values, zero)
        values = graph.add("Clip", values, graph.constant(-LARGEST), graph.constant(LARGEST))
        weights = graph.add("Cast", known, to=1)
        (sums, level_weights), ends = self._write_sums(graph, [values, weights], history, [state[LEVEL], state[LEVEL_WEIGHT]])
        first_level = _write_mean(graph, state[LEVEL], state[LEVEL_WEIGHT])
        level = _write_mean(graph, sums, level_weights)
        level_before = _write_before(graph, level, first_level)
        weight_before = _write_before(graph, level_weights, state[LEVEL_WEIGHT])
        has_level = graph.add("And", known, graph.add("Greater", weight_before, tiny))
        distance = graph.add("Min", graph.add("Abs", graph.add("Sub", values, level_before)), graph.constant(LARGEST))
        distance = graph.add("Where", has_level, distance, zero)
        parts = [distance, graph.add("Cast", has_level, to=1)]
        (distances, distance_weights), more = self._write_sums(graph, parts, history, [state[SPREAD], state[SPREAD_WEIGHT]])
        first = _write_floor(graph, _write_mean(graph, state[SPREAD], state[SPREAD_WEIGHT]), first_level)
        spread = _write_floor(graph, _write_mean(graph, distances, distance_weights), level)
        names = [part.name for part in self.state]
        final = dict(zip(names, [*ends, *more], strict=True))
        return RunningSymbol(values, known, level, spread, level_before, _write_before(graph, spread, first), final)

    def _write_sums(
        self, graph: GraphBuilder, parts: Sequence[str], history: Symbol, start: Sequence[str]
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """`_sum` of several parts (B, T, F) by one node: all steps of each, and the end of each row (B, F)."""
        units = len(parts) * self.num_features
        assert history.lengths is not None
        steps = graph.add("Transpose", graph.add("Concat", *parts, axis=2), perm=[1, 0, 2])  # (T, B, units)
        identity: NDArray[Any] = np.eye(units, dtype=np.float32)[np.newaxis]
        outputs, final = graph.add_many(
            "RNN",
            steps,
            graph.constant(identity * np.float32(1 - self.decay), "share"),
            graph.constant(identity * np.float32(self.decay), "decay"),
            "",
            graph.add("Cast", history.lengths, to=6),
            graph.add("Unsqueeze", graph.add("Concat", *start, axis=1), graph.constant([0])),
            num_outputs=2,
            hidden_size=units,
            activations=["Affine"],
            activation_alpha=[1.0],
            activation_beta=[0.0],
        )
        sizes = graph.constant([self.num_features] * len(parts))
        every = graph.add("Transpose", graph.add("Squeeze", outputs, graph.constant([1])), perm=[1, 0, 2])
        last = graph.add("Squeeze", final, graph.constant([0]))
        return (
            graph.add_many("Split", every, sizes, num_outputs=len(parts), axis=2),
            graph.add_many("Split", last, sizes, num_outputs=len(parts), axis=1),
        )


def _mean(total: Tensor, weight: Tensor) -> Tensor:
    """Zero where there is no weight."""
    has_weight = weight > SMALLEST_WEIGHT
    return (total / torch.where(has_weight, weight, 1.0)).masked_fill(~has_weight, 0.0)


def _write_mean(graph: GraphBuilder, total: str, weight: str) -> str:
    has_weight = graph.add("Greater", weight, graph.constant(SMALLEST_WEIGHT))
    mean = graph.add("Div", total, graph.add("Where", has_weight, weight, graph.constant(1.0)))
    return graph.add("Where", has_weight, mean, graph.constant(0.0))


def _before(values: Tensor, first: Tensor) -> Tensor:
    """At each step what (B, T, F) was one step earlier; at the first `first` (B, F)."""
    return torch.cat([first.unsqueeze(1), values[:, :-1]], 1)


def _write_before(graph: GraphBuilder, values: str, first: str) -> str:
    one = graph.constant([1])
    earlier = graph.add("Slice", values, graph.constant([0]), graph.constant([-1]), one)
    return graph.add("Concat", graph.add("Unsqueeze", first, one), earlier, axis=1)


def _floor(spread: Tensor, level: Tensor) -> Tensor:
    return spread + SMALLEST_SPREAD * level.abs() + ZERO_SPREAD


def _write_floor(graph: GraphBuilder, spread: str, level: str) -> str:
    least = graph.add("Mul", graph.add("Abs", level), graph.constant(SMALLEST_SPREAD))
    return graph.add("Add", graph.add("Add", spread, least), graph.constant(ZERO_SPREAD))
