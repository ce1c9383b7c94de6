"""From raw values to what a network learns on, and back: scaled = transform((value - offset) / scale).

Part of the network and of its graph, so that whatever runs them needs no scaling of its own. Fits its statistics on the
values of the call; that these are the training part only is up to the caller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator
from torch import Tensor, nn

from training.graph.builder import GraphBuilder
from training.layers import ragged
from training.layers.base import Signal, Symbol


class ScalingConfig(BaseModel):
    """none; minmax to 0..1 and standard, with statistics of the training part per feature; window, per row; running; seasonal.

    window divides by the mean absolute value of the row's last `length` steps (all if left out; 1 where that is 0),
    then applies `transform`. log is the logarithm of value + `floor` (in scaled units), so that zeros are
    accepted; a row that goes below zero is first lifted by twice its depth, so that temperatures are accepted too. A target
    that lies below zero after that counts as zero, and no forecast does. Behind any kind, `centre` = "last" makes each history
    relative to its last value, in units of its mean absolute step (`training/layers/decomposition.py`), "level" without the
    unit. running is for streams (`running_scaling.py`), over about `span` steps. seasonal takes what a history's own simple
    forecasts say of it (`bases.py`): its level, and how much it changes over a season.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["none", "minmax", "standard", "window", "running", "seasonal"] = "none"
    length: PositiveInt | None = None
    transform: Literal["none", "log", "asinh"] = "none"
    floor: Annotated[float, Field(gt=0)] = 1e-2
    span: PositiveInt | None = None
    centre: Literal["none", "last", "level"] = "none"

    @model_validator(mode="after")
    def _options_belong_to_the_kind(self) -> ScalingConfig:
        for option in ("length", "transform", "floor"):
            if self.kind != "window" and getattr(self, option) != type(self).model_fields[option].default:
                raise ValueError(f'option "{option}" belongs to kind "window", not "{self.kind}"')
        if (self.kind == "running") != (self.span is not None):
            raise ValueError(f'option "span" and kind "running" need each other, got kind "{self.kind}"')
        return self


@dataclass(frozen=True)
class Statistics:
    """offset and scale per row and feature, (B or 1, 1, F); None where there is nothing to do."""

    offset: Tensor | None = None
    scale: Tensor | None = None


@dataclass(frozen=True)
class StatisticsSymbol:
    """`Statistics` in the graph."""

    offset: str | None = None
    scale: str | None = None


class Scaler(nn.Module):
    """Scales histories, and scales and unscales targets (a choice of the features) with the same statistics."""

    offset: Tensor
    scale: Tensor
    is_fitted: Tensor

    def __init__(self, config: ScalingConfig, num_features: int, targets: tuple[int, ...]) -> None:
        super().__init__()
        self.config = config
        self.targets = list(targets)
        self.chooses = self.targets != list(range(num_features))
        self.register_buffer("offset", torch.zeros(num_features))
        self.register_buffer("scale", torch.ones(num_features))
        self.register_buffer("is_fitted", torch.tensor(not self.has_statistics))

    @property
    def has_statistics(self) -> bool:
        """Whether the kind learns statistics from the training part."""
        return self.config.kind in ("minmax", "standard")

    @torch.no_grad()
    def fit(self, values: Tensor) -> None:
        """Take the statistics of values (N, F). A constant feature gets the scale 1."""
        values = values.double()
        if self.config.kind == "minmax":
            offset, scale = values.amin(0), values.amax(0) - values.amin(0)
        elif self.config.kind == "standard":
            offset, scale = values.mean(0), values.std(0, correction=0)
        else:
            return
        self.offset.copy_(offset)
        self.scale.copy_(torch.where(scale > 0, scale, 1.0))
        self.is_fitted.fill_(True)

    def statistics(self, history: Signal) -> Statistics:
        """The statistics by which this history (B, T, F) is scaled."""
        if self.has_statistics:
            return Statistics(self.offset.view(1, 1, -1), self.scale.view(1, 1, -1))
        if self.config.kind == "none":
            return Statistics()
        values, lengths = history.values, history.lengths.view(-1, 1, 1)
        within = ragged.mask(values, history.lengths)
        count, offset = lengths, None
        if self.config.transform == "log":
            offset = 2 * values.masked_fill(~within, 0.0).amin(1, keepdim=True).clamp(max=0.0)
            values = values - offset
        if self.config.length is not None:
            steps = torch.arange(values.shape[1], device=values.device).view(1, -1, 1)
            within = within & (steps >= lengths - self.config.length)
            count = lengths.clamp(max=self.config.length)
        # Divided before it is summed: a sum of large values would overflow.
        level = (values.abs() / count).masked_fill(~within, 0.0).sum(1, keepdim=True)
        return Statistics(offset, torch.where(level > 0, level, 1.0))

    def apply_to_history(self, values: Tensor, statistics: Statistics) -> Tensor:
        """Raw (B, T, F) to scaled."""
        return self._scaled(values, statistics.offset, statistics.scale)

    def apply_to_target(self, target: Tensor, statistics: Statistics) -> Tensor:
        """Raw (B, horizon, targets) to scaled."""
        return self._scaled(target, self._of_targets(statistics.offset), self._of_targets(statistics.scale))

    def invert(self, prediction: Tensor, statistics: Statistics) -> Tensor:
        """Scaled (B, horizon, targets, ...) to raw."""
        offset, scale = self._of_targets(statistics.offset), self._of_targets(statistics.scale)
        match self.config.transform:
            case "log":
                prediction = (prediction.exp() - self.config.floor).clamp(min=0.0)
            case "asinh":
                prediction = prediction.sinh()
        if scale is not None:
            prediction = prediction * _like(scale, prediction)
        if offset is not None:
            prediction = prediction + _like(offset, prediction)
        return prediction

    def _scaled(self, values: Tensor, offset: Tensor | None, scale: Tensor | None) -> Tensor:
        if offset is not None:
            values = values - offset
        if scale is not None:
            values = values / scale
        match self.config.transform:
            case "log":
                return (values.clamp(min=0.0) + self.config.floor).log()
            case "asinh":
                return values.asinh()
            case "none":
                return values

    def _of_targets(self, statistic: Tensor | None) -> Tensor | None:
        return statistic[..., self.targets] if statistic is not None and self.chooses else statistic

    def write_statistics(self, graph: GraphBuilder, history: Symbol) -> StatisticsSymbol:
        """`statistics` in the graph."""
        if self.has_statistics:
            offset, scale = (part.view(1, 1, -1).cpu().numpy() for part in (self.offset, self.scale))
            return StatisticsSymbol(graph.constant(offset, "offset"), graph.constant(scale, "scale"))
        if self.config.kind == "none":
            return StatisticsSymbol()
        assert history.lengths is not None
        lengths = graph.add("Unsqueeze", history.lengths, graph.constant([1, 2]))
        zero = graph.constant(0.0)
        values, lift = history.values, None
        within = ragged.write_mask(graph, values, history.lengths)
        if self.config.transform == "log":
            lowest = graph.add("ReduceMin", graph.add("Where", within, values, zero), axes=[1], keepdims=1)
            lift = graph.add("Mul", graph.constant(2.0), graph.add("Min", lowest, zero))
            values = graph.add("Sub", values, lift)
        count = lengths
        if self.config.length is not None:
            steps = ragged.write_range(graph, ragged.write_num_steps(graph, history.values))
            steps = graph.add("Unsqueeze", steps, graph.constant([0, 2]))
            length = graph.constant([self.config.length])
            is_recent = graph.add("GreaterOrEqual", steps, graph.add("Sub", lengths, length))
            within = graph.add("And", within, is_recent)
            count = graph.add("Min", lengths, length)
        share = graph.add("Div", graph.add("Abs", values), graph.add("Cast", count, to=1))
        level = graph.add("ReduceSum", graph.add("Where", within, share, zero), graph.constant([1]), keepdims=1)
        scale_symbol = graph.add("Where", graph.add("Greater", level, zero), level, graph.constant(1.0), named=True)
        return StatisticsSymbol(lift, scale_symbol)

    def write_apply(self, graph: GraphBuilder, values: str, statistics: StatisticsSymbol) -> str:
        """`apply_to_history` in the graph."""
        if statistics.offset is not None:
            values = graph.add("Sub", values, statistics.offset)
        if statistics.scale is not None:
            values = graph.add("Div", values, statistics.scale)
        match self.config.transform:
            case "log":
                values = graph.add("Max", values, graph.constant(0.0))
                return graph.add("Log", graph.add("Add", values, graph.constant(self.config.floor)))
            case "asinh":
                return graph.add("Asinh", values)
            case "none":
                return values

    def write_invert(self, graph: GraphBuilder, prediction: str, statistics: StatisticsSymbol, num_axes: int) -> str:
        """`invert` in the graph, of a prediction with `num_axes` axes."""
        match self.config.transform:
            case "log":
                prediction = graph.add("Sub", graph.add("Exp", prediction), graph.constant(self.config.floor))
                prediction = graph.add("Max", prediction, graph.constant(0.0))
            case "asinh":
                prediction = graph.add("Sinh", prediction)
        for operator, statistic in (("Mul", statistics.scale), ("Add", statistics.offset)):
            if statistic is None:
                continue
            if self.chooses:
                statistic = graph.add("Gather", statistic, graph.constant(self.targets), axis=2)
            if num_axes == 4:
                statistic = graph.add("Unsqueeze", statistic, graph.constant([3]))
            prediction = graph.add(operator, prediction, statistic)
        return prediction


def _like(statistic: Tensor, prediction: Tensor) -> Tensor:
    """(B, 1, targets) with as many axes as the prediction."""
    return statistic.unsqueeze(3) if prediction.dim() == 4 else statistic
