"""Forecasts: raw histories in, the next steps of the targets out, with scaling, daily steps and quantiles inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor

from training.graph.builder import GraphBuilder
from training.layers import ragged
from training.layers.decomposition import Centre, CentreSymbol, Centring, SeasonalDecomposition
from training.layers.registry import LAYERS, Layer, LayerError, Shape, Signal, Symbol
from training.layers.scaling import Scaler, ScalingConfig, Statistics, StatisticsSymbol
from training.network.heads.head import (
    Draw,
    Head,
    LayerInput,
    LayerInputSymbol,
    Prediction,
    Tables,
    require_units_last,
    require_vector_last,
)
from training.network.spec import NetworkError, NetworkSpec


class ForecastSpec(NetworkSpec):
    """Reads `num_features`, and forecasts the features at `targets` for `horizon` steps.

    With `quantiles` (ascending, 0.5 among them), or a mean alone. `step` = 24 folds every 24 steps into one for the recurrent
    layers; `seasonal_lag` = 168 makes the forecast a correction to the value 168 steps before it. `decomposition` takes the
    season of `season_length` steps off a history before the layers read it, and adds it to the forecast. `mape_point` adds a
    second point forecast, for the mean absolute percentage error. With `streaming` the series comes value by value
    (`stream.py`), and the first `warm_up` values are scored by no forecast.
    """

    task: Literal["forecast"] = "forecast"
    num_features: PositiveInt = 1
    targets: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = (0,)
    horizon: PositiveInt = 1
    quantiles: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    scaling: ScalingConfig = ScalingConfig()
    step: PositiveInt = 1
    seasonal_lag: PositiveInt | None = None
    streaming: bool = False
    warm_up: PositiveInt = 1
    decomposition: Literal["none", "classical"] = "none"
    season_length: PositiveInt = 1
    mape_point: bool = False

    @model_validator(mode="after")
    def _check_targets_and_quantiles(self) -> ForecastSpec:
        if len(set(self.targets)) != len(self.targets) or max(self.targets) >= self.num_features:
            raise ValueError(f"targets must be different features below {self.num_features}, got {list(self.targets)}")
        if list(self.quantiles) != sorted(set(self.quantiles)):
            raise ValueError(f"quantiles must ascend without repetition, got {list(self.quantiles)}")
        if self.quantiles and 0.5 not in self.quantiles:
            raise ValueError(f"quantiles must hold 0.5, the point forecast, got {list(self.quantiles)}")
        if self.streaming != (self.scaling.kind == "running"):
            raise ValueError('streaming and scaling of kind "running" need each other')
        if self.streaming and (len(self.quantiles) < 3 or self.step > 1):
            raise ValueError("streaming needs three quantiles or more, and step = 1")
        if self.streaming and (self.decomposition != "none" or self.mape_point or self.scaling.centre != "none"):
            raise ValueError("streaming goes without decomposition, mape_point and scaling.centre, which need a whole history")
        if self.decomposition != "none" and self.season_length < 2:
            raise ValueError(f'decomposition "{self.decomposition}" needs a season_length of 2 or more, got {self.season_length}')
        if self.mape_point and not self.quantiles:
            raise ValueError("mape_point is a second point forecast, beside the median: it needs quantiles")
        return self

    @property
    def point(self) -> Literal["mean", "median"]:
        """What the output `forecast` holds: the 0.5 quantile, if there are quantiles."""
        return "median" if self.quantiles else "mean"

    @property
    def answer_shape(self) -> tuple[int, ...]:
        """Of a row: (horizon, targets), with quantiles (horizon, targets, Q)."""
        levels = (len(self.quantiles),) if self.quantiles else ()
        return (self.horizon, len(self.targets), *levels)

    @property
    def points(self) -> list[str]:
        """The point forecasts that the graph gives, the one called `forecast` first."""
        return [self.point, *(["mape"] if self.mape_point else [])]

    @property
    def value_shape(self) -> tuple[int, ...]:
        """Of what the layers give for a row: `answer_shape`, with the second point forecast behind the quantiles."""
        levels = (len(self.quantiles) + self.mape_point,) if self.quantiles else ()
        return (self.horizon, len(self.targets), *levels)

    @property
    def values_per_step(self) -> int:
        """How many values the layers must give for one step of the horizon."""
        return len(self.targets) * max(1, len(self.quantiles) + self.mape_point)


MAPE = "forecast_mape"
"""The output that holds the second point forecast."""


@dataclass(frozen=True)
class ForecastStatistics(Statistics):
    """What a history was scaled by, and what was taken off it then: its season (B, season length, F), its level and its unit."""

    season: Tensor | None = None
    centre: Centre | None = None


@dataclass(frozen=True)
class ForecastStatisticsSymbol(StatisticsSymbol):
    """`ForecastStatistics` in the graph."""

    season: str | None = None
    centre: CentreSymbol | None = None


class ForecastHead(Head):
    """`history` (B, T, F) raw and `lengths` (B,) → `forecast` (B, horizon, targets), `quantiles` (B, horizon, targets, Q)."""

    Spec: ClassVar[type[NetworkSpec]] = ForecastSpec
    spec: ForecastSpec

    def __init__(self, spec: ForecastSpec) -> None:
        super().__init__(spec, "history", Shape(("time", spec.num_features)))
        self.scaler = Scaler(spec.scaling, spec.num_features, spec.targets)
        has_season = spec.decomposition != "none"
        self.decomposition = SeasonalDecomposition(spec.season_length, spec.num_features) if has_season else None
        self.centring = Centring() if spec.scaling.centre == "last" else None

    @classmethod
    def from_spec(cls, spec: ForecastSpec) -> ForecastHead:
        return cls(spec)

    @property
    def first(self) -> Shape:
        return self.source.with_features(self.spec.num_features * self.spec.step)

    @property
    def step(self) -> int:
        return self.spec.step

    @property
    def accepts_pieces(self) -> bool:
        is_whole = self.decomposition is not None or self.centring is not None or self.spec.scaling.kind == "window"
        return not is_whole and self.spec.seasonal_lag is None and self.spec.step == 1

    def min_length(self, num_steps: int) -> int:
        return max(self.spec.step * num_steps, self.spec.seasonal_lag or 1)

    def complete(self, tables: Tables) -> Tables:
        """Fill in the units of the last layer, or check them; a sequence of answers is checked when it is built."""
        spec, (*body, last) = self.spec, tables
        kind = LAYERS.get(str(last.get("type")))
        if kind is not None and kind.is_per_step:
            return tables
        require_units_last(tables)
        needed = spec.horizon * spec.values_per_step
        units = last.get("units")
        if units is None:
            return [*body, {**last, "units": needed}]
        # Of a sequence of answers each step gives its own targets only.
        if units not in (needed, spec.values_per_step):
            parts = f"{spec.horizon} steps × {len(spec.targets)} targets × {max(1, len(spec.quantiles))} quantiles"
            parts += " (and one point forecast)" if spec.mape_point else ""
            message = f"the forecast needs {parts} = {needed}, got {units}"
            raise LayerError(f"layers[{len(body)}]", str(last["type"]), "units", message)
        return tables

    def check(self, layers: Sequence[Layer]) -> None:
        spec, last, where = self.spec, layers[-1], f"layers[{len(layers) - 1}]"
        if last.output.is_sequence and not last.output.is_open:
            needed = (spec.horizon, spec.values_per_step)
            if last.output.axes != needed:
                message = f"the forecast needs {Shape(needed)}: steps, and targets × quantiles; got {last.output}"
                raise LayerError(where, last.config.type, None, message)
            return
        require_vector_last(layers)
        units = spec.horizon * spec.values_per_step
        if last.output.axes != (units,):
            message = f"the forecast needs {units} units, got {last.output.features}"
            raise LayerError(where, last.config.type, "units", message)

    def outputs(self, last: Layer) -> dict[str, Shape]:
        point = {"forecast": Shape(self.spec.answer_shape[:2])}
        quantiles = {"quantiles": Shape(self.spec.answer_shape)} if self.spec.quantiles else {}
        return point | quantiles | ({MAPE: point["forecast"]} if self.spec.mape_point else {})

    def set_statistics(self, values: Tensor) -> None:
        """minmax and standard scaling take the statistics; the other kinds need none and ignore them."""
        if values.dim() != 2 or values.shape[1] != self.spec.num_features:
            raise NetworkError(f"statistics need values (N, {self.spec.num_features}), got {tuple(values.shape)}")
        self.scaler.fit(values)

    # torch

    def read(self, inputs: Mapping[str, Tensor]) -> LayerInput:
        history = Signal(inputs["history"], inputs["lengths"])
        scaling = self.scaler.statistics(history)
        source = Signal(self.scaler.apply_to_history(history.values, scaling), history.lengths)
        season = centre = None
        if self.decomposition is not None:
            season = self.decomposition.measure(source)
            source = source.with_values(source.values - self.decomposition.at_steps(season, source))
        if self.centring is not None:
            centre = self.centring.measure(source)
            source = source.with_values((source.values - centre.level) / centre.unit)
        statistics = ForecastStatistics(scaling.offset, scaling.scale, season, centre)
        signal = source
        if self.spec.step > 1:
            signal = Signal(*ragged.fold_steps(source.values, source.lengths, self.spec.step))
        return LayerInput(signal, source, statistics)

    def predict(self, output: Signal, given: LayerInput) -> Tensor:
        spec, source = self.spec, given.source
        values = output.values.reshape(-1, *spec.value_shape)
        if spec.seasonal_lag is not None:
            offsets = torch.arange(spec.horizon, device=values.device) % spec.seasonal_lag
            base = ragged.last_steps(source.values, source.lengths, offsets, spec.seasonal_lag)[..., list(spec.targets)]
            values = values + (base.unsqueeze(3) if spec.quantiles else base)
        return values

    def answer(self, prediction: Prediction) -> tuple[Tensor, ...]:
        values = self.unscale(prediction.values, prediction)
        if not self.spec.quantiles:
            return (values,)
        quantiles = values[..., : len(self.spec.quantiles)].sort(-1).values
        point = quantiles[..., self.spec.quantiles.index(0.5)]
        return (point, quantiles, values[..., -1]) if self.spec.mape_point else (point, quantiles)

    def scale_target(self, target: Tensor, prediction: Prediction) -> Tensor:
        """Raw targets (B, horizon, targets) into the space of the prediction."""
        scaled = self.scaler.apply_to_target(target, prediction.statistics)
        season, centre = self._components(prediction)
        if season is not None:
            scaled = scaled - season
        return scaled if centre is None else (scaled - centre.level) / centre.unit

    def unscale(self, values: Tensor, prediction: Prediction) -> Tensor:
        """Scaled values (B, horizon, targets, ...) into raw units."""
        season, centre = self._components(prediction)
        if centre is not None:
            values = values * _like(centre.unit, values) + _like(centre.level, values)
        if season is not None:
            values = values + _like(season, values)
        return self.scaler.invert(values, prediction.statistics)

    def _components(self, prediction: Prediction) -> tuple[Tensor | None, Centre | None]:
        """The season of the steps that are forecast, and level and unit, of the targets alone: (B, horizon or 1, targets)."""
        statistics, targets = prediction.statistics, list(self.spec.targets)
        assert isinstance(statistics, ForecastStatistics)
        season, centre = statistics.season, statistics.centre
        if season is not None:
            assert self.decomposition is not None
            season = self.decomposition.ahead(season, self.spec.horizon)[..., targets]
        return season, None if centre is None else Centre(centre.level[..., targets], centre.unit[..., targets])

    # the graph

    def write_input(self, graph: GraphBuilder) -> LayerInputSymbol:
        if not self.scaler.is_fitted:
            raise NetworkError(f'scaling "{self.spec.scaling.kind}" has no statistics yet: call set_statistics first')
        history = Symbol("history", "lengths")
        with graph.scope("scaling"):
            scaling = self.scaler.write_statistics(graph, history)
            source = Symbol(self.scaler.write_apply(graph, history.values, scaling), history.lengths)
        season = centre = None
        if self.decomposition is not None:
            with graph.scope("season"):
                season = self.decomposition.write_measure(graph, source)
                at_steps = self.decomposition.write_at_steps(graph, season, source)
                source = source.with_values(graph.add("Sub", source.values, at_steps))
        if self.centring is not None:
            with graph.scope("centre"):
                centre = self.centring.write_measure(graph, source)
                values = graph.add("Sub", source.values, centre.level)
                source = source.with_values(graph.add("Div", values, centre.unit))
        statistics = ForecastStatisticsSymbol(scaling.offset, scaling.scale, season, centre)
        symbol = source
        if self.spec.step > 1:
            assert source.lengths is not None
            with graph.scope("step"):
                folded = ragged.write_fold_steps(graph, source.values, source.lengths, self.spec.step, self.spec.num_features)
                symbol = Symbol(*folded)
        return LayerInputSymbol(symbol, source, statistics)

    def write_answer(self, graph: GraphBuilder, output: Symbol, given: LayerInputSymbol) -> tuple[str, ...]:
        spec = self.spec
        with graph.scope("answer"):
            values = graph.add("Reshape", output.values, graph.constant([0, *spec.value_shape]))
        if spec.seasonal_lag is not None:
            with graph.scope("seasonal"):
                values = self._write_seasonal(graph, values, given.source, spec.seasonal_lag)
        with graph.scope("answer"):
            values = self._write_components(graph, values, given.statistics)
            values = self.scaler.write_invert(graph, values, given.statistics, 1 + len(spec.value_shape))
            if not spec.quantiles:
                return (values,)
            count = graph.constant([len(spec.quantiles)])
            levels = values
            if spec.mape_point:
                levels = graph.add("Slice", values, graph.constant([0]), count, graph.constant([3]))
            quantiles, _ = graph.add_many("TopK", levels, count, num_outputs=2, axis=-1, largest=0, sorted=1)
            point = graph.add("Gather", quantiles, graph.constant(spec.quantiles.index(0.5)), axis=3)
            if not spec.mape_point:
                return point, quantiles
            return point, quantiles, graph.add("Gather", values, graph.constant(len(spec.quantiles)), axis=3)

    def _write_components(self, graph: GraphBuilder, values: str, statistics: StatisticsSymbol) -> str:
        """Unit, level and season, given back to a prediction."""
        assert isinstance(statistics, ForecastStatisticsSymbol)

        def of_targets(part: str) -> str:
            part = graph.add("Gather", part, graph.constant(list(self.spec.targets)), axis=2) if self.scaler.chooses else part
            return graph.add("Unsqueeze", part, graph.constant([3])) if self.spec.quantiles else part

        if statistics.centre is not None:
            values = graph.add("Mul", values, of_targets(statistics.centre.unit))
            values = graph.add("Add", values, of_targets(statistics.centre.level))
        if statistics.season is not None:
            assert self.decomposition is not None
            ahead = self.decomposition.write_ahead(graph, statistics.season, self.spec.horizon)
            values = graph.add("Add", values, of_targets(ahead))
        return values

    def _write_seasonal(self, graph: GraphBuilder, values: str, source: Symbol, lag: int) -> str:
        offsets = [step % lag for step in range(self.spec.horizon)]
        assert source.lengths is not None
        base = ragged.write_last_steps(graph, source.values, source.lengths, offsets, lag)
        if self.scaler.chooses:
            base = graph.add("Gather", base, graph.constant(list(self.spec.targets)), axis=2)
        if self.spec.quantiles:
            base = graph.add("Unsqueeze", base, graph.constant([3]))
        return graph.add("Add", values, base)

    # verification

    def draws(self) -> dict[str, Draw]:
        """Within the fitted statistics; for window scaling on a level of its own, with zeros, and half of the time both signs."""
        kind = self.spec.scaling.kind
        if kind == "window":
            return {"of any level": _draw_levels}
        offset, scale = self.scaler.offset.cpu().numpy(), self.scaler.scale.cpu().numpy()
        draws: dict[str, Draw] = {"within the scaling": lambda random, shape: offset + scale * random.uniform(-1, 1, shape)}
        # Without scaling the values are those of the network's own training, which nobody knows.
        return draws if kind != "none" else super().draws()

    def error_scale(self, name: str, expected: NDArray[Any], inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """The largest value of the row's history or forecast; states lie between -1 and 1 as they are."""
        if name not in ("forecast", "quantiles", MAPE):
            return super().error_scale(name, expected, inputs)
        history = [np.abs(row[:length]).max() for row, length in zip(inputs["history"], inputs["lengths"], strict=True)]
        largest = np.maximum(history, np.abs(expected).max(axis=tuple(range(1, expected.ndim))))
        floor: NDArray[Any] = np.maximum(largest, np.finfo(np.float32).tiny)
        return floor


def _like(part: Tensor, values: Tensor) -> Tensor:
    """(B, ..., targets) with as many axes as the values."""
    return part.unsqueeze(3) if values.dim() == 4 else part


def _draw_levels(random: np.random.Generator, shape: tuple[int, ...]) -> NDArray[Any]:
    values: NDArray[Any] = 10.0 ** random.uniform(-2, 4) * random.lognormal(size=shape)
    values *= random.random(shape) > 0.05
    if random.random() < 0.5:
        values *= random.choice([-1, 1], shape)
    return values
