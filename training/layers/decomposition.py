"""What a history is made of, taken from the history itself: a season, a level, and the size of its steps.

Both are taken off the scaled values before the layers read them, and given back to the forecast; each as a torch module and as
nodes of the graph. Rows may have any length, the padding behind it is never read. In all shapes B is batch, T time (padded),
F features, M steps of a season.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.graph.builder import GraphBuilder
from training.layers import ragged
from training.layers.base import Signal, Symbol

TINY = 1e-12
"""Keeps a quotient of variances finite where both are zero."""
SMALLEST_UNIT = 1e-5
"""Of scaled values: steps that are smaller on average are those of a constant history, and its rounding."""
GATE_UNITS = 8
NUM_GATE_FEATURES = 3
INITIAL_GATE = 2.0
"""Before the sigmoid: a network begins with most of the season."""


@dataclass(frozen=True)
class Centre:
    """Where a history ends and how far it steps: (B, 1, F) each."""

    level: Tensor
    unit: Tensor


@dataclass(frozen=True)
class CentreSymbol:
    """`Centre` in the graph."""

    level: str
    unit: str


class Centring:
    """Makes a history relative to its last value, in units of its mean absolute step: what is left has no level and no scale.

    Without `has_unit` the unit is 1.
    """

    def __init__(self, *, has_unit: bool = True) -> None:
        self.has_unit = has_unit

    def measure(self, history: Signal) -> Centre:
        """Of values (B, T, F)."""
        values, lengths = history.values, history.lengths
        level = ragged.last_step(values, lengths).unsqueeze(1)
        if not self.has_unit:
            return Centre(level, torch.ones_like(level))
        steps = torch.arange(values.shape[1], device=values.device)
        changes = (values - values.index_select(1, (steps - 1).clamp(min=0))).abs()
        count = (lengths - 1).clamp(min=1).view(-1, 1, 1)
        unit = (changes / count).masked_fill(~ragged.mask(values, lengths), 0.0).sum(1, keepdim=True)
        return Centre(level, unit.clamp(min=SMALLEST_UNIT))

    def write_measure(self, graph: GraphBuilder, history: Symbol) -> CentreSymbol:
        """`measure` in the graph."""
        assert history.lengths is not None
        level = ragged.write_last_steps(graph, history.values, history.lengths, [0], 1)
        if not self.has_unit:
            return CentreSymbol(level, graph.constant(1.0))
        one = graph.constant(1)
        steps = ragged.write_range(graph, ragged.write_num_steps(graph, history.values))
        before = graph.add("Max", graph.add("Sub", steps, one), graph.constant(0))
        changes = graph.add("Abs", graph.add("Sub", history.values, graph.add("Gather", history.values, before, axis=1)))
        count = graph.add("Max", graph.add("Sub", history.lengths, one), one)
        count = graph.add("Cast", graph.add("Unsqueeze", count, graph.constant([1, 2])), to=1)
        within = ragged.write_mask(graph, history.values, history.lengths)
        shares = graph.add("Where", within, graph.add("Div", changes, count), graph.constant(0.0))
        unit = graph.add("ReduceSum", shares, graph.constant([1]), keepdims=1)
        return CentreSymbol(level, graph.add("Max", unit, graph.constant(SMALLEST_UNIT)))


class SeasonalDecomposition(nn.Module):
    """The season of each history: the mean deviation from a centred moving average, by the step's place in the season.

    The classical decomposition (Makridakis, Wheelwright and Hyndman 1998, section 3/4) of the window itself; of values in logs it
    is the multiplicative one. A learned gate between 0 and 1 shrinks it: it reads how much of the deviations the season explains,
    how many seasons there are, and the F statistic of both, as seasons of short and noisy histories are mostly noise
    (Miller and Williams 2003). Histories of less than two seasons have none.
    """

    kernel: Tensor

    def __init__(self, season_length: int, num_features: int) -> None:
        super().__init__()
        self.season_length = season_length
        self.num_features = num_features
        # Steps on either side of a step in its moving average.
        self.reach = season_length // 2
        kernel = torch.ones(2 * self.reach + 1)
        if season_length % 2 == 0:
            kernel[0] = kernel[-1] = 0.5
        self.register_buffer("kernel", (kernel / season_length).expand(num_features, 1, -1).clone())
        self.gate_in = nn.Linear(NUM_GATE_FEATURES, GATE_UNITS)
        self.gate_out = nn.Linear(GATE_UNITS, 1)
        nn.init.zeros_(self.gate_out.weight)
        nn.init.constant_(self.gate_out.bias, INITIAL_GATE)

    def measure(self, history: Signal) -> Tensor:
        """The season of values (B, T, F), shrunk: (B, M, F); a step h behind the history is at h mod M."""
        size, reach = self.season_length, self.reach
        lengths = history.lengths.unsqueeze(1)
        values = history.values.masked_fill(~ragged.mask(history.values, history.lengths), 0.0)
        average = functional.conv1d(values.transpose(1, 2), self.kernel, padding=reach, groups=self.num_features).transpose(1, 2)
        steps = torch.arange(values.shape[1], device=values.device)
        has_average = ((steps >= reach) & (steps < lengths - reach)).unsqueeze(2).to(values.dtype)  # (B, T, 1)
        deviations = (values - average) * has_average
        season = self._by_place(deviations, lengths) / self._by_place(has_average, lengths).clamp(min=1.0)
        season = season - season.mean(1, keepdim=True)
        is_long = (lengths >= 2 * reach + size).unsqueeze(2)
        season = season * is_long.to(values.dtype)

        fitted = self.at_steps(season, history) * has_average
        count = has_average.sum(1, keepdim=True).clamp(min=1.0)  # (B, 1, 1)
        explained = (fitted**2 / count).sum(1, keepdim=True)  # (B, 1, F)
        rest = ((deviations - fitted) ** 2 / count).sum(1, keepdim=True)
        share = explained / (explained + rest + TINY)
        cycles = (count / size).clamp(min=1.0).expand_as(share)
        ratio = share * size * (cycles - 1).clamp(min=0.0) / ((1 - share + 1e-3) * (size - 1))
        features = torch.stack([share, 1 / cycles, (1 + ratio).log()], 3)  # (B, 1, F, 3)
        gate: Tensor = self.gate_out(self.gate_in(features).tanh()).sigmoid().squeeze(3)
        return season * gate

    def at_steps(self, season: Tensor, history: Signal) -> Tensor:
        """The season at every step of the history: (B, T, F)."""
        steps = torch.arange(history.values.shape[1], device=season.device)
        return ragged.take_steps(season, (steps - history.lengths.unsqueeze(1)) % self.season_length)

    def ahead(self, season: Tensor, num_steps: int) -> Tensor:
        """The season at the steps behind the history: (B, num_steps, F)."""
        return season.index_select(1, torch.arange(num_steps, device=season.device) % self.season_length)

    def _by_place(self, values: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, F) added up by place in the season, the last step of each row at the last place: (B, M, F)."""
        num_rows, num_steps, num_features = values.shape
        num_cycles = -(-num_steps // self.season_length)
        index = torch.arange(num_cycles * self.season_length, device=values.device)
        index = index + lengths - num_cycles * self.season_length
        taken = ragged.take_steps(values, index.clamp(min=0)) * (index >= 0).unsqueeze(2).to(values.dtype)
        return taken.view(num_rows, num_cycles, self.season_length, num_features).sum(1)

    # the graph

    def write_measure(self, graph: GraphBuilder, history: Symbol) -> str:
        """`measure` in the graph."""
        size, reach = self.season_length, self.reach
        assert history.lengths is not None
        zero, one = graph.constant(0.0), graph.constant(1.0)
        lengths = ragged.write_column(graph, history.lengths)
        within = ragged.write_mask(graph, history.values, history.lengths)
        values = graph.add("Where", within, history.values, zero)
        kernel = graph.constant(self.kernel.cpu().numpy(), "kernel")
        turned = graph.add("Transpose", values, perm=[0, 2, 1])
        average = graph.add("Conv", turned, kernel, group=self.num_features, pads=[reach, reach])
        average = graph.add("Transpose", average, perm=[0, 2, 1])
        steps = ragged.write_range(graph, ragged.write_num_steps(graph, values))
        is_begun = graph.add("GreaterOrEqual", steps, graph.constant(reach))
        is_ended = graph.add("Less", steps, graph.add("Sub", lengths, graph.constant([reach])))
        has_average = graph.add("Unsqueeze", graph.add("And", is_begun, is_ended), graph.constant([2]))
        has_average = graph.add("Cast", has_average, to=1)
        deviations = graph.add("Mul", graph.add("Sub", values, average), has_average)
        counts = graph.add("Max", self._write_by_place(graph, has_average, lengths, 1), one)
        season = graph.add("Div", self._write_by_place(graph, deviations, lengths, self.num_features), counts)
        season = graph.add("Sub", season, graph.add("ReduceMean", season, axes=[1], keepdims=1))
        is_long = graph.add("GreaterOrEqual", lengths, graph.constant([2 * reach + size]))
        season = graph.add("Mul", season, graph.add("Cast", graph.add("Unsqueeze", is_long, graph.constant([2])), to=1))

        fitted = graph.add("Mul", self.write_at_steps(graph, season, history), has_average)
        first = graph.constant([1])
        count = graph.add("Max", graph.add("ReduceSum", has_average, first, keepdims=1), one)
        rests = graph.add("Sub", deviations, fitted)
        explained, rest = (
            graph.add("ReduceSum", graph.add("Div", graph.add("Mul", part, part), count), first, keepdims=1)
            for part in (fitted, rests)
        )
        total = graph.add("Add", graph.add("Add", explained, rest), graph.constant(TINY))
        share = graph.add("Div", explained, total)
        cycles = graph.add("Max", graph.add("Div", count, graph.constant(float(size))), one)
        cycles = graph.add("Expand", cycles, graph.add("Shape", share))
        further = graph.add("Max", graph.add("Sub", cycles, one), zero)
        ratio = graph.add("Mul", graph.add("Mul", share, graph.constant(float(size))), further)
        unexplained = graph.add("Add", graph.add("Sub", one, share), graph.constant(1e-3))
        ratio = graph.add("Div", ratio, graph.add("Mul", unexplained, graph.constant(float(size - 1))))
        parts = (share, graph.add("Div", one, cycles), graph.add("Log", graph.add("Add", one, ratio)))
        features = graph.add("Concat", *(graph.add("Unsqueeze", part, graph.constant([3])) for part in parts), axis=3)
        hidden = graph.add("Tanh", _write_linear(graph, features, self.gate_in))
        gate = graph.add("Sigmoid", _write_linear(graph, hidden, self.gate_out))
        return graph.add("Mul", season, graph.add("Squeeze", gate, graph.constant([3])))

    def write_at_steps(self, graph: GraphBuilder, season: str, history: Symbol) -> str:
        """`at_steps` in the graph."""
        assert history.lengths is not None
        steps = ragged.write_range(graph, ragged.write_num_steps(graph, history.values))
        index = graph.add("Sub", steps, ragged.write_column(graph, history.lengths))
        # ONNX's Mod of whole numbers has the sign of the divisor, as in Python.
        return ragged.write_take_steps(graph, season, graph.add("Mod", index, graph.constant([self.season_length])))

    def write_ahead(self, graph: GraphBuilder, season: str, num_steps: int) -> str:
        """`ahead` in the graph."""
        return graph.add("Gather", season, graph.constant([step % self.season_length for step in range(num_steps)]), axis=1)

    def _write_by_place(self, graph: GraphBuilder, values: str, lengths: str, num_features: int) -> str:
        size = graph.constant([self.season_length])
        num_steps = ragged.write_num_steps(graph, values)
        rounded = graph.add("Add", num_steps, graph.constant([self.season_length - 1]))
        whole = graph.add("Mul", graph.add("Div", rounded, size), size)
        index = graph.add("Add", ragged.write_range(graph, whole), graph.add("Sub", lengths, whole))
        zero = graph.constant([0])
        taken = ragged.write_take_steps(graph, values, graph.add("Max", index, zero))
        is_real = graph.add("Cast", graph.add("Unsqueeze", graph.add("GreaterOrEqual", index, zero), graph.constant([2])), to=1)
        taken = graph.add("Mul", taken, is_real)
        folded = graph.add("Reshape", taken, graph.constant([0, -1, self.season_length, num_features]))
        return graph.add("ReduceSum", folded, graph.constant([1]), keepdims=0)


def _write_linear(graph: GraphBuilder, values: str, layer: nn.Linear) -> str:
    """(..., in) to (..., out)."""
    kernel = graph.constant(layer.weight.detach().t().cpu().numpy(), "kernel")
    return graph.add("Add", graph.add("MatMul", values, kernel), graph.constant(layer.bias.detach().cpu().numpy(), "bias"))
