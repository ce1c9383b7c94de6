"""The network of a recipe: raw values (or token ids) in, answers out, with scaling and softmax inside.

Holds what is the same in training and in the graph. Does not fit itself (`fit.py`) and reads no data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from training.layers import Layer, LayerError, Shape, Signal, State, Symbol, build_layers, ragged
from training.layers.dense import Dense
from training.layers.scaling import Scaling, ScalingConfig, Statistics, StatisticsSymbol
from training.onnx_graph import GraphBuilder


class NetworkError(ValueError):
    """The parts of a network do not fit together, or it is not ready for what is asked."""


class NetworkSpec(BaseModel):
    """All that a network is, but for its weights. Frozen; `model_dump()` and `NetworkSpec(**...)` are each other's inverse.

    forecast reads `num_features`, and forecasts the features at `targets` for `horizon` steps, with `quantiles` (ascending,
    0.5 among them) or a mean alone. `step` = 24 folds every 24 steps into one for the recurrent layers; `seasonal_lag` = 168
    makes the forecast a correction to the value 168 steps before it. classify reads ids below `vocabulary_size`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: Literal["forecast", "classify"]
    layers: Annotated[tuple[dict[str, Any], ...], Field(min_length=1)]
    num_features: PositiveInt = 1
    targets: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = (0,)
    horizon: PositiveInt = 1
    quantiles: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    scaling: ScalingConfig = ScalingConfig()
    step: PositiveInt = 1
    seasonal_lag: PositiveInt | None = None
    vocabulary_size: PositiveInt | None = None
    labels: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _the_parts_fit_the_task(self) -> NetworkSpec:
        own = {
            "forecast": {"num_features", "targets", "horizon", "quantiles", "scaling", "step", "seasonal_lag"},
            "classify": {"vocabulary_size", "labels"},
        }
        defaults = type(self).model_fields
        for task, options in own.items():
            foreign = sorted(name for name in options if getattr(self, name) != defaults[name].default)
            if task != self.task and foreign:
                raise ValueError(f'option "{foreign[0]}" belongs to task "{task}", not "{self.task}"')
        if self.task == "classify":
            if self.vocabulary_size is None:
                raise ValueError("classify needs vocabulary_size")
            if len(set(self.labels)) < 2 or len(set(self.labels)) != len(self.labels):
                raise ValueError(f"classify needs two or more different labels, got {list(self.labels)}")
            return self
        if len(set(self.targets)) != len(self.targets) or max(self.targets) >= self.num_features:
            raise ValueError(f"targets must be different features below {self.num_features}, got {list(self.targets)}")
        if list(self.quantiles) != sorted(set(self.quantiles)):
            raise ValueError(f"quantiles must ascend without repetition, got {list(self.quantiles)}")
        if self.quantiles and 0.5 not in self.quantiles:
            raise ValueError(f"quantiles must hold 0.5, the point forecast, got {list(self.quantiles)}")
        return self


@dataclass(frozen=True)
class NamedState:
    """One state tensor of the graph: fed as `input`, returned as `output`, both (B, units)."""

    input: str
    output: str
    units: int


@dataclass(frozen=True)
class Context:
    """What a batch of histories was scaled by; turns targets and predictions of that batch to and fro."""

    statistics: Statistics


class Network(nn.Module):
    """A stack of layers between scaling and answer.

    Inputs and outputs are dicts with the graph's names. forecast: `history` (B, T, F) raw and `lengths` (B,) →
    `mean` (B, horizon, targets), `quantiles` (B, horizon, targets, Q), raw and ascending. classify: `tokens` (B, T) and
    `lengths` → `probabilities` (B, labels). Rows are padded on the right and each must have `min_length` steps or more.
    With the state inputs (all of them or none) the new state is returned too; without, it starts from zeros.

    Raises LayerError or NetworkError when the spec cannot be built.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        if spec.task == "forecast":
            source = Shape(("time", spec.num_features))
            shape = source.with_features(spec.num_features * spec.step)
        else:
            source = shape = Shape(("time",), vocabulary=spec.vocabulary_size)
        self.scaling = Scaling(spec.scaling, spec.num_features, spec.targets)
        layers = build_layers(_with_head(spec), shape, source)
        self.layer_names = [f"{table['type']}_{index}" for index, table in enumerate(spec.layers)]
        self.layers = nn.ModuleList(layers)
        _check_head(layers[-1], len(layers) - 1)

    @property
    def point(self) -> Literal["mean", "median"]:
        """What the output `mean` holds: the 0.5 quantile, if there are quantiles."""
        return "median" if self.spec.quantiles else "mean"

    @property
    def min_length(self) -> int:
        """The fewest steps that a row must have."""
        return max(self.spec.step, self.spec.seasonal_lag or 1, *(layer.min_length for layer in self._stack))

    @property
    def can_stream(self) -> bool:
        """Whether a sequence fed in pieces, with state, gives what it gives whole."""
        reads_pieces = self.spec.scaling.kind != "window" and self.spec.seasonal_lag is None and self.spec.step == 1
        return reads_pieces and any(layer.state for layer in self._stack) and all(layer.can_stream for layer in self._stack)

    @property
    def state(self) -> tuple[NamedState, ...]:
        """The state tensors by name, layer after layer; none if the network cannot stream."""
        if not self.can_stream:
            return ()
        return tuple(
            NamedState(f"{name}_{part.name}", f"{name}_{part.name}_next", part.units)
            for name, layer in zip(self.layer_names, self._stack, strict=True)
            for part in layer.state
        )

    @property
    def num_parameters(self) -> int:
        """Weights that training may change, counted as Keras counts them."""
        return sum(layer.num_parameters for layer in self._stack)

    def set_statistics(self, values: Tensor) -> None:
        """Fit minmax or standard scaling on the training part, raw (N, F); the other kinds need no fit and ignore it."""
        if values.dim() != 2 or values.shape[1] != self.spec.num_features:
            raise NetworkError(f"statistics need values (N, {self.spec.num_features}), got {tuple(values.shape)}")
        self.scaling.fit(values)

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Raw in, answers out."""
        if self.spec.task == "classify":
            logits, state = self._run(Signal(inputs["tokens"], inputs["lengths"]), None, inputs)
            if logits.shape[1] == 1:
                positive = torch.sigmoid(logits)
                probabilities = torch.cat([1 - positive, positive], 1)
            else:
                probabilities = torch.softmax(logits, 1)
            return {"probabilities": probabilities, **state}
        prediction, context, state = self._predict(inputs)
        prediction = self.scaling.invert(prediction, context.statistics)
        if not self.spec.quantiles:
            return {"mean": prediction, **state}
        quantiles = prediction.sort(-1).values
        return {"mean": quantiles[..., self.spec.quantiles.index(0.5)], "quantiles": quantiles, **state}

    def logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """classify, for training: (B, labels) before the softmax, or (B, 1) before the sigmoid of the second label."""
        return self._run(Signal(inputs["tokens"], inputs["lengths"]), None, {})[0]

    def predict_scaled(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Context]:
        """forecast, for training: (B, horizon, targets) or (B, horizon, targets, Q) in scaled space, quantiles unsorted."""
        prediction, context, _ = self._predict(inputs)
        return prediction, context

    def scale_target(self, target: Tensor, context: Context) -> Tensor:
        """Raw targets (B, horizon, targets) into the space of `predict_scaled`."""
        return self.scaling.apply_to_target(target, context.statistics)

    def unscale(self, prediction: Tensor, context: Context) -> Tensor:
        """Scaled predictions (B, horizon, targets, ...) into raw units."""
        return self.scaling.invert(prediction, context.statistics)

    def write(self, graph: GraphBuilder) -> dict[str, str]:
        """Add the nodes of `forward`; returns the values of all outputs by name. Raises NetworkError without statistics."""
        if not self.scaling.is_fitted:
            raise NetworkError(f'scaling "{self.spec.scaling.kind}" has no statistics yet: call set_statistics first')
        if self.spec.task == "forecast":
            return self._write_forecast(graph)
        return self._write_classify(graph)

    @property
    def _stack(self) -> list[Layer]:
        return [layer for layer in self.layers if isinstance(layer, Layer)]

    def _predict(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Context, dict[str, Tensor]]:
        spec = self.spec
        history = Signal(inputs["history"], inputs["lengths"])
        statistics = self.scaling.statistics(history)
        source = Signal(self.scaling.apply_to_history(history.values, statistics), history.lengths)
        signal = source
        if spec.step > 1:
            signal = Signal(*ragged.fold_steps(source.values, source.lengths, spec.step))
        values, state = self._run(signal, source, inputs)
        shape = (spec.horizon, len(spec.targets), *([len(spec.quantiles)] if spec.quantiles else []))
        prediction = values.view(-1, *shape)
        if spec.seasonal_lag is not None:
            offsets = torch.arange(spec.horizon, device=values.device) % spec.seasonal_lag
            base = ragged.last_steps(source.values, source.lengths, offsets, spec.seasonal_lag)[..., list(spec.targets)]
            prediction = prediction + (base.unsqueeze(3) if spec.quantiles else base)
        return prediction, Context(statistics), state

    def _run(self, signal: Signal, source: Signal | None, inputs: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Through all layers; the head's activation is left out for classify, which ends in logits."""
        source = source or signal
        given = [part.input for part in self.state if part.input in inputs]
        if given and len(given) != len(self.state):
            missing = [part.input for part in self.state if part.input not in inputs]
            raise NetworkError(f"state comes whole or not at all: {missing} missing")
        result: dict[str, Tensor] = {}
        for name, layer in zip(self.layer_names, self._stack, strict=True):
            initial: State = tuple(inputs[f"{name}_{part.name}"] for part in layer.state) if given else ()
            signal, final = layer(signal, source, initial)
            if given:
                result |= {f"{name}_{part.name}_next": tensor for part, tensor in zip(layer.state, final, strict=True)}
        return signal.values, result

    def _write_layers(self, graph: GraphBuilder, symbol: Symbol, source: Symbol) -> tuple[str, dict[str, str]]:
        result: dict[str, str] = {}
        for name, layer in zip(self.layer_names, self._stack, strict=True):
            initial = tuple(f"{name}_{part.name}" for part in layer.state) if self.can_stream else ()
            with graph.scope(name):
                symbol, final = layer.write(graph, symbol, source, initial)
            if initial:
                result |= {f"{name}_{part.name}_next": value for part, value in zip(layer.state, final, strict=True)}
        return symbol.values, result

    def _write_classify(self, graph: GraphBuilder) -> dict[str, str]:
        symbol = Symbol("tokens", "lengths")
        values, state = self._write_layers(graph, symbol, symbol)
        with graph.scope("answer"):
            if self._stack[-1].output.features == 1:
                positive = graph.add("Sigmoid", values)
                negative = graph.add("Sub", graph.constant(1.0), positive)
                probabilities = graph.add("Concat", negative, positive, axis=1)
            else:
                probabilities = graph.add("Softmax", values, axis=-1)
        return {"probabilities": probabilities, **state}

    def _write_forecast(self, graph: GraphBuilder) -> dict[str, str]:
        spec = self.spec
        history = Symbol("history", "lengths")
        with graph.scope("scaling"):
            statistics: StatisticsSymbol = self.scaling.write_statistics(graph, history)
            source = Symbol(self.scaling.write_apply(graph, history.values, statistics), history.lengths)
        symbol = source
        if spec.step > 1:
            with graph.scope("step"):
                folded = ragged.write_fold_steps(graph, source.values, source.lengths, spec.step, spec.num_features)
                symbol = Symbol(*folded)
        values, state = self._write_layers(graph, symbol, source)
        num_axes = 4 if spec.quantiles else 3
        with graph.scope("answer"):
            shape = [0, spec.horizon, len(spec.targets), *([len(spec.quantiles)] if spec.quantiles else [])]
            prediction = graph.add("Reshape", values, graph.constant(shape))
        if spec.seasonal_lag is not None:
            with graph.scope("seasonal"):
                prediction = self._write_seasonal(graph, prediction, source, spec.seasonal_lag)
        with graph.scope("answer"):
            prediction = self.scaling.write_invert(graph, prediction, statistics, num_axes)
            if not spec.quantiles:
                return {"mean": prediction, **state}
            count = graph.constant([len(spec.quantiles)])
            quantiles, _ = graph.add_many("TopK", prediction, count, num_outputs=2, axis=-1, largest=0, sorted=1)
            median = graph.add("Gather", quantiles, graph.constant(spec.quantiles.index(0.5)), axis=3)
        return {"mean": median, "quantiles": quantiles, **state}

    def _write_seasonal(self, graph: GraphBuilder, prediction: str, source: Symbol, lag: int) -> str:
        offsets = [step % lag for step in range(self.spec.horizon)]
        base = ragged.write_last_steps(graph, source.values, source.lengths, offsets, lag)
        if self.scaling.chooses:
            base = graph.add("Gather", base, graph.constant(list(self.spec.targets)), axis=2)
        if self.spec.quantiles:
            base = graph.add("Unsqueeze", base, graph.constant([3]))
        return graph.add("Add", prediction, base)


def _with_head(spec: NetworkSpec) -> list[dict[str, Any]]:
    """The layers' tables, with the units of the last one filled in or checked; of a classifier the logits' layer."""
    *body, head = (dict(table) for table in spec.layers)
    where = f"layers[{len(body)}]"
    if head.get("type") != "dense":
        raise LayerError(where, str(head.get("type", "")), None, "the last layer must be dense: it gives the answer")
    for index, table in enumerate(body):
        if table.get("type") == "dense" and table.get("units") is None:
            raise LayerError(f"layers[{index}]", "dense", "units", "may be left out in the last layer only")
    units = head.get("units")
    if spec.task == "forecast":
        owed = spec.horizon * len(spec.targets) * max(1, len(spec.quantiles))
        if units is None:
            head["units"] = owed
        elif units != owed:
            parts = f"{spec.horizon} steps × {len(spec.targets)} targets × {max(1, len(spec.quantiles))} quantiles"
            raise LayerError(where, "dense", "units", f"the forecast needs {parts} = {owed}, got {units}")
        return [*body, head]
    num_labels = len(spec.labels)
    if units is None:
        head["units"] = 1 if head.get("activation") == "sigmoid" else num_labels
    units = head["units"]
    allowed = "sigmoid" if units == 1 else "softmax"
    if units != num_labels and not (units == 1 and num_labels == 2):
        raise LayerError(where, "dense", "units", f"{num_labels} labels need {num_labels} units, got {units}")
    if head.get("activation") not in (None, allowed):
        message = f"with {units} units the answer is a {allowed}, got {head['activation']!r}"
        raise LayerError(where, "dense", "activation", message)
    return [*body, {**head, "activation": None}]


def _check_head(head: Layer, index: int) -> None:
    assert isinstance(head, Dense)
    if head.input.is_sequence:
        message = f"needs one vector per row, got {head.input}: let the layer before return the last step only, or pool"
        raise LayerError(f"layers[{index}]", "dense", None, message)
