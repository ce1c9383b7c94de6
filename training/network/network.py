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

from training.errors import TrainingError
from training.graph.builder import GraphBuilder
from training.layers import ragged
from training.layers.dense import Dense
from training.layers.embedding import Masking
from training.layers.registry import Layer, LayerError, OptionError, Shape, Signal, State, Symbol, build_layers
from training.layers.reshaping import TimeDistributed
from training.layers.scaling import Scaling, ScalingConfig, Statistics, StatisticsSymbol


class NetworkError(TrainingError):
    """The parts of a network do not fit together, or it is not ready for what is asked."""


class TensorInput(BaseModel):
    """The one input of task `tensor`: its name, and the axes behind the batch.

    ("time", 3) are rows of any length, (10, 3) rows of ten steps, (3,) vectors; token ids have one axis, ("time",) or (10,),
    and lie below `vocabulary_size` (by default the first layer's `input_dim`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "input"
    kind: Literal["floats", "tokens"] = "floats"
    shape: Annotated[tuple[PositiveInt | Literal["time"], ...], Field(min_length=1)]
    vocabulary_size: PositiveInt | None = None

    @model_validator(mode="after")
    def _the_axes_fit_the_kind(self) -> TensorInput:
        if "time" in self.shape[1:]:
            raise ValueError(f'only the first axis may be "time", got {list(self.shape)}')
        if self.kind == "tokens" and len(self.shape) != 1:
            raise ValueError(f"token ids have one axis, the steps, got {list(self.shape)}")
        if self.kind == "floats" and self.shape == ("time",):
            raise ValueError('floats with a time axis need features, as in ["time", 1]')
        if self.kind == "floats" and self.vocabulary_size is not None:
            raise ValueError('option "vocabulary_size" belongs to kind "tokens"')
        return self

    @property
    def is_open(self) -> bool:
        """Whether rows may have different lengths; then there is an input `lengths` too."""
        return self.shape[0] == "time"


class NetworkSpec(BaseModel):
    """All that a network is, but for its weights. Frozen; `model_dump()` and `NetworkSpec(**...)` are each other's inverse.

    forecast reads `num_features`, and forecasts the features at `targets` for `horizon` steps, with `quantiles` (ascending,
    0.5 among them) or a mean alone. `step` = 24 folds every 24 steps into one for the recurrent layers; `seasonal_lag` = 168
    makes the forecast a correction to the value 168 steps before it. classify reads ids below `vocabulary_size`.
    tensor is a plain stack of layers: what the last one gives is the answer, called `output`; further results of it are
    `output_hidden` and the like.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: Literal["forecast", "classify", "tensor"]
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
    input: TensorInput | None = None
    output: str = "output"

    @model_validator(mode="after")
    def _the_parts_fit_the_task(self) -> NetworkSpec:
        own = {
            "forecast": {"num_features", "targets", "horizon", "quantiles", "scaling", "step", "seasonal_lag"},
            "classify": {"vocabulary_size", "labels"},
            "tensor": {"input", "output"},
        }
        defaults = type(self).model_fields
        for task, options in own.items():
            foreign = sorted(name for name in options if getattr(self, name) != defaults[name].default)
            if task != self.task and foreign:
                raise ValueError(f'option "{foreign[0]}" belongs to task "{task}", not "{self.task}"')
        if self.task == "tensor":
            if self.input is None:
                raise ValueError("tensor needs input")
            return self
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
    `lengths` → `probabilities` (B, labels). tensor: the spec's input, with `lengths` if its time axis is open → its outputs.
    Rows are padded on the right and each must have `min_length` steps or more.
    With the state inputs (all of them or none) the new state is returned too; without, it starts from zeros.

    Raises LayerError or NetworkError when the spec cannot be built.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        if spec.task == "forecast":
            source = Shape(("time", spec.num_features))
            shape = source.with_features(spec.num_features * spec.step)
        elif spec.input is not None:
            source = shape = _input_shape(spec.input, spec.layers[0])
        else:
            source = shape = Shape(("time",), vocabulary=spec.vocabulary_size)
        self.scaling = Scaling(spec.scaling, spec.num_features, spec.targets)
        layers = build_layers(_with_head(spec), shape, source)
        self.layer_names = [table.get("name") or f"{table['type']}_{index}" for index, table in enumerate(spec.layers)]
        self.layers = nn.ModuleList(layers)
        self.carried: dict[str, Tensor] = {}  # while training: where the stateful layers' next batch starts
        _check_stack(spec, self.layer_names, layers)

    @property
    def point(self) -> Literal["mean", "median"]:
        """What the output `mean` holds: the 0.5 quantile, if there are quantiles."""
        return "median" if self.spec.quantiles else "mean"

    @property
    def min_length(self) -> int:
        """The fewest steps that a row must have."""
        num_steps = 1
        for layer in reversed(self._stack):
            num_steps = layer.steps_for(num_steps)
        own = (layer.min_length for layer in self._stack)
        return max(self.spec.step * num_steps, self.spec.seasonal_lag or 1, *own)

    @property
    def can_stream(self) -> bool:
        """Whether a sequence fed in pieces, with state, gives what it gives whole."""
        reads_pieces = self.spec.scaling.kind != "window" and self.spec.seasonal_lag is None and self.spec.step == 1
        if not reads_pieces or not self._stack[0].input.is_open or not all(layer.can_stream for layer in self._stack):
            return False
        keeping = [layer for layer in self._stack if layer.state and layer.input.is_open]
        # Where only some layers are stateful, the others start anew with every piece.
        return bool(keeping) and len({layer.is_stateful for layer in keeping}) == 1

    @property
    def is_stateful(self) -> bool:
        """Whether a batch in training starts where the one before ended (Keras's `stateful`)."""
        return any(layer.is_stateful for layer in self._stack)

    @property
    def state(self) -> tuple[NamedState, ...]:
        """The state tensors by name, layer after layer: all if the network can stream, else those of stateful layers."""
        return tuple(
            NamedState(f"{name}_{part.name}", f"{name}_{part.name}_next", part.units)
            for name, layer in zip(self.layer_names, self._stack, strict=True)
            if self._keeps_state(layer)
            for part in layer.state
        )

    @property
    def has_lengths(self) -> bool:
        """Whether rows may have different lengths, told by the input `lengths`."""
        return self.spec.input is None or self.spec.input.is_open

    @property
    def outputs(self) -> dict[str, Shape]:
        """tensor: names and shapes of the outputs."""
        last = self._stack[-1]
        others = {f"{self.spec.output}_{name}": shape for name, shape in last.others}
        return {self.spec.output: last.output, **others}

    @property
    def vocabulary_size(self) -> int | None:
        """How many token ids the input may hold; None: it holds numbers."""
        return self._stack[0].input.vocabulary

    @property
    def mask_value(self) -> float | None:
        """tensor: what a step holds that the first layer masks; None: it masks none."""
        first = self._stack[0]
        return first.config.mask_value if isinstance(first, Masking) else None

    @property
    def notes(self) -> tuple[str, ...]:
        """What the layers have to say about their options, with their places."""
        return tuple(
            f"layers[{index}] ({layer.config.type}): {note}" for index, layer in enumerate(self._stack) for note in layer.notes
        )

    @property
    def num_parameters(self) -> int:
        """Weights that training may change, counted as Keras counts them."""
        return sum(layer.num_parameters for layer in self._stack)

    @property
    def num_fixed_parameters(self) -> int:
        """Weights that no optimizer changes: statistics, and those of layers with `trainable = false`."""
        return sum(layer.num_fixed_parameters for layer in self._stack)

    def penalty(self) -> Tensor | float:
        """What the regularizers add to the loss of the batch last fed; 0.0 if there are none. Ask once per batch."""
        terms = [term for term in (layer.penalty() for layer in self._stack) if term is not None]
        return torch.stack(terms).sum() if terms else 0.0

    def constrain(self) -> None:
        """Hold the weights to their constraints; to be called after every step of the optimizer."""
        for layer in self._stack:
            layer.constrain()

    def reset_states(self) -> None:
        """Let the next batch in training start from zeros; to be called between epochs."""
        self.carried = {}

    def check_batches(self, num_rows: int, batch_size: int) -> None:
        """Raise LayerError if a layer is stateful and the rows do not divide into whole batches."""
        for index, layer in enumerate(self._stack):
            if layer.is_stateful and num_rows % batch_size:
                divisors = (number for number in range(1, num_rows + 1) if num_rows % number == 0)
                nearest = min(divisors, key=lambda number: abs(number - batch_size))
                message = (
                    f"{num_rows} rows do not divide by batch_size {batch_size} (by {nearest} they do), "
                    "and each row goes on where that of the batch before ended"
                )
                raise LayerError(f"layers[{index}]", layer.config.type, "stateful", message)

    def set_statistics(self, values: Tensor) -> None:
        """Fit minmax or standard scaling on the training part, raw (N, F); the other kinds need no fit and ignore it."""
        if values.dim() != 2 or values.shape[1] != self.spec.num_features:
            raise NetworkError(f"statistics need values (N, {self.spec.num_features}), got {tuple(values.shape)}")
        self.scaling.fit(values)

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Raw in, answers out."""
        if self.spec.input is not None:
            signal, state = self._run(self._input(inputs), None, inputs)
            return {**dict(zip(self.outputs, (signal.values, *signal.others), strict=True)), **state}
        if self.spec.task == "classify":
            answer, state = self._run(Signal(inputs["tokens"], inputs["lengths"]), None, inputs)
            logits = answer.values
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
        return self._run(Signal(inputs["tokens"], inputs["lengths"]), None, {})[0].values

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
        match self.spec.task:
            case "forecast":
                return self._write_forecast(graph)
            case "classify":
                return self._write_classify(graph)
            case "tensor":
                return self._write_tensor(graph)

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
        answer, state = self._run(signal, source, inputs)
        values = answer.values
        shape = (spec.horizon, len(spec.targets), *([len(spec.quantiles)] if spec.quantiles else []))
        prediction = values.reshape(-1, *shape)
        if spec.seasonal_lag is not None:
            offsets = torch.arange(spec.horizon, device=values.device) % spec.seasonal_lag
            base = ragged.last_steps(source.values, source.lengths, offsets, spec.seasonal_lag)[..., list(spec.targets)]
            prediction = prediction + (base.unsqueeze(3) if spec.quantiles else base)
        return prediction, Context(statistics), state

    def _input(self, inputs: Mapping[str, Tensor]) -> Signal:
        """tensor: the input, with the lengths of rows that are whole where there are none."""
        assert self.spec.input is not None
        values = inputs[self.spec.input.name]
        if self.has_lengths:
            return Signal(values, inputs["lengths"])
        return Signal(values, torch.full((len(values),), values.shape[1], device=values.device))

    def _keeps_state(self, layer: Layer) -> bool:
        # A layer behind a repeated vector starts anew: it does not read the sequence that comes in pieces.
        return layer.is_stateful or (self.can_stream and not self.is_stateful and layer.input.is_open)

    def _run(self, signal: Signal, source: Signal | None, inputs: Mapping[str, Tensor]) -> tuple[Signal, dict[str, Tensor]]:
        """Through all layers; the head's activation is left out for classify, which ends in logits."""
        source = source or signal
        given = [part.input for part in self.state if part.input in inputs]
        if given and len(given) != len(self.state):
            missing = [part.input for part in self.state if part.input not in inputs]
            raise NetworkError(f"state comes whole or not at all: {missing} missing")
        carries = self.training and self.is_stateful and not given
        result: dict[str, Tensor] = {}
        for index, (name, layer) in enumerate(zip(self.layer_names, self._stack, strict=True)):
            initial: State = ()
            if given and self._keeps_state(layer):
                initial = tuple(inputs[f"{name}_{part.name}"] for part in layer.state)
            elif carries and layer.is_stateful:
                initial = self._carried_state(index, name, layer, len(signal.values), signal.values.device)
            signal, final = layer(signal, source, initial)
            names = [f"{name}_{part.name}" for part in layer.state]
            if given and initial:
                result |= {f"{part}_next": tensor for part, tensor in zip(names, final, strict=True)}
            elif initial:
                self.carried |= {part: tensor.detach() for part, tensor in zip(names, final, strict=True)}
        return signal, result

    def _carried_state(self, index: int, name: str, layer: Layer, num_rows: int, device: torch.device) -> State:
        """Where the batch before ended, or zeros."""
        state = []
        for part in layer.state:
            found = self.carried.get(f"{name}_{part.name}")
            if found is not None and len(found) != num_rows:
                message = f"a batch of {num_rows} rows follows one of {len(found)}: their states cannot go on"
                raise LayerError(f"layers[{index}]", layer.config.type, "stateful", message)
            state.append(torch.zeros(num_rows, part.units, device=device) if found is None else found.to(device))
        return tuple(state)

    def _write_layers(self, graph: GraphBuilder, symbol: Symbol, source: Symbol) -> tuple[Symbol, dict[str, str]]:
        result: dict[str, str] = {}
        for index, (name, layer) in enumerate(zip(self.layer_names, self._stack, strict=True)):
            keeps = self._keeps_state(layer)
            initial = tuple(f"{name}_{part.name}" for part in layer.state) if keeps else ()
            try:
                with graph.scope(name):
                    symbol, final = layer.write(graph, symbol, source, initial)
            except OptionError as exc:
                raise LayerError(f"layers[{index}]", layer.config.type, exc.option, exc.message) from exc
            if initial:
                result |= {f"{part}_next": value for part, value in zip(initial, final, strict=True)}
        return symbol, result

    def _write_tensor(self, graph: GraphBuilder) -> dict[str, str]:
        assert self.spec.input is not None
        symbol = Symbol(self.spec.input.name, "lengths" if self.has_lengths else None)
        answer, state = self._write_layers(graph, symbol, symbol)
        return {**dict(zip(self.outputs, (answer.values, *answer.others), strict=True)), **state}

    def _write_classify(self, graph: GraphBuilder) -> dict[str, str]:
        symbol = Symbol("tokens", "lengths")
        logits, state = self._write_layers(graph, symbol, symbol)
        values = logits.values
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
        assert source.lengths is not None
        if spec.step > 1:
            with graph.scope("step"):
                folded = ragged.write_fold_steps(graph, source.values, source.lengths, spec.step, spec.num_features)
                symbol = Symbol(*folded)
        answer, state = self._write_layers(graph, symbol, source)
        num_axes = 4 if spec.quantiles else 3
        with graph.scope("answer"):
            shape = [0, spec.horizon, len(spec.targets), *([len(spec.quantiles)] if spec.quantiles else [])]
            prediction = graph.add("Reshape", answer.values, graph.constant(shape))
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
        assert source.lengths is not None
        base = ragged.write_last_steps(graph, source.values, source.lengths, offsets, lag)
        if self.scaling.chooses:
            base = graph.add("Gather", base, graph.constant(list(self.spec.targets)), axis=2)
        if self.spec.quantiles:
            base = graph.add("Unsqueeze", base, graph.constant([3]))
        return graph.add("Add", prediction, base)


def _input_shape(given: TensorInput, first: Mapping[str, Any]) -> Shape:
    if given.kind == "floats":
        return Shape(given.shape)
    vocabulary = given.vocabulary_size or first.get("input_dim")
    if not isinstance(vocabulary, int):
        raise LayerError("layers[0]", str(first.get("type", "")), "input_dim", "is missing: how many ids there are")
    return Shape(given.shape, vocabulary=vocabulary)


def _with_head(spec: NetworkSpec) -> list[dict[str, Any]]:
    """The layers' tables, with the units of the last one filled in or checked; of a classifier the logits' layer."""
    tables = [dict(table) for table in spec.layers]
    last = len(tables) if spec.task == "tensor" else len(tables) - 1
    for index, table in enumerate(tables[:last]):
        if table.get("type") == "dense" and table.get("units") is None:
            message = "is missing" if spec.task == "tensor" else "may be left out in the last layer only"
            raise LayerError(f"layers[{index}]", "dense", "units", message)
    if spec.task == "tensor":
        return tables
    *body, head = tables
    where = f"layers[{len(body)}]"
    kind = str(head.get("type", ""))
    if spec.task == "forecast" and kind == "time_distributed":
        return tables
    if kind != "dense":
        raise LayerError(where, kind, None, "the last layer must be dense: it gives the answer")
    units = head.get("units")
    if spec.task == "forecast":
        # A step of the forecast's own sequence owes its own targets only; what it is, is known when it is built.
        per_step = len(spec.targets) * max(1, len(spec.quantiles))
        owed = spec.horizon * per_step
        if units is None:
            head["units"] = owed
        elif units not in (owed, per_step):
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


def _check_stack(spec: NetworkSpec, names: list[str], layers: list[Layer]) -> None:
    """Raise LayerError unless the layers follow one another, and the last one gives what the task needs."""
    for index, (name, layer) in enumerate(zip(names, layers, strict=True)):
        where = f"layers[{index}]"
        if name in names[:index]:
            raise LayerError(where, layer.config.type, "name", f"{name!r} is layers[{names.index(name)}]'s already")
        is_last = index == len(layers) - 1
        if not is_last and any(other == "backward" for other, _ in layer.others):
            message = "none gives two answers, and the next layer takes one"
            raise LayerError(where, layer.config.type, "merge_mode", message)
    head, where = layers[-1], f"layers[{len(layers) - 1}]"
    if spec.task == "tensor":
        if head.output.is_open and head.output.axes[0] != "time":
            message = f"the answer {head.output} has another number of steps than the input: pool, or return the last step only"
            raise LayerError(where, head.config.type, None, message)
        return
    if spec.task == "forecast" and head.output.is_sequence and not head.output.is_open:
        per_step = len(spec.targets) * max(1, len(spec.quantiles))
        owed = (spec.horizon, per_step)
        if head.output.axes != owed:
            message = f"the forecast needs {Shape(owed)}: steps, and targets × quantiles; got {head.output}"
            raise LayerError(where, head.config.type, None, message)
        return
    if head.input.is_sequence:
        message = f"needs one vector per row, got {head.input}: let the layer before return the last step only, or pool"
        raise LayerError(where, head.config.type, None, message)
    owed_units = spec.horizon * len(spec.targets) * max(1, len(spec.quantiles))
    if spec.task == "forecast" and head.output.axes != (owed_units,):
        raise LayerError(where, head.config.type, "units", f"the forecast needs {owed_units} units, got {head.output.features}")
    assert isinstance(head, Dense | TimeDistributed)
