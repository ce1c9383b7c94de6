"""Forecasts: raw histories in, the next steps of the targets out, with scaling, daily steps and quantiles inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor

from training.graph.builder import GraphBuilder
from training.layers import ragged
from training.layers.bases import TINY, BaseConfig, BaseForecasts, Measured, MeasuredSymbol
from training.layers.covariates import CovariateConfig, CovariateEncoder
from training.layers.decomposition import Centre, CentreSymbol, Centring, SeasonalDecomposition
from training.layers.registry import LAYERS, Layer, LayerError, Shape, Signal, Symbol
from training.layers.scaling import Scaler, ScalingConfig, Statistics, StatisticsSymbol
from training.layers.theta import theta, write_theta
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
    (`stream.py`), and the first `warm_up` values are scored by no forecast. `covariates` are columns that are known ahead:
    the layers read those of the history beside it, and a layer `decoder_input` gives those of each step that is forecast.
    `bases` are simple forecasts of a history's last `context_length` steps, tried at `base_origins` earlier origins of it; the
    layers read its last `read_length` steps, and give each base's weight and what is added to their mean. With `independent`
    each feature is a row of its own for the layers, which know no other: B · F rows of one feature. `theta_share` mixes the
    Theta method's forecast into the answer, of the values that the layers read; what they learn is not changed by it.
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
    covariates: tuple[CovariateConfig, ...] = ()
    bases: tuple[BaseConfig, ...] = ()
    base_origins: PositiveInt = 1
    context_length: PositiveInt = 1
    read_length: PositiveInt = 1
    independent: bool = False
    theta_share: Annotated[float, Field(ge=0, lt=1)] = 0.0

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
        if self.streaming and (self.covariates or self.theta_share):
            raise ValueError("streaming goes without covariates and theta_share")
        if self.decomposition != "none" and self.season_length < 2:
            raise ValueError(f'decomposition "{self.decomposition}" needs a season_length of 2 or more, got {self.season_length}')
        if self.mape_point and not self.quantiles:
            raise ValueError("mape_point is a second point forecast, beside the median: it needs quantiles")
        if bool(self.bases) != (self.scaling.kind == "seasonal"):
            raise ValueError('bases and scaling of kind "seasonal" need each other')
        if self.bases:
            self._check_bases()
        if self.independent and (self.covariates or self.streaming or self.bases):
            raise ValueError("independent goes without covariates, streaming and bases")
        return self

    def _check_bases(self) -> None:
        others = (self.seasonal_lag, self.theta_share, self.decomposition != "none", self.scaling.centre != "none")
        if self.covariates or any(others):
            raise ValueError("bases go without covariates, seasonal_lag, theta_share, decomposition and scaling.centre")
        if self.season_length < 2:
            raise ValueError(f"bases need a season_length of 2 or more, got {self.season_length}")
        needed = self.read_length + max(base.lag for base in self.bases)
        if needed > self.context_length:
            raise ValueError(f"bases and read_length need a context_length of {needed} or more, got {self.context_length}")

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
        """Of a row's prediction: `answer_shape`, with the second point forecast behind the quantiles."""
        levels = (len(self.quantiles) + self.mape_point,) if self.quantiles else ()
        return (self.horizon, len(self.targets), *levels)

    @property
    def values_per_step(self) -> int:
        """How many values the layers must give for one step of the horizon."""
        num_values = max(1, len(self.quantiles) + self.mape_point) + len(self.bases)
        return num_values if self.independent else len(self.targets) * num_values


FURTHEST_TARGET = 1000.0
"""In seasonal changes: what follows a constant history may be any number of them away, and would decide the loss of an epoch."""
MAPE = "forecast_mape"
"""The output that holds the second point forecast."""
PAST, FUTURE = "past_covariates", "future_covariates"
"""The inputs with the covariates of a history's steps, and of those that are forecast."""


@dataclass(frozen=True)
class ForecastStatistics(Statistics):
    """What a history was scaled by, and what was taken off it then: its season (B, season length, F), its level and its unit.

    Or what it says of itself, by which it is scaled too. `theta` is that method's forecast of what was left, (B, horizon,
    targets), where the answer takes a share of it.
    """

    season: Tensor | None = None
    centre: Centre | None = None
    measured: Measured | None = None
    theta: Tensor | None = None


@dataclass(frozen=True)
class ForecastStatisticsSymbol(StatisticsSymbol):
    """`ForecastStatistics` in the graph."""

    season: str | None = None
    centre: CentreSymbol | None = None
    measured: MeasuredSymbol | None = None
    theta: str | None = None


class ForecastHead(Head):
    """`history` (B, T, F) raw and `lengths` (B,) → `forecast` (B, horizon, targets), `quantiles` (B, horizon, targets, Q).

    With covariates also `past_covariates` (B, T, C) and `future_covariates` (B, horizon, C), raw. A step of the forecast
    depends on the covariates until then and on none behind it, so a shorter horizon is the begin of a longer one.
    """

    Spec: ClassVar[type[NetworkSpec]] = ForecastSpec
    spec: ForecastSpec

    def __init__(self, spec: ForecastSpec) -> None:
        super().__init__(spec, "history", Shape(("time", spec.num_features)))
        self.scaler = Scaler(spec.scaling, spec.num_features, spec.targets)
        has_season = spec.decomposition != "none"
        self.decomposition = SeasonalDecomposition(spec.season_length, spec.num_features) if has_season else None
        self.centring = Centring(has_unit=spec.scaling.centre == "last") if spec.scaling.centre != "none" else None
        self.encoder = CovariateEncoder(spec.covariates) if spec.covariates else None
        self.base_forecasts = _base_forecasts(spec) if spec.bases else None

    @classmethod
    def from_spec(cls, spec: ForecastSpec) -> ForecastHead:
        return cls(spec)

    @property
    def num_covariate_features(self) -> int:
        """Features that are made of the covariates of one step."""
        return self.encoder.num_features if self.encoder is not None else 0

    @property
    def first(self) -> Shape:
        if self.base_forecasts is not None:
            return self.source.with_features(self.base_forecasts.num_channels * self.spec.step + self.base_forecasts.num_facts)
        if self.spec.independent:
            return self.source.with_features(self.spec.step)
        return self.source.with_features((self.spec.num_features + self.num_covariate_features) * self.spec.step)

    @property
    def scaled_source(self) -> Shape:
        if self.base_forecasts is not None:
            return self.source.with_features(self.base_forecasts.num_channels)
        if self.spec.independent:
            return replace(self.source.with_features(1), one_of=self.spec.num_features)
        return replace(self.source, ahead=(self.spec.horizon, self.num_covariate_features))

    @property
    def further_inputs(self) -> Mapping[str, Shape]:
        count = len(self.spec.covariates)
        return {PAST: Shape(("time", count)), FUTURE: Shape((self.spec.horizon, count))} if count else {}

    @property
    def step(self) -> int:
        return self.spec.step

    @property
    def why_no_pieces(self) -> str:
        spec = self.spec
        if spec.scaling.kind in ("window", "seasonal") or spec.scaling.centre != "none":
            return "scales each history by a part of itself, which a piece does not have"
        if spec.decomposition != "none":
            return "takes each history's own season off it, which a piece does not have"
        if spec.seasonal_lag is not None:
            return f"corrects the value {spec.seasonal_lag} steps earlier, which a piece need not have"
        if spec.step > 1:
            return f"folds {spec.step} steps into one, counted from the end of a history"
        if spec.theta_share:
            return "mixes in the Theta method's forecast, which is one of a whole history"
        if spec.independent:
            return "reads each feature as a row of its own, which has no state of its own"
        return ""

    @property
    def read_length(self) -> int | None:
        return self.spec.read_length if self.base_forecasts is not None else None

    def min_length(self, num_steps: int) -> int:
        if self.base_forecasts is not None:
            return self.base_forecasts.min_length
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
        num_steps = _num_steps(body, spec.horizon)
        if units is None:
            return [*body, {**last, "units": max(1, needed // num_steps)}]
        # Of a sequence of answers each step gives its own targets only.
        if units not in (needed, spec.values_per_step, needed / num_steps):
            parts = f"{spec.horizon} steps × {len(spec.targets)} targets × {max(1, len(spec.quantiles))} quantiles"
            parts += " (and one point forecast)" if spec.mape_point else ""
            message = f"the forecast needs {parts} = {needed}, got {units}"
            raise LayerError(f"layers[{len(body)}]", str(last["type"]), "units", message)
        return tables

    def check(self, layers: Sequence[Layer]) -> None:
        spec, last, where = self.spec, layers[-1], f"layers[{len(layers) - 1}]"
        if spec.covariates:
            _check_decoder(layers, spec.horizon)
        if last.output.is_sequence and not last.output.is_open:
            self._check_sequence(last.output, where, last.config.type)
            return
        require_vector_last(layers)
        units = spec.horizon * spec.values_per_step
        if last.output.axes != (units,):
            message = f"the forecast needs {units} units, got {last.output.features}"
            raise LayerError(where, last.config.type, "units", message)

    def _check_sequence(self, found: Shape, where: str, kind: str) -> None:
        """Raise LayerError unless each step of a sequence of answers is an equal part of the horizon."""
        horizon, width = self.spec.horizon, self.spec.values_per_step
        num_parts = found.fixed_axes[0]
        needed = (num_parts, horizon // num_parts * width) if horizon % num_parts == 0 else (horizon, width)
        if found.axes != needed:
            message = f"the forecast needs {Shape(needed)}: steps, and targets × quantiles; got {found}"
            raise LayerError(where, kind, None, message)

    def outputs(self, last: Layer) -> dict[str, Shape]:
        point = {"forecast": Shape(self.spec.answer_shape[:2])}
        quantiles = {"quantiles": Shape(self.spec.answer_shape)} if self.spec.quantiles else {}
        return point | quantiles | ({MAPE: point["forecast"]} if self.spec.mape_point else {})

    def set_statistics(self, values: Tensor) -> None:
        """minmax and standard scaling take statistics, the other kinds need none; covariates are the last columns of `values`."""
        num_features = self.spec.num_features
        if values.dim() != 2 or values.shape[1] != num_features + len(self.spec.covariates):
            columns = num_features + len(self.spec.covariates)
            raise NetworkError(f"statistics need values (N, {columns}), got {tuple(values.shape)}")
        self.scaler.fit(values[:, :num_features])
        if self.encoder is not None:
            self.encoder.fit(values[:, num_features:])

    # torch

    def read(self, inputs: Mapping[str, Tensor]) -> LayerInput:
        history = Signal(inputs["history"], inputs["lengths"])
        if self.base_forecasts is not None:
            return self._read_bases(self.base_forecasts, history)
        scaling = self.scaler.statistics(history)
        source = Signal(self.scaler.apply_to_history(history.values, scaling), history.lengths)
        season = centre = None
        if self.decomposition is not None:
            season = self.decomposition.measure(source)
            source = source.with_values(source.values - self.decomposition.at_steps(season, source))
        if self.centring is not None:
            centre = self.centring.measure(source)
            source = source.with_values((source.values - centre.level) / centre.unit)
        own = None
        if self.spec.theta_share and not self.training:
            own = theta(source, self.spec.horizon)[..., list(self.spec.targets)]
        statistics = ForecastStatistics(scaling.offset, scaling.scale, season, centre, theta=own)
        if self.spec.independent:
            rows = source.values.transpose(1, 2).reshape(-1, source.values.shape[1], 1)  # (B · F, T, 1)
            num_rows, count = len(source.values), self.spec.num_features
            feature = torch.arange(count, device=rows.device).repeat(num_rows)  # (B · F,)
            source = Signal(rows, source.lengths.repeat_interleave(count), feature=feature)
        signal = source
        if self.encoder is not None:
            signal = source.with_values(torch.cat([source.values, self.encoder(inputs[PAST])], 2))
            source = replace(source, ahead=self.encoder(inputs[FUTURE]))
        if self.spec.step > 1:
            signal = Signal(*ragged.fold_steps(signal.values, signal.lengths, self.spec.step))
        return LayerInput(signal, source, statistics)

    def _read_bases(self, bases: BaseForecasts, history: Signal) -> LayerInput:
        measured = bases.measure(history)
        source = Signal(measured.channels, torch.full_like(history.lengths, self.spec.read_length))
        folded, lengths = ragged.fold_steps(source.values, source.lengths, self.spec.step)
        facts = measured.facts.expand(-1, folded.shape[1], -1)
        statistics = ForecastStatistics(measured.level, measured.scale, measured=measured)
        return LayerInput(Signal(torch.cat([folded, facts], 2), lengths), source, statistics)

    def predict(self, output: Signal, given: LayerInput) -> Tensor:
        spec, source = self.spec, given.source
        if self.base_forecasts is not None:
            return self._correct(self.base_forecasts, output.values, given.statistics)
        if spec.independent:
            return self._of_rows(output.values, source)
        values = output.values.reshape(-1, *spec.value_shape)
        if spec.seasonal_lag is not None:
            base = self._seasonal_base(source, spec.seasonal_lag)[..., list(spec.targets)]
            values = values + (base.unsqueeze(3) if spec.quantiles else base)
        return values

    def _seasonal_base(self, source: Signal, lag: int) -> Tensor:
        """The values `lag` steps before those that are forecast, again and again: (rows, horizon, features)."""
        offsets = torch.arange(self.spec.horizon, device=source.values.device) % lag
        return ragged.last_steps(source.values, source.lengths, offsets, lag)

    def _of_rows(self, output: Tensor, source: Signal) -> Tensor:
        """What the layers give for B · F rows, as the prediction of B."""
        spec = self.spec
        levels = spec.value_shape[2:]
        values = output.reshape(-1, spec.horizon, *levels)  # (B · F, horizon, ...)
        if spec.seasonal_lag is not None:
            base = self._seasonal_base(source, spec.seasonal_lag)  # (B · F, horizon, 1)
            values = values + (base if levels else base.squeeze(2))
        values = values.view(-1, spec.num_features, spec.horizon, *levels)
        return values.transpose(1, 2)[:, :, list(spec.targets)]

    def _correct(self, bases: BaseForecasts, output: Tensor, statistics: Statistics) -> Tensor:
        """The bases' weighted mean, and what the layers add to it in units of their errors at that place of a season."""
        assert isinstance(statistics, ForecastStatistics)
        assert statistics.measured is not None
        spec, measured, targets = self.spec, statistics.measured, list(self.spec.targets)
        values = output.reshape(len(measured.level), spec.horizon, len(targets), -1)
        corrections, weights = values[..., : -len(spec.bases)], values[..., -len(spec.bases) :]
        level, scale = (part[..., targets] for part in (measured.level, measured.scale))
        base, unit = bases.combine(measured, weights, targets)
        base = (base - level) / scale
        # Less TINY: to a history of zeros nothing is added.
        corrected = base.unsqueeze(3) + corrections * ((unit - TINY) / scale).unsqueeze(3)
        return corrected if spec.quantiles else corrected.squeeze(3)

    def answer(self, prediction: Prediction) -> tuple[Tensor, ...]:
        values = self.unscale(self._mixed(prediction), prediction)
        if self.base_forecasts is not None:
            assert isinstance(prediction.statistics, ForecastStatistics)
            assert prediction.statistics.measured is not None
            values = values.maximum(_like(prediction.statistics.measured.lowest[..., list(self.spec.targets)], values))
        if not self.spec.quantiles:
            return (values,)
        quantiles = values[..., : len(self.spec.quantiles)].sort(-1).values
        point = quantiles[..., self.spec.quantiles.index(0.5)]
        return (point, quantiles, values[..., -1]) if self.spec.mape_point else (point, quantiles)

    def _mixed(self, prediction: Prediction) -> Tensor:
        """The values, all quantiles moved by as much as the median is when it takes a share of the Theta method's forecast.

        The second point forecast stays as it was learned.
        """
        spec, values, statistics = self.spec, prediction.values, prediction.statistics
        if not spec.theta_share:
            return values
        assert isinstance(statistics, ForecastStatistics)
        assert statistics.theta is not None, "answers are given by a network that is not training"
        if not spec.quantiles:
            return values + spec.theta_share * (statistics.theta - values)
        quantiles, others = values[..., : len(spec.quantiles)].sort(-1).values, values[..., len(spec.quantiles) :]
        median = quantiles[..., spec.quantiles.index(0.5)]
        moves = spec.theta_share * (statistics.theta - median)
        return torch.cat([quantiles + moves.unsqueeze(3), others], 3)

    def scale_target(self, target: Tensor, prediction: Prediction) -> Tensor:
        """Raw targets (B, horizon, targets) into the space of the prediction."""
        scaled = self.scaler.apply_to_target(target, prediction.statistics)
        if self.base_forecasts is not None:
            return scaled.clamp(-FURTHEST_TARGET, FURTHEST_TARGET)
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

    def target_scale(self, prediction: Prediction) -> Tensor:
        """(B, 1, targets), of histories that are scaled by an offset and a scale of their own. Raises NetworkError for others."""
        scale = prediction.statistics.scale
        if scale is None:
            raise NetworkError(f'scaling kind "{self.spec.scaling.kind}" has no scale of its own for a history')
        return scale[..., list(self.spec.targets)]

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
        if not self.scaler.is_fitted or not (self.encoder is None or self.encoder.is_fitted):
            raise NetworkError(f'scaling "{self.spec.scaling.kind}" has no statistics yet: call set_statistics first')
        history = Symbol("history", "lengths")
        if self.base_forecasts is not None:
            return self._write_bases(graph, self.base_forecasts, history)
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
                source = source.with_values(graph.add("Div", values, centre.unit) if self.centring.has_unit else values)
        own = None
        if self.spec.theta_share:
            with graph.scope("theta"):
                own = self._write_targets(graph, write_theta(graph, source, self.spec.horizon))
        statistics = ForecastStatisticsSymbol(scaling.offset, scaling.scale, season, centre, theta=own)
        if self.spec.independent:
            with graph.scope("features"):
                source = self._write_rows(graph, source)
        symbol = source
        if self.encoder is not None:
            with graph.scope("covariates"):
                values = graph.add("Concat", source.values, self.encoder.write(graph, PAST), axis=2)
                symbol, source = source.with_values(values), replace(source, ahead=self.encoder.write(graph, FUTURE))
        if self.spec.step > 1:
            assert symbol.lengths is not None
            num_features = self.spec.num_features + self.num_covariate_features
            num_features = 1 if self.spec.independent else num_features
            with graph.scope("step"):
                folded = ragged.write_fold_steps(graph, symbol.values, symbol.lengths, self.spec.step, num_features)
                symbol = Symbol(*folded)
        return LayerInputSymbol(symbol, source, statistics)

    def _write_rows(self, graph: GraphBuilder, source: Symbol) -> Symbol:
        """Each feature as a row: (B, T, F) to (B · F, T, 1), with the lengths of each."""
        assert source.lengths is not None
        count = self.spec.num_features
        shape = graph.add(
            "Concat", graph.constant([-1]), ragged.write_num_steps(graph, source.values), graph.constant([1]), axis=0
        )
        values = graph.add("Reshape", graph.add("Transpose", source.values, perm=[0, 2, 1]), shape)
        lengths = graph.add("Tile", ragged.write_column(graph, source.lengths), graph.constant([1, count]))
        features = graph.add("Tile", graph.constant(list(range(count))), graph.add("Shape", source.lengths))
        return Symbol(values, graph.add("Reshape", lengths, graph.constant([-1])), feature=features)

    def _write_of_rows(self, graph: GraphBuilder, output: str, source: Symbol) -> str:
        """`_of_rows` in the graph."""
        spec = self.spec
        levels = spec.value_shape[2:]
        values = graph.add("Reshape", output, graph.constant([-1, spec.horizon, *levels]))
        if spec.seasonal_lag is not None:
            base = self._write_seasonal_base(graph, source, spec.seasonal_lag)
            values = graph.add("Add", values, base if levels else graph.add("Squeeze", base, graph.constant([2])))
        values = graph.add("Reshape", values, graph.constant([-1, spec.num_features, spec.horizon, *levels]))
        values = graph.add("Transpose", values, perm=[0, 2, 1, *range(3, 3 + len(levels))])
        return graph.add("Gather", values, graph.constant(list(spec.targets)), axis=2) if self.scaler.chooses else values

    def _write_bases(self, graph: GraphBuilder, bases: BaseForecasts, history: Symbol) -> LayerInputSymbol:
        spec = self.spec
        assert history.lengths is not None
        with graph.scope("bases"):
            measured = bases.write_measure(graph, history)
        with graph.scope("step"):
            # Each row has as many steps as the layers read, so that none is ragged.
            number, width = spec.read_length // spec.step, spec.step * bases.num_channels
            left_out = graph.constant([spec.read_length % spec.step])
            folded = graph.add("Slice", measured.channels, left_out, graph.constant([spec.read_length]), graph.constant([1]))
            folded = graph.add("Reshape", folded, graph.constant([0, number, width]))
            facts = graph.add("Tile", measured.facts, graph.constant([1, number, 1]))
            values = graph.add("Concat", folded, facts, axis=2)
            zeros = graph.add("Mul", history.lengths, graph.constant(0))
            lengths, read = (graph.add("Add", zeros, graph.constant(count)) for count in (number, spec.read_length))
        statistics = ForecastStatisticsSymbol(measured.level, measured.scale, measured=measured)
        return LayerInputSymbol(Symbol(values, lengths), Symbol(measured.channels, read), statistics)

    def _write_corrected(self, graph: GraphBuilder, bases: BaseForecasts, output: str, measured: MeasuredSymbol) -> str:
        """`_correct` in the graph."""
        spec, targets = self.spec, list(self.spec.targets)
        count, last = spec.values_per_step // len(targets), graph.constant([3])
        values = graph.add("Reshape", output, graph.constant([0, spec.horizon, len(targets), count]))
        border = graph.constant([count - len(spec.bases)])
        corrections = graph.add("Slice", values, graph.constant([0]), border, last)
        weights = graph.add("Slice", values, border, graph.constant([count]), last)
        level, scale = (self._write_targets(graph, part) for part in (measured.level, measured.scale))
        base, unit = bases.write_combine(graph, measured, weights, targets)
        base = graph.add("Sub", base, level)
        base = graph.add("Unsqueeze", graph.add("Div", base, scale), last)
        share = graph.add("Div", graph.add("Sub", unit, graph.constant(TINY)), scale)
        share = graph.add("Unsqueeze", share, last)
        corrected = graph.add("Add", base, graph.add("Mul", corrections, share))
        return corrected if spec.quantiles else graph.add("Squeeze", corrected, last)

    def _write_targets(self, graph: GraphBuilder, part: str) -> str:
        return graph.add("Gather", part, graph.constant(list(self.spec.targets)), axis=2) if self.scaler.chooses else part

    def write_answer(self, graph: GraphBuilder, output: Symbol, given: LayerInputSymbol) -> tuple[str, ...]:
        spec = self.spec
        measured = given.statistics.measured if isinstance(given.statistics, ForecastStatisticsSymbol) else None
        with graph.scope("answer"):
            if self.base_forecasts is not None and measured is not None:
                values = self._write_corrected(graph, self.base_forecasts, output.values, measured)
            elif spec.independent:
                values = self._write_of_rows(graph, output.values, given.source)
            else:
                values = graph.add("Reshape", output.values, graph.constant([0, *spec.value_shape]))
        if spec.seasonal_lag is not None and not spec.independent:
            with graph.scope("seasonal"):
                values = self._write_seasonal(graph, values, given.source, spec.seasonal_lag)
        with graph.scope("answer"):
            values = self._write_mixed(graph, values, given.statistics)
            values = self._write_components(graph, values, given.statistics)
            values = self.scaler.write_invert(graph, values, given.statistics, 1 + len(spec.value_shape))
            if measured is not None:
                lowest = self._write_targets(graph, measured.lowest)
                lowest = graph.add("Unsqueeze", lowest, graph.constant([3])) if spec.quantiles else lowest
                values = graph.add("Max", values, lowest)
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

    def _write_mixed(self, graph: GraphBuilder, values: str, statistics: StatisticsSymbol) -> str:
        """`_mixed` in the graph."""
        spec = self.spec
        assert isinstance(statistics, ForecastStatisticsSymbol)
        if statistics.theta is None:
            return values
        share = graph.constant(spec.theta_share)
        if not spec.quantiles:
            return graph.add("Add", values, graph.add("Mul", share, graph.add("Sub", statistics.theta, values)))
        count, last = graph.constant([len(spec.quantiles)]), graph.constant([3])
        levels = graph.add("Slice", values, graph.constant([0]), count, last)
        levels, _ = graph.add_many("TopK", levels, count, num_outputs=2, axis=-1, largest=0, sorted=1)
        median = graph.add("Gather", levels, graph.constant([spec.quantiles.index(0.5)]), axis=3)
        move = graph.add("Sub", graph.add("Unsqueeze", statistics.theta, last), median)
        moved = graph.add("Add", levels, graph.add("Mul", share, move))
        if not spec.mape_point:
            return moved
        point = graph.add("Gather", values, graph.constant([len(spec.quantiles)]), axis=3)
        return graph.add("Concat", moved, point, axis=3)

    def _write_components(self, graph: GraphBuilder, values: str, statistics: StatisticsSymbol) -> str:
        """Unit, level and season, given back to a prediction."""
        assert isinstance(statistics, ForecastStatisticsSymbol)

        def of_targets(part: str) -> str:
            part = graph.add("Gather", part, graph.constant(list(self.spec.targets)), axis=2) if self.scaler.chooses else part
            return graph.add("Unsqueeze", part, graph.constant([3])) if self.spec.quantiles else part

        if statistics.centre is not None:
            if self.spec.scaling.centre == "last":
                values = graph.add("Mul", values, of_targets(statistics.centre.unit))
            values = graph.add("Add", values, of_targets(statistics.centre.level))
        if statistics.season is not None:
            assert self.decomposition is not None
            ahead = self.decomposition.write_ahead(graph, statistics.season, self.spec.horizon)
            values = graph.add("Add", values, of_targets(ahead))
        return values

    def _write_seasonal(self, graph: GraphBuilder, values: str, source: Symbol, lag: int) -> str:
        base = self._write_seasonal_base(graph, source, lag)
        if self.scaler.chooses:
            base = graph.add("Gather", base, graph.constant(list(self.spec.targets)), axis=2)
        if self.spec.quantiles:
            base = graph.add("Unsqueeze", base, graph.constant([3]))
        return graph.add("Add", values, base)

    def _write_seasonal_base(self, graph: GraphBuilder, source: Symbol, lag: int) -> str:
        """`_seasonal_base` in the graph."""
        assert source.lengths is not None
        offsets = [step % lag for step in range(self.spec.horizon)]
        return ragged.write_last_steps(graph, source.values, source.lengths, offsets, lag)

    # verification

    def draws(self) -> dict[str, Draw]:
        """Within the fitted statistics; for window scaling on a level of its own, with zeros, and half of the time both signs."""
        kind = self.spec.scaling.kind
        if kind in ("window", "seasonal"):
            return {"of any level": _draw_levels}
        offset, scale = self.scaler.offset.cpu().numpy(), self.scaler.scale.cpu().numpy()
        draws: dict[str, Draw] = {"within the scaling": lambda random, shape: offset + scale * random.uniform(-1, 1, shape)}
        # Without scaling the values are those of the network's own training, which nobody knows.
        return draws if kind != "none" else super().draws()

    def draw_further(self, name: str, random: np.random.Generator, shape: tuple[int, ...]) -> NDArray[Any]:
        """Numbers within the fitted statistics, and every one of the categories and places of cycles."""
        assert self.encoder is not None
        offset, scale = self.encoder.offset.cpu().numpy(), self.encoder.scale.cpu().numpy()
        values = np.empty(shape)
        for place, config in enumerate(self.spec.covariates):
            values[..., place] = random.integers(config.first, config.first + config.size, shape[:-1])
        for number, place in enumerate(self.encoder.numbers):
            values[..., place] = offset[number] + scale[number] * random.uniform(-1, 1, shape[:-1])
        return values

    def error_scale(self, name: str, expected: NDArray[Any], inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """The largest value of the row's history or forecast; states lie between -1 and 1 as they are.

        Of logs no value is known better than to a rounding of `floor`, which is what is left of a history of zeros.
        """
        if name not in ("forecast", "quantiles", MAPE):
            return super().error_scale(name, expected, inputs)
        history = [np.abs(row[:length]).max() for row, length in zip(inputs["history"], inputs["lengths"], strict=True)]
        largest = np.maximum(history, np.abs(expected).max(axis=tuple(range(1, expected.ndim))))
        if self.spec.scaling.transform == "log":
            largest = np.where(np.array(history) == 0, np.maximum(largest, self.spec.scaling.floor), largest)
        scale: NDArray[Any] = np.maximum(largest, np.finfo(np.float32).tiny)
        return scale


def _base_forecasts(spec: ForecastSpec) -> BaseForecasts:
    return BaseForecasts(
        spec.bases,
        horizon=spec.horizon,
        season_length=spec.season_length,
        context_length=spec.context_length,
        read_length=spec.read_length,
        origins=spec.base_origins,
        num_features=spec.num_features,
    )


def _num_steps(tables: Sequence[Mapping[str, Any]], horizon: int) -> int:
    """Of the sequence that the last layer reads: the horizon's own, its parts, or 1 where it reads a vector."""
    for table in reversed(tables):
        kind = LAYERS.get(str(table.get("type")))
        if kind is not None and kind.reads_ahead:
            return horizon
        if kind is not None and kind.gives_parts and isinstance(n := table.get("n"), int) and n > 0:
            return n
    return 1


def _check_decoder(layers: Sequence[Layer], horizon: int) -> None:
    """Raise LayerError unless a layer gives the steps that are forecast, and all behind it go on step by step."""
    decoder = next((index for index, layer in enumerate(layers) if layer.reads_ahead), None)
    if decoder is None:
        message = "covariates need a layer decoder_input before it, which gives the steps that are forecast"
        raise LayerError(f"layers[{len(layers) - 1}]", layers[-1].config.type, None, message)
    for index, layer in enumerate(layers[decoder + 1 :], decoder + 1):
        if not layer.can_stream or layer.output.axes[0] != horizon or len(layer.output.axes) != 2:
            message = "behind decoder_input a layer reads each step and those before it: a shorter horizon knows no others"
            raise LayerError(f"layers[{index}]", layer.config.type, None, message)


def _like(part: Tensor, values: Tensor) -> Tensor:
    """(B, ..., targets) with as many axes as the values."""
    return part.unsqueeze(3) if values.dim() == 4 else part


def _draw_levels(random: np.random.Generator, shape: tuple[int, ...]) -> NDArray[Any]:
    values: NDArray[Any] = 10.0 ** random.uniform(-2, 4) * random.lognormal(size=shape)
    values *= random.random(shape) > 0.05
    if random.random() < 0.5:
        values *= random.choice([-1, 1], shape)
    return values
