"""Forecasts of a stream: after every value the next steps with quantiles, and how surprising that value was.

The network reads forward and gives a forecast at every step, on values scaled by the level and the spread of the stream until
then (`layers/running_scaling.py`). What the next piece of a stream must know of those before is state of the graph: level and
spread, the values of the last season, and the forecast that the next value is compared with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.graph.builder import GraphBuilder
from training.layers import ragged
from training.layers.base import StatePart
from training.layers.registry import LAYERS, Layer, LayerError, Shape, Signal, Symbol
from training.layers.running_scaling import RunningScaler
from training.layers.scaling import Statistics, StatisticsSymbol
from training.network.heads.forecast import ForecastSpec
from training.network.heads.head import (
    Draw,
    Head,
    LayerInput,
    LayerInputSymbol,
    Prediction,
    Tables,
    require_units_last,
)
from training.network.spec import NetworkSpec

LARGEST_SCALED = 10.0
"""Scaled values beyond are read as this one: an outlier is far away, however far."""
MAX_ANOMALY = 10.0
"""The score of a tail probability of 1e-10 and of all below."""
SMALLEST_WIDTH = 1e-3
"""Between two quantiles, in spreads of the stream: what is narrower does not make a value more surprising."""
NUM_VALUES, SEASON_VALUES, SEASON_KNOWN, QUANTILES = "num_values", "season_values", "season_known", "next_quantiles"
RAW = ("forecast", "quantiles", "level_sum_next", "spread_sum_next", "season_values_next")
"""Outputs in the units of the history."""


@dataclass(frozen=True)
class StreamStatistics(Statistics):
    """Level and spread of the targets at each step, (B, T, targets), as offset and scale; and what else an answer needs."""

    lengths: Tensor = field(default_factory=lambda: torch.zeros(0))
    season: Tensor = field(default_factory=lambda: torch.zeros(0))  # (B, T, horizon, targets), scaled: one season before
    distance: Tensor = field(default_factory=lambda: torch.zeros(0))  # (B, T, targets): of the last value from last season's
    deviation: Tensor = field(default_factory=lambda: torch.zeros(0))  # (B, T, targets), by level and spread one step before
    is_scored: Tensor = field(default_factory=lambda: torch.zeros(0))  # (B, T, targets)
    quantiles: Tensor = field(default_factory=lambda: torch.zeros(0))  # (B, targets, Q), scaled: of the first value
    state: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class StreamStatisticsSymbol(StatisticsSymbol):
    """`StreamStatistics` in the graph."""

    season: str = ""  # empty: there is none
    distance: str = ""
    deviation: str = ""
    is_scored: str = ""
    state: Mapping[str, str] = field(default_factory=dict)


class StreamHead(Head):
    """`history` (B, T, F) raw, NaN where a value is missing → `forecast`, `quantiles`, and `anomaly` (B, T, targets).

    Forecast and quantiles are those after the last step, as of any forecast. The anomaly score of a step is
    -log10 p, p the two-sided tail probability of the value under the quantiles that were forecast one step before, between 0 and
    `MAX_ANOMALY`: 1 is what one value in ten reaches. Between quantiles the distribution is linear, beyond them it has
    exponential tails through the two outermost (as the incremental spline quantile functions of Park et al. 2022,
    arXiv:2111.06581). It is 0 for a missing value and for the first `warm_up` values.
    """

    Spec: ClassVar[type[NetworkSpec]] = ForecastSpec
    spec: ForecastSpec

    def __init__(self, spec: ForecastSpec) -> None:
        super().__init__(spec, "history", Shape(("time", spec.num_features)))
        assert spec.scaling.span is not None
        self.scaler = RunningScaler(spec.scaling.span, spec.num_features)
        self.targets = list(spec.targets)
        self.chooses = self.targets != list(range(spec.num_features))
        lag = spec.seasonal_lag
        # Of each step of the horizon the place of its value among those of the last season; at 0 is the value one season before
        # the last one.
        self.base_places = [] if lag is None else [step % lag + 1 for step in range(spec.horizon)]
        self.num_bases = max(self.base_places, default=-1) + 1
        self.season_length = lag or 0
        # What the layers read of a step; the input has the features alone.
        self.features = Shape(("time", 2 * spec.num_features + self.num_bases * len(self.targets)))
        self.levels = list(spec.quantiles)
        # How much of the last value's distance from last season's (or from the level) is still there so many steps later:
        # learned, from all of it on.
        steps = torch.arange(spec.horizon, dtype=torch.float32)
        self.persistence = nn.Parameter((-steps / spec.horizon).exp())
        below, above = self.levels[:2], self.levels[-2:]
        # Widths of the two outermost quantiles to the distance at which a tail falls by e.
        self.low_rate = math.log(below[1] / below[0])
        self.high_rate = math.log((1 - above[0]) / (1 - above[1]))

    @classmethod
    def from_spec(cls, spec: ForecastSpec) -> StreamHead:
        return cls(spec)

    @property
    def state(self) -> tuple[StatePart, ...]:
        spec, season = self.spec, self.season_length * len(self.targets)
        counted = StatePart(NUM_VALUES, spec.num_features, (0.0, 2.0 * spec.warm_up))
        seasonal = (StatePart(SEASON_VALUES, season), StatePart(SEASON_KNOWN, season, (0.0, 1.0))) if season else ()
        return (*self.scaler.state, counted, *seasonal, StatePart(QUANTILES, len(self.targets) * len(self.levels)))

    @property
    def first(self) -> Shape:
        return self.features

    @property
    def scaled_source(self) -> Shape:
        return self.features

    def complete(self, tables: Tables) -> Tables:
        """Fill in the units of the last layer, or check them."""
        spec, (*body, last) = self.spec, tables
        if (kind := LAYERS.get(str(last.get("type")))) is not None and kind.is_per_step:
            return tables
        require_units_last(tables)
        needed = spec.horizon * spec.values_per_step
        if last.get("units", needed) != needed:
            parts = f"{spec.horizon} steps × {len(spec.targets)} targets × {len(spec.quantiles)} quantiles"
            message = f"the forecast needs {parts} = {needed}, got {last['units']}"
            raise LayerError(f"layers[{len(body)}]", str(last["type"]), "units", message)
        return [*body, {**last, "units": needed}] if kind is not None and kind.gives_units else tables

    def check(self, layers: Sequence[Layer]) -> None:
        for index, layer in enumerate(layers):
            if not layer.can_stream:
                message = "cannot read a stream: a layer of it reads forward, step by step"
                raise LayerError(f"layers[{index}]", layer.config.type, None, message)
            if layer.is_stateful:
                message = "the state of a stream is its own, and begins anew in every training window"
                raise LayerError(f"layers[{index}]", layer.config.type, "stateful", message)
        last, needed = layers[-1], ("time", self.spec.horizon * self.spec.values_per_step)
        if last.output.axes != needed:
            message = f"a stream has a forecast at every step, {Shape(needed)}, got {last.output}: return sequences, pool nothing"
            raise LayerError(f"layers[{len(layers) - 1}]", last.config.type, None, message)

    def outputs(self, last: Layer) -> dict[str, Shape]:
        shape = self.spec.answer_shape
        return {"forecast": Shape(shape[:2]), "quantiles": Shape(shape), "anomaly": Shape(("time", len(self.targets)))}

    def set_statistics(self, values: Tensor) -> None:
        """Nothing is fitted: level and spread are the stream's own."""

    # torch

    @torch.no_grad()
    def read(self, inputs: Mapping[str, Tensor]) -> LayerInput:
        history = Signal(inputs["history"], inputs["lengths"])
        start = {part.name: inputs[part.name] for part in self.state if part.name in inputs}
        running = self.scaler.read(history, start)
        scaled = self._scale(running.values, running.level, running.spread, running.known)
        features = [scaled, (~running.known).to(scaled.dtype)]
        offset, scale, known = (self._of_targets(part) for part in (running.level, running.spread, running.known))
        state, distance = dict(running.state), self._of_targets(scaled)
        season = distance.new_zeros(*distance.shape[:2], self.spec.horizon, len(self.targets))
        if self.num_bases:
            before, ends = self._read_season(self._of_targets(running.values), known, history.lengths, start)
            bases = self._scale(before[0], offset.unsqueeze(2), scale.unsqueeze(2), before[1])  # (B, T, bases, targets)
            features.append(bases.flatten(2))
            season, state = bases[:, :, self.base_places], state | ends
            distance = (distance - bases[:, :, 0]).masked_fill(~known, 0.0)
        given = start.get(NUM_VALUES, scaled.new_zeros(len(scaled), self.spec.num_features))
        counts = running.known.to(scaled.dtype).cumsum(1)
        num_before = self._of_targets(given.unsqueeze(1) + counts - running.known.to(scaled.dtype))
        # Bounded, so that a float32 counts on.
        num_values = (given + ragged.last_step(counts, history.lengths)).clamp(max=2.0 * self.spec.warm_up)
        level, spread = self._of_targets(running.level_before), self._of_targets(running.spread_before)
        num_targets, num_levels = len(self.targets), len(self.levels)
        statistics = StreamStatistics(
            offset=offset,
            scale=scale,
            lengths=history.lengths,
            season=season,
            distance=distance,
            deviation=(self._of_targets(running.values) - level) / spread,
            is_scored=known & (num_before >= self.spec.warm_up),
            quantiles=start.get(QUANTILES, scaled.new_zeros(len(scaled), num_targets * num_levels)).view(
                -1, num_targets, num_levels
            ),
            state={**state, NUM_VALUES: num_values},
        )
        source = Signal(torch.cat(features, 2), history.lengths)
        return LayerInput(source, source, statistics)

    def _read_season(
        self, values: Tensor, known: Tensor, lengths: Tensor, start: Mapping[str, Tensor]
    ) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
        """Per step the values one season before it and before those that follow, and which are known; and the next state."""
        num_rows, num_steps, num_targets = values.shape
        lag = self.season_length
        places = torch.arange(num_steps).unsqueeze(1) + torch.arange(self.num_bases)
        ends = lengths.unsqueeze(1) + torch.arange(lag, device=lengths.device)
        found, state = [], {}
        for name, part in ((SEASON_VALUES, values), (SEASON_KNOWN, known.to(values.dtype))):
            given = start.get(name, values.new_zeros(num_rows, lag * num_targets)).view(num_rows, lag, num_targets)
            whole = torch.cat([given, part], 1)
            found.append(whole[:, places.to(values.device)])  # (B, T, bases, targets)
            state[name] = ragged.take_steps(whole, ends).flatten(1)
        return (found[0], found[1] > 0.5), state

    def _scale(self, values: Tensor, level: Tensor, spread: Tensor, known: Tensor) -> Tensor:
        return ((values - level) / spread).clamp(-LARGEST_SCALED, LARGEST_SCALED).masked_fill(~known, 0.0)

    def _of_targets(self, values: Tensor) -> Tensor:
        return values[..., self.targets] if self.chooses else values

    def predict(self, output: Signal, given: LayerInput) -> Tensor:
        """Scaled, at every step: (B, T, horizon, targets, Q)."""
        statistics = given.statistics
        assert isinstance(statistics, StreamStatistics)
        base = statistics.season + self.persistence[:, None] * statistics.distance.unsqueeze(2)
        return output.values.reshape(*output.values.shape[:2], *self.spec.answer_shape) + base.unsqueeze(4)

    def answer(self, prediction: Prediction) -> tuple[Tensor, ...]:
        statistics = self._statistics_of(prediction)
        last = prediction.values[torch.arange(len(prediction.values)), statistics.lengths - 1].sort(-1).values
        assert statistics.offset is not None
        assert statistics.scale is not None
        level, spread = (ragged.last_step(part, statistics.lengths) for part in (statistics.offset, statistics.scale))
        quantiles = last * spread[:, None, :, None] + level[:, None, :, None]  # (B, horizon, targets, Q)
        following = prediction.values[:, :, 0].sort(-1).values  # (B, T, targets, Q)
        expected = torch.cat([statistics.quantiles.unsqueeze(1), following[:, :-1]], 1)
        anomaly = self._score(statistics.deviation, expected).masked_fill(~statistics.is_scored, 0.0)
        return quantiles[..., self.levels.index(0.5)], quantiles, anomaly

    def _score(self, values: Tensor, quantiles: Tensor) -> Tensor:
        """-log10 of the two-sided tail probability of values (...) under quantiles (..., Q)."""
        widths = quantiles.diff(dim=-1).clamp(min=SMALLEST_WIDTH)
        shares = ((values.unsqueeze(-1) - quantiles[..., :-1]) / widths).clamp(0.0, 1.0)
        below = self.levels[0] + (shares * values.new_tensor(self.levels).diff()).sum(-1)
        low = (quantiles[..., 0] - values).clamp(min=0.0) / widths[..., 0] * self.low_rate - (2 * below).log()
        high = (values - quantiles[..., -1]).clamp(min=0.0) / widths[..., -1] * self.high_rate - (2 * (1 - below)).log()
        return (torch.maximum(low, high) / math.log(10)).clamp(0.0, MAX_ANOMALY)

    def next_state(self, prediction: Prediction) -> dict[str, Tensor]:
        statistics = self._statistics_of(prediction)
        following = prediction.values[torch.arange(len(prediction.values)), statistics.lengths - 1, 0].sort(-1).values
        return {**statistics.state, QUANTILES: following.flatten(1)}

    def scale_target(self, target: Tensor, prediction: Prediction) -> Tensor:
        """What follows each step, raw (B, T, horizon, targets), by level and spread of that step."""
        statistics = prediction.statistics
        assert statistics.offset is not None
        assert statistics.scale is not None
        return (target - statistics.offset.unsqueeze(2)) / statistics.scale.unsqueeze(2)

    def unscale(self, values: Tensor, prediction: Prediction) -> Tensor:
        """Scaled values (B, T, horizon, targets, ...) into raw units."""
        statistics = prediction.statistics
        assert statistics.offset is not None
        assert statistics.scale is not None
        axes = (2,) if values.dim() == 4 else (2, 4)
        offset, scale = statistics.offset, statistics.scale
        for axis in axes:
            offset, scale = offset.unsqueeze(axis), scale.unsqueeze(axis)
        return values * scale + offset

    @staticmethod
    def _statistics_of(prediction: Prediction) -> StreamStatistics:
        assert isinstance(prediction.statistics, StreamStatistics)
        return prediction.statistics

    # the graph

    def write_input(self, graph: GraphBuilder) -> LayerInputSymbol:
        history = Symbol("history", "lengths")
        with graph.scope("scaling"):
            running = self.scaler.write(graph, history, {part.name: part.name for part in self.scaler.state})
            scaled = self._write_scale(graph, running.values, running.level, running.spread, running.known)
            missing = graph.add("Cast", graph.add("Not", running.known), to=1)
            parts = (running.level, running.spread, running.known, running.values, running.level_before, running.spread_before)
            level, spread, known, values, level_before, spread_before = (self._write_of_targets(graph, part) for part in parts)
        features, season, state = [scaled, missing], "", dict(running.state)
        distance = self._write_of_targets(graph, scaled)
        if self.num_bases:
            with graph.scope("season"):
                (bases, is_known), ends = self._write_season(graph, values, known)
                axis = graph.constant([2])
                steps = graph.add("Unsqueeze", level, axis), graph.add("Unsqueeze", spread, axis)
                bases = self._write_scale(graph, bases, *steps, is_known)
                features.append(graph.add("Reshape", bases, graph.constant([0, 0, self.num_bases * len(self.targets)])))
                season, state = graph.add("Gather", bases, graph.constant(self.base_places), axis=2), state | ends
                distance = graph.add("Sub", distance, graph.add("Gather", bases, graph.constant(0), axis=2))
                distance = graph.add("Where", known, distance, graph.constant(0.0))
        with graph.scope("anomaly"):
            weight = graph.add("Cast", running.known, to=1)
            given = graph.add("Unsqueeze", NUM_VALUES, graph.constant([1]))
            counts = graph.add("CumSum", weight, graph.constant(1))
            num_before = graph.add("Sub", graph.add("Add", given, counts), weight)
            num_before = self._write_of_targets(graph, num_before)
            warm_up = graph.constant(float(self.spec.warm_up))
            is_scored = graph.add("And", known, graph.add("GreaterOrEqual", num_before, warm_up))
            num_new = graph.add("Add", NUM_VALUES, _write_last(graph, counts))
            state[NUM_VALUES] = graph.add("Min", num_new, graph.constant(2.0 * self.spec.warm_up))
            deviation = graph.add("Div", graph.add("Sub", values, level_before), spread_before)
        symbol = Symbol(graph.add("Concat", *features, axis=2), "lengths")
        statistics = StreamStatisticsSymbol(level, spread, season, distance, deviation, is_scored, state)
        return LayerInputSymbol(symbol, symbol, statistics)

    def _write_season(self, graph: GraphBuilder, values: str, known: str) -> tuple[tuple[str, str], dict[str, str]]:
        lag, num_targets = self.season_length, len(self.targets)
        steps = ragged.write_column(graph, ragged.write_range(graph, ragged.write_num_steps(graph, values)))
        places = graph.add("Add", steps, graph.constant(np.arange(self.num_bases)[np.newaxis]))
        ends = ragged.write_column(graph, "lengths")
        if num_targets > 1:
            ends = graph.add("Mul", ends, graph.constant(num_targets))
        ends = graph.add("Add", ends, graph.constant(np.arange(lag * num_targets)[np.newaxis]))
        found, state = [], {}
        for name, part in ((SEASON_VALUES, values), (SEASON_KNOWN, graph.add("Cast", known, to=1))):
            # All of a row in one axis: onnxruntime's GatherElements on the last one takes a tenth of GatherND's time.
            whole = graph.add("Concat", name, graph.add("Reshape", part, graph.constant([0, -1])), axis=1)
            steps_of_it = graph.add("Reshape", whole, graph.constant([0, -1, num_targets]))
            found.append(graph.add("Gather", steps_of_it, places, axis=1))  # (B, T, bases, targets)
            state[name] = graph.add("GatherElements", whole, ends, axis=1)
        return (found[0], graph.add("Greater", found[1], graph.constant(0.5))), state

    def _write_scale(self, graph: GraphBuilder, values: str, level: str, spread: str, known: str) -> str:
        scaled = graph.add("Div", graph.add("Sub", values, level), spread)
        scaled = graph.add("Clip", scaled, graph.constant(-LARGEST_SCALED), graph.constant(LARGEST_SCALED))
        return graph.add("Where", known, scaled, graph.constant(0.0))

    def _write_of_targets(self, graph: GraphBuilder, values: str) -> str:
        return graph.add("Gather", values, graph.constant(self.targets), axis=2) if self.chooses else values

    def write_answer(self, graph: GraphBuilder, output: Symbol, given: LayerInputSymbol) -> tuple[str, ...]:
        statistics = given.statistics
        assert isinstance(statistics, StreamStatisticsSymbol)
        assert statistics.offset is not None
        assert statistics.scale is not None
        with graph.scope("answer"):
            last = _write_last(graph, output.values)
            last = graph.add("Reshape", last, graph.constant([0, *self.spec.answer_shape]))
            rest = graph.add("Unsqueeze", _write_last(graph, statistics.distance), graph.constant([1]))
            persistence = self.persistence.detach().cpu().numpy()
            base = graph.add("Mul", graph.constant(persistence[:, np.newaxis], "persistence"), rest)  # (B, horizon, targets)
            if statistics.season:
                base = graph.add("Add", _write_last(graph, statistics.season), base)
            last = graph.add("Add", last, graph.add("Unsqueeze", base, graph.constant([3])))
            last = self._write_sorted(graph, last)  # (B, horizon, targets, Q)
            axes = graph.constant([1, 3])
            level, spread = (
                graph.add("Unsqueeze", _write_last(graph, part), axes) for part in (statistics.offset, statistics.scale)
            )
            quantiles = graph.add("Add", graph.add("Mul", last, spread), level)
            point = graph.add("Gather", quantiles, graph.constant(self.levels.index(0.5)), axis=3)
        with graph.scope("anomaly"):
            following = self._write_following(graph, output, statistics)
            one = graph.constant([1])
            first = graph.add("Reshape", QUANTILES, graph.constant([0, 1, len(self.targets), len(self.levels)]))
            earlier = graph.add("Slice", following, graph.constant([0]), graph.constant([-1]), one)
            expected = graph.add("Concat", first, earlier, axis=1)
            score = self._write_score(graph, statistics.deviation, expected)
            return point, quantiles, graph.add("Where", statistics.is_scored, score, graph.constant(0.0))

    def write_next_state(self, graph: GraphBuilder, output: Symbol, given: LayerInputSymbol) -> dict[str, str]:
        statistics = given.statistics
        assert isinstance(statistics, StreamStatisticsSymbol)
        with graph.scope("anomaly"):
            last = _write_last(graph, self._write_following(graph, output, statistics))
            last = graph.add("Reshape", last, graph.constant([0, len(self.targets) * len(self.levels)]))
        return {f"{name}_next": value for name, value in {**statistics.state, QUANTILES: last}.items()}

    def _write_following(self, graph: GraphBuilder, output: Symbol, statistics: StreamStatisticsSymbol) -> str:
        """The quantiles of the next value at every step, scaled: (B, T, targets, Q)."""
        count = self.spec.values_per_step
        starts, ends, axes = graph.constant([0]), graph.constant([count]), graph.constant([2])
        values = graph.add("Slice", output.values, starts, ends, axes)
        values = graph.add("Reshape", values, graph.constant([0, 0, len(self.targets), len(self.levels)]))
        base = graph.add("Mul", graph.constant(float(self.persistence[0].detach())), statistics.distance)  # (B, T, targets)
        if statistics.season:
            base = graph.add("Add", graph.add("Gather", statistics.season, graph.constant(0), axis=2), base)
        values = graph.add("Add", values, graph.add("Unsqueeze", base, graph.constant([3])))
        return self._write_sorted(graph, values)

    def _write_sorted(self, graph: GraphBuilder, values: str) -> str:
        count = graph.constant([len(self.levels)])
        return graph.add_many("TopK", values, count, num_outputs=2, axis=-1, largest=0, sorted=1)[0]

    def _write_score(self, graph: GraphBuilder, values: str, quantiles: str) -> str:
        num_levels, axis = len(self.levels), graph.constant([3])
        zero, one, two = graph.constant(0.0), graph.constant(1.0), graph.constant(2.0)

        def part(tensor: str, start: int, end: int) -> str:
            return graph.add("Slice", tensor, graph.constant([start]), graph.constant([end]), axis)

        lower, upper = part(quantiles, 0, num_levels - 1), part(quantiles, 1, num_levels)
        widths = graph.add("Max", graph.add("Sub", upper, lower), graph.constant(SMALLEST_WIDTH))
        column = graph.add("Unsqueeze", values, axis)
        shares = graph.add("Clip", graph.add("Div", graph.add("Sub", column, lower), widths), zero, one)
        steps = graph.constant(np.diff(np.array(self.levels, np.float32)))
        inside = graph.add("ReduceSum", graph.add("Mul", shares, steps), axis, keepdims=1)
        below = graph.add("Add", inside, graph.constant(self.levels[0]))  # (B, T, targets, 1)

        def side(distance: str, width: str, rate: float, tail: str) -> str:
            nats = graph.add("Mul", graph.add("Div", graph.add("Max", distance, zero), width), graph.constant(rate))
            return graph.add("Sub", nats, graph.add("Log", graph.add("Mul", two, tail)))

        low = graph.add("Sub", part(quantiles, 0, 1), column)
        high = graph.add("Sub", column, part(quantiles, num_levels - 1, num_levels))
        low = side(low, part(widths, 0, 1), self.low_rate, below)
        high = side(high, part(widths, num_levels - 2, num_levels - 1), self.high_rate, graph.add("Sub", one, below))
        score = graph.add("Div", graph.add("Max", low, high), graph.constant(math.log(10)))
        return graph.add("Squeeze", graph.add("Clip", score, zero, graph.constant(MAX_ANOMALY)), axis)

    # verification

    def draws(self) -> dict[str, Draw]:
        """About the level that states are drawn for, and of any level; both with gaps."""
        return {"about zero, with gaps": _draw_about_zero, "of any level, with gaps": _draw_levels}

    def error_scale(self, name: str, expected: NDArray[Any], inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """What is in the units of the history, by the largest value of the history or of the output; scores by the highest."""
        if name == "anomaly":
            return np.full(len(expected), MAX_ANOMALY)
        if name not in RAW:
            return super().error_scale(name, expected, inputs)
        rows = zip(inputs["history"], inputs["lengths"], strict=True)
        history = [np.nan_to_num(np.abs(row[:length]), nan=0.0).max() for row, length in rows]
        largest: NDArray[Any] = np.maximum(np.maximum(history, 1.0), np.abs(expected).reshape(len(expected), -1).max(axis=1))
        return largest


def _write_last(graph: GraphBuilder, values: str) -> str:
    """Of (B, T, ...) the last step within each row's length: (B, ...)."""
    index = graph.add("Sub", "lengths", graph.constant(1))
    return graph.add("GatherND", values, ragged.write_column(graph, index), batch_dims=1)


def _draw_about_zero(random: np.random.Generator, shape: tuple[int, ...]) -> NDArray[Any]:
    return _with_gaps(random, random.standard_normal(shape))


def _draw_levels(random: np.random.Generator, shape: tuple[int, ...]) -> NDArray[Any]:
    values: NDArray[Any] = 10.0 ** random.uniform(-2, 4) * random.lognormal(size=shape)
    return _with_gaps(random, values if random.random() < 0.5 else -values)


def _with_gaps(random: np.random.Generator, values: NDArray[Any]) -> NDArray[Any]:
    values[random.random(values.shape) < 0.1] = np.nan
    return values
