"""Simple forecasts of a history by its own past values, how well each would have done on it, and the units that follow.

A network that corrects a weighted mean of them needs no other scaling: it reads the history in units of its own spread and of
the bases' own errors, and its correction is in the latter, so that bands are wide where the bases missed. Each as a torch module
and as nodes of the graph. Rows may have any length, the padding behind it is never read. In all shapes B is batch, T time
(padded), W the last steps of a history, zeros before it, R those of them that layers read, F features, C channels of each,
H the horizon, O earlier origins, J cycles of all bases, K bases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor, nn

from training.graph.builder import GraphBuilder
from training.layers import ragged
from training.layers.base import Signal, Symbol

RESOLUTION = 1e-6
"""Of a history's mean magnitude: differences below are rounding of single precision."""
TINY = 1e-30
"""Keeps quotients finite in a history of zeros."""
NUM_OUTLIERS = 3
FURTHEST = 2.0
NUM_PASSES = 3
"""The values furthest from the mean are outliers where they are more than twice as far as the next one: they are held there, so
that they neither move the level nor return a day later. What comes four times or more is no outlier. Each pass takes the mean
anew, which one that is far enough has moved."""
WORST = 12.0
"""Logarithm of an error in units of the best base's, where it is larger or unknown."""
SMALLEST, LARGEST = -14.0, 4.0
"""Logarithms of the best base's error in units of the spread are between these."""
BEYOND = 3e38
"""What no value of single precision is above."""
NEVER = -1e9
"""Before the softmax: the weight of a base that a history is too short for."""
PRIOR_COUNT = 3.0
"""Errors at the same place of a season, of which there are few, are taken beside so many as large as the unit."""
LARGEST_STEP_UNIT = 4.0
"""In units: a base that missed by far more has no part in how far a correction reaches."""
NUM_FACTS = 3
"""What is known of a history beside the bases' errors: their unit, its length, and whether a base is exact."""
INITIAL_SHARPNESS = 2.0


class BaseConfig(BaseModel):
    """The value `lag` steps earlier, or the mean of those at the same place in each of the last `cycles`, as far as there are.

    Of steps more than one cycle ahead it is that of the first, as in a seasonal naive forecast; `lag` = 1 is the last value.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    lag: PositiveInt
    cycles: PositiveInt = 1


@dataclass(frozen=True)
class Measured:
    """What a history says of itself, raw units but for the logarithms."""

    level: Tensor
    """(B, 1, F): the mean, outliers held."""
    scale: Tensor
    """(B, 1, F): the mean absolute change over a season, by which MASE divides; at least half a unit."""
    unit: Tensor
    """(B, 1, F): the mean absolute error of the best base at earlier origins."""
    forecasts: Tensor
    """(B, H, F, K)"""
    errors: Tensor
    """(B, 1, F, K): logarithms of the bases' errors, in units."""
    step_units: Tensor
    """(B, H, F, K): the bases' mean absolute errors at the same place of a season, drawn towards the unit."""
    is_known: Tensor
    """(B, 1, 1, K): whether the history is long enough for a base, and for one origin before where no base stands in for it."""
    lowest: Tensor
    """(B, 1, F): what no forecast is below: 0 where the history never is."""
    channels: Tensor
    """(B, R, C · F): what layers read of the last steps, zero before the history begins."""
    facts: Tensor
    """(B, 1, F · (K + 3)): what layers read of the whole."""


@dataclass(frozen=True)
class MeasuredSymbol:
    """`Measured` in the graph."""

    level: str
    scale: str
    unit: str
    forecasts: str
    errors: str
    step_units: str
    is_known: str
    lowest: str
    channels: str
    facts: str


Value = TypeVar("Value", Tensor, str)


class _Tried(NamedTuple, Generic[Value]):
    """What bases forecast, and how they did at earlier origins, raw; as tensors, or as values of the graph.

    Of a base that could not be tried, errors and counts are those of the one that stands in for it.
    """

    is_known: Value
    """(B, 1, 1, K), as `Measured` has it."""
    forecasts: Value
    """(B, H, F, K)"""
    errors: Value
    """(B, 1, F, K): means of absolute errors over all steps."""
    step_sums: Value
    """(B, H, F, K): sums of absolute errors at the same place of a season."""
    step_counts: Value
    """(B, H, 1, K): of how many errors each of these is the sum."""


class BaseForecasts(nn.Module):
    """The bases of a history, tried at `origins` earlier origins one season apart.

    A row's weights are the softmax of the layers' own values less `sharpness`, which is learned, times the logarithm of the
    errors: without layers a base weighs error ** -sharpness, so that one that is exact is taken over as it is. A history that is
    as long as a base's lag, and not a season longer, cannot try it: the base is then taken to err as much as that of the longest
    lag that is a season shorter. So one week is enough for the same hours of a week ago.
    """

    def __init__(
        self,
        bases: Sequence[BaseConfig],
        *,
        horizon: int,
        season_length: int,
        context_length: int,
        read_length: int,
        origins: int,
        num_features: int,
    ) -> None:
        super().__init__()
        self.bases = tuple(bases)
        self.lags = sorted({base.lag for base in bases if base.lag > 1})
        self.horizon = horizon
        self.season_length = season_length
        self.num_steps = context_length
        self.read_length = read_length
        self.num_features = num_features
        starts = context_length - season_length * np.arange(origins + 1)  # the first is that of the forecast itself
        self.places, self.begins, self.is_of_base = _places(bases, starts, horizon)
        stand_ins = [_stand_in(base, self.bases, season_length) for base in self.bases]
        self.has_stand_in = np.array([other is not None for other in stand_ins])  # (K,)
        self.stand_ins = np.array([number if other is None else other for number, other in enumerate(stand_ins)])
        ahead = starts[1:, None] + np.arange(horizon)  # (O, H)
        self.true_places = np.minimum(ahead, context_length - 1)[:, None]  # (O, 1, H)
        self.is_past = ((ahead < context_length) & (starts[1:, None] > 0)).astype(np.float32)[:, None, :, None]
        places = np.arange(horizon) % season_length
        self.is_same_place = (places[:, None] == places).astype(np.float32)  # (H, H)
        self.sharpness = nn.Parameter(torch.tensor(INITIAL_SHARPNESS))

    @property
    def min_length(self) -> int:
        """The fewest steps of a history: one season to try a base on, and a cycle of it before."""
        return self.season_length + min(base.lag for base in self.bases)

    @property
    def num_channels(self) -> int:
        """Features of a step that layers read: of each feature its value, and its change over each lag."""
        return self.num_features * (1 + len(self.lags))

    @property
    def num_facts(self) -> int:
        """Features that say something of the whole history."""
        return self.num_features * (len(self.bases) + NUM_FACTS)

    # torch

    @torch.no_grad()
    def measure(self, history: Signal) -> Measured:
        """Of raw values (B, T, F). Nothing of it is learned."""
        steps = torch.arange(-self.num_steps, 0, device=history.values.device)
        index = history.lengths.unsqueeze(1) + steps
        values = ragged.take_steps(history.values, index.clamp(min=0))  # (B, W, F)
        within = (index >= 0).unsqueeze(2).to(values.dtype)  # (B, W, 1)
        share = within / within.sum(1, keepdim=True)
        lowest = torch.where((values * within).amin(1, keepdim=True) >= 0, 0.0, -BEYOND)
        values = _hold_outliers(values, within, share)
        level, spread = _level_and_spread(values, share)
        resolution = RESOLUTION * (values.abs() * share).sum(1, keepdim=True) + TINY
        spread = spread.maximum(resolution)

        tried = self._try_bases(values, within)
        unit = torch.where(tried.is_known, tried.errors, BEYOND).amin(3).maximum(resolution)
        relative = ((tried.errors + resolution.unsqueeze(3)) / unit.unsqueeze(3)).log().clamp(max=WORST)
        relative = torch.where(tried.is_known, relative, WORST)
        step_units = (tried.step_sums + PRIOR_COUNT * unit.unsqueeze(3)) / (tried.step_counts + PRIOR_COUNT)
        step_units = step_units.clamp(resolution.unsqueeze(3), LARGEST_STEP_UNIT * unit.unsqueeze(3))
        return Measured(
            level=level,
            scale=self._seasonal_change(values, within).maximum(unit / 2),
            unit=unit,
            forecasts=tried.forecasts,
            errors=relative,
            step_units=step_units,
            is_known=tried.is_known,
            lowest=lowest,
            channels=self._channels(values, within, level, spread, unit),
            facts=self._facts(relative, within, unit, spread, resolution),
        )

    def _try_bases(self, values: Tensor, within: Tensor) -> _Tried[Tensor]:
        """Of values (B, W, F), of which those `within` (B, W, 1) the history count."""
        true = self._at(values, self.true_places)  # (B, O, 1, H, F)
        is_past, has_begun, is_of_base, is_same_place = (
            torch.from_numpy(part).to(values)
            for part in (self.is_past, self.begins[..., None] >= 0, self.is_of_base, self.is_same_place)
        )
        is_there = self._at(within, self.begins) * has_begun  # (B, O + 1, J, 1, 1)
        found = self._at(values, self.places) * is_there  # (B, O + 1, J, H, F)
        count = (is_of_base @ is_there.flatten(3)).unsqueeze(4)  # (B, O + 1, K, 1, 1)
        sums = (is_of_base @ found.flatten(3)).view(*count.shape[:3], *found.shape[3:])
        found = sums / count.clamp(min=1.0)  # (B, O + 1, K, H, F)
        counts = is_past * (count[:, 1:] > 0)  # (B, O, K, H, 1)
        count_at, error_at = counts.sum(1), ((true - found[:, 1:]).abs() * counts).sum(1)  # (B, K, H, 1), (B, K, H, F)
        total = count_at.sum(2, keepdim=True)
        is_tried = total > 0  # (B, K, 1, 1)
        errors = [error_at.sum(2, keepdim=True) / total.clamp(min=1.0), is_same_place @ error_at, is_same_place @ count_at]
        stand_ins, has_stand_in = torch.from_numpy(self.stand_ins), torch.from_numpy(self.has_stand_in)
        is_known = is_tried | ((count[:, 0] > 0) & has_stand_in.view(-1, 1, 1).to(is_tried.device))
        errors = [torch.where(is_tried, part, part.index_select(1, stand_ins.to(part.device))) for part in errors]
        return _Tried(*(part.permute(0, 2, 3, 1) for part in (is_known, found[:, 0], *errors)))

    def _seasonal_change(self, values: Tensor, within: Tensor) -> Tensor:
        """The mean absolute change over a season, (B, 1, F)."""
        season = self.season_length
        both = within[:, season:] * within[:, :-season]
        change = ((values[:, season:] - values[:, :-season]).abs() * both).sum(1, keepdim=True)
        return change / both.sum(1, keepdim=True).clamp(min=1.0)

    def combine(self, measured: Measured, weights: Tensor, targets: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The weighted means of the bases and of their errors, raw (B, H, targets), of the layers' values (B, H, targets, K)."""
        chosen = list(targets)
        errors, forecasts, step_units = (
            part[:, :, chosen] for part in (measured.errors, measured.forecasts, measured.step_units)
        )
        shares = torch.where(measured.is_known, weights - self.sharpness * errors, NEVER).softmax(3)
        return (shares * forecasts).sum(3), (shares * step_units).sum(3)

    def _at(self, values: Tensor, places: NDArray[np.int64]) -> Tensor:
        """(B, W, F) at places of any shape: (B, ..., F)."""
        index = torch.from_numpy(places.clip(min=0).reshape(-1)).to(values.device)
        return values.index_select(1, index).view(len(values), *places.shape, values.shape[2])

    def _channels(self, values: Tensor, within: Tensor, level: Tensor, spread: Tensor, unit: Tensor) -> Tensor:
        first = self.num_steps - self.read_length
        channels = [((values[:, first:] - level) / spread).asinh() * within[:, first:]]
        for lag in self.lags:
            before = slice(first - lag, self.num_steps - lag)
            channels.append(((values[:, first:] - values[:, before]) / unit).asinh() * within[:, before])
        return torch.cat(channels, 2)

    def _facts(self, errors: Tensor, within: Tensor, unit: Tensor, spread: Tensor, resolution: Tensor) -> Tensor:
        seasons = (within.sum(1, keepdim=True) / self.season_length).log().expand_as(unit)
        is_exact = (unit <= resolution).to(unit.dtype)
        relative = (unit / spread).log().clamp(SMALLEST, LARGEST)
        return torch.cat([errors.flatten(2), relative, seasons, is_exact], 2)

    # the graph

    def write_measure(self, graph: GraphBuilder, history: Symbol) -> MeasuredSymbol:
        """`measure` in the graph."""
        assert history.lengths is not None
        zero, no_steps = graph.constant(0.0), graph.constant([0])
        steps = graph.constant(np.arange(-self.num_steps, 0), "steps")
        index = graph.add("Add", ragged.write_column(graph, history.lengths), steps)
        values = ragged.write_take_steps(graph, history.values, graph.add("Max", index, no_steps))
        within = graph.add("Cast", graph.add("GreaterOrEqual", index, no_steps), to=1)
        within = graph.add("Unsqueeze", within, graph.constant([2]))
        share = graph.add("Div", within, _sum(graph, within, 1))
        smallest = graph.add("ReduceMin", graph.add("Mul", values, within), axes=[1], keepdims=1)
        is_never_below = graph.add("GreaterOrEqual", smallest, zero)
        lowest = graph.add("Where", is_never_below, zero, graph.constant(-BEYOND))
        values = _write_hold_outliers(graph, values, within, share)
        level, spread = _write_level_and_spread(graph, values, share)
        magnitude = _sum(graph, graph.add("Mul", graph.add("Abs", values), share), 1)
        resolution = graph.add("Mul", magnitude, graph.constant(RESOLUTION))
        resolution = graph.add("Add", resolution, graph.constant(TINY))
        spread = graph.add("Max", spread, resolution)

        last = graph.constant([3])
        tried = self._write_try_bases(graph, values, within)
        best = graph.add("Where", tried.is_known, tried.errors, graph.constant(BEYOND))
        unit = graph.add("Max", graph.add("ReduceMin", best, axes=[3], keepdims=0), resolution)
        relative = graph.add("Add", tried.errors, graph.add("Unsqueeze", resolution, last))
        relative = graph.add("Log", graph.add("Div", relative, graph.add("Unsqueeze", unit, last)))
        worst = graph.constant(WORST)
        relative = graph.add("Where", tried.is_known, graph.add("Min", relative, worst), worst)
        prior = graph.constant(PRIOR_COUNT)
        step_units = graph.add("Add", tried.step_sums, graph.add("Unsqueeze", graph.add("Mul", unit, prior), last))
        step_units = graph.add("Div", step_units, graph.add("Add", tried.step_counts, prior))
        step_units = graph.add("Max", step_units, graph.add("Unsqueeze", resolution, last))
        largest = graph.add("Mul", unit, graph.constant(LARGEST_STEP_UNIT))
        step_units = graph.add("Min", step_units, graph.add("Unsqueeze", largest, last))
        change = self._write_seasonal_change(graph, values, within)
        return MeasuredSymbol(
            level=level,
            scale=graph.add("Max", change, graph.add("Mul", unit, graph.constant(0.5))),
            unit=unit,
            forecasts=tried.forecasts,
            errors=relative,
            step_units=step_units,
            is_known=tried.is_known,
            lowest=lowest,
            channels=self._write_channels(graph, values, within, level, spread, unit),
            facts=self._write_facts(graph, relative, within, unit, spread, resolution),
        )

    def _write_try_bases(self, graph: GraphBuilder, values: str, within: str) -> _Tried[str]:
        """`_try_bases` in the graph."""
        zero, one = graph.constant(0.0), graph.constant(1.0)
        is_of_base, is_same_place = (graph.constant(part) for part in (self.is_of_base, self.is_same_place))
        has_begun = graph.constant((self.begins >= 0).astype(np.float32)[..., None], "has_begun")
        is_there = graph.add("Mul", self._write_at(graph, within, self.begins), has_begun)
        found = graph.add("Mul", self._write_at(graph, values, self.places), is_there)
        count = graph.add("MatMul", is_of_base, graph.add("Squeeze", is_there, graph.constant([3])))
        count = graph.add("Unsqueeze", count, graph.constant([4]))
        num_cycles, shape = self.is_of_base.shape[1], [self.horizon, self.num_features]
        found = graph.add("Reshape", found, graph.constant([0, 0, num_cycles, int(np.prod(shape))]))
        found = graph.add("Reshape", graph.add("MatMul", is_of_base, found), graph.constant([0, 0, 0, *shape]))
        found = graph.add("Div", found, graph.add("Max", count, one))
        is_counted = graph.add("Cast", graph.add("Greater", _write_part(graph, count, 1, 1, None), zero), to=1)
        counts = graph.add("Mul", graph.constant(self.is_past, "is_past"), is_counted)
        error = graph.add("Sub", self._write_at(graph, values, self.true_places), _write_part(graph, found, 1, 1, None))
        error = graph.add("Mul", graph.add("Abs", error), counts)
        count_at, error_at = (_sum(graph, part, 1, keepdims=0) for part in (counts, error))
        total = _sum(graph, count_at, 2)
        is_tried = graph.add("Greater", total, zero)
        errors = [
            graph.add("Div", _sum(graph, error_at, 2), graph.add("Max", total, one)),
            graph.add("MatMul", is_same_place, error_at),
            graph.add("MatMul", is_same_place, count_at),
        ]
        forecasts, now = (graph.add("Squeeze", _write_part(graph, part, 1, 0, 1), graph.constant([1])) for part in (found, count))
        has_stand_in = graph.constant(self.has_stand_in[:, None, None], "has_stand_in")
        is_known = graph.add("And", graph.add("Greater", now, zero), has_stand_in)
        is_known = graph.add("Or", is_tried, is_known)
        others = graph.constant(self.stand_ins, "stand_ins")
        errors = [graph.add("Where", is_tried, part, graph.add("Gather", part, others, axis=1)) for part in errors]
        return _Tried(*(graph.add("Transpose", part, perm=[0, 2, 3, 1]) for part in (is_known, forecasts, *errors)))

    def _write_seasonal_change(self, graph: GraphBuilder, values: str, within: str) -> str:
        """`_seasonal_change` in the graph."""
        now, before = (_write_part(graph, values, 1, *part) for part in ((self.season_length, None), (0, -self.season_length)))
        is_now, was = (_write_part(graph, within, 1, *part) for part in ((self.season_length, None), (0, -self.season_length)))
        both = graph.add("Mul", is_now, was)
        change = _sum(graph, graph.add("Mul", graph.add("Abs", graph.add("Sub", now, before)), both), 1)
        return graph.add("Div", change, graph.add("Max", _sum(graph, both, 1), graph.constant(1.0)))

    def write_combine(
        self, graph: GraphBuilder, measured: MeasuredSymbol, weights: str, targets: Sequence[int]
    ) -> tuple[str, str]:
        """`combine` in the graph."""
        parts = [measured.errors, measured.forecasts, measured.step_units]
        if list(targets) != list(range(self.num_features)):
            chosen = graph.constant(list(targets))
            parts = [graph.add("Gather", part, chosen, axis=2) for part in parts]
        errors, forecasts, step_units = parts
        sharpness = graph.constant(self.sharpness.detach().cpu().numpy(), "sharpness")
        logits = graph.add("Sub", weights, graph.add("Mul", errors, sharpness))
        logits = graph.add("Where", measured.is_known, logits, graph.constant(NEVER))
        shares = graph.add("Softmax", logits, axis=3)
        base, unit = (_sum(graph, graph.add("Mul", shares, part), 3, keepdims=0) for part in (forecasts, step_units))
        return base, unit

    def _write_at(self, graph: GraphBuilder, values: str, places: NDArray[np.int64]) -> str:
        return graph.add("Gather", values, graph.constant(places.clip(min=0), "places"), axis=1)

    def _write_channels(self, graph: GraphBuilder, values: str, within: str, level: str, spread: str, unit: str) -> str:
        first = self.num_steps - self.read_length
        now = _write_part(graph, values, 1, first, None)
        value = graph.add("Asinh", graph.add("Div", graph.add("Sub", now, level), spread))
        channels = [graph.add("Mul", value, _write_part(graph, within, 1, first, None))]
        for lag in self.lags:
            change = graph.add("Sub", now, _write_part(graph, values, 1, first - lag, -lag))
            change = graph.add("Asinh", graph.add("Div", change, unit))
            channels.append(graph.add("Mul", change, _write_part(graph, within, 1, first - lag, -lag)))
        return graph.add("Concat", *channels, axis=2)

    def _write_facts(self, graph: GraphBuilder, errors: str, within: str, unit: str, spread: str, resolution: str) -> str:
        seasons = graph.add("Div", _sum(graph, within, 1), graph.constant(float(self.season_length)))
        seasons = graph.add("Expand", graph.add("Log", seasons), graph.add("Shape", unit))
        is_exact = graph.add("Cast", graph.add("LessOrEqual", unit, resolution), to=1)
        relative = graph.add("Log", graph.add("Div", unit, spread))
        relative = graph.add("Max", graph.add("Min", relative, graph.constant(LARGEST)), graph.constant(SMALLEST))
        flat = graph.add("Reshape", errors, graph.constant([0, 1, self.num_features * len(self.bases)]))
        return graph.add("Concat", flat, relative, seasons, is_exact, axis=2)


def _places(
    bases: Sequence[BaseConfig], starts: NDArray[np.int64], horizon: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Where the cycles of all bases stand (O + 1, J, H), where each begins (O + 1, J, 1), and of which base it is (K, J).

    What is below 0 is before the history.
    """
    owners = np.repeat(np.arange(len(bases)), [base.cycles for base in bases])
    lags = np.array([base.lag for base in bases])[owners]
    cycles = np.concatenate([np.arange(1, base.cycles + 1) for base in bases])
    begins = starts[:, None, None] - (lags * cycles)[:, None]
    places = begins + np.arange(horizon) % lags[:, None]
    return places, begins, (np.arange(len(bases))[:, None] == owners).astype(np.float32)


def _stand_in(base: BaseConfig, bases: Sequence[BaseConfig], season_length: int) -> int | None:
    """Which base has been tried in every history that is as long as the lag of this one."""
    tried = [number for number, other in enumerate(bases) if other.lag <= base.lag - season_length]
    return max(tried, key=lambda number: (bases[number].lag, -number), default=None)


def _hold_outliers(values: Tensor, within: Tensor, share: Tensor) -> Tensor:
    """Values (B, W, F) no further from their mean than `FURTHEST` times the first that is no outlier."""
    for _ in range(NUM_PASSES):
        level = (values * share).sum(1, keepdim=True)
        furthest = ((values - level).abs() * within).topk(NUM_OUTLIERS + 1, 1).values[:, NUM_OUTLIERS:]
        values = values.clamp(level - FURTHEST * furthest, level + FURTHEST * furthest)
    return values


def _write_hold_outliers(graph: GraphBuilder, values: str, within: str, share: str) -> str:
    for _ in range(NUM_PASSES):
        level = _sum(graph, graph.add("Mul", values, share), 1)
        distances = graph.add("Mul", graph.add("Abs", graph.add("Sub", values, level)), within)
        count = graph.constant([NUM_OUTLIERS + 1])
        furthest, _ = graph.add_many("TopK", distances, count, num_outputs=2, axis=1, largest=1, sorted=1)
        furthest = _write_part(graph, furthest, 1, NUM_OUTLIERS, None)
        reach = graph.add("Mul", furthest, graph.constant(FURTHEST))
        values = graph.add("Max", values, graph.add("Sub", level, reach))
        values = graph.add("Min", values, graph.add("Add", level, reach))
    return values


def _level_and_spread(values: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and mean absolute deviation of (B, W, F), each step's `share` (B, W, 1) of all: (B, 1, F)."""
    level = (values * share).sum(1, keepdim=True)
    return level, ((values - level).abs() * share).sum(1, keepdim=True)


def _write_level_and_spread(graph: GraphBuilder, values: str, share: str) -> tuple[str, str]:
    level = _sum(graph, graph.add("Mul", values, share), 1)
    return level, _sum(graph, graph.add("Mul", graph.add("Abs", graph.add("Sub", values, level)), share), 1)


def _sum(graph: GraphBuilder, values: str, axis: int, *, keepdims: int = 1) -> str:
    return graph.add("ReduceSum", values, graph.constant([axis]), keepdims=keepdims)


def _write_part(graph: GraphBuilder, values: str, axis: int, start: int, end: int | None) -> str:
    """`values[..., start:end]` along an axis."""
    ends = graph.constant([2**62 if end is None else end])
    return graph.add("Slice", values, graph.constant([start]), ends, graph.constant([axis]))
