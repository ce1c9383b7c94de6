"""Two recurrent layers that read the same sequence from both ends, and how their two outputs are merged.

Where they are alike, both are one node of the graph.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, field_validator
from torch import Tensor

from training.graph.builder import GraphBuilder
from training.layers import ragged
from training.layers.base import (
    BuildInner,
    Layer,
    LayerConfig,
    LayerState,
    MaskUse,
    Shape,
    Signal,
    StatePart,
    Symbol,
    require,
    require_sequence,
)
from training.layers.recurrent import Recurrent
from training.layers.recurrent_node import write_node
from training.layers.weights import RegularizerOption, Weight


class BidirectionalConfig(LayerConfig):
    """Keras's Bidirectional: `layer` is the table of a recurrent layer, read forward and backward with own weights.

    With `backward_layer` the one that reads backward is another, with `go_backwards = true`. `merge_mode = "none"` (Keras's
    None) gives both answers.
    """

    type: Literal["bidirectional"]
    layer: dict[str, Any] = Field(description="the options of the recurrent layer, its `type` too")
    merge_mode: Literal["concat", "sum", "mul", "ave", "none"] = "concat"
    backward_layer: dict[str, Any] | None = None
    weights: list[Any] | None = None
    activity_regularizer: RegularizerOption = None

    @field_validator("merge_mode", mode="before")
    @classmethod
    def _none_has_a_name(cls, mode: Any) -> Any:
        return "none" if mode is None else mode


class Bidirectional(Layer):
    """A recurrent layer read forward, and one of the same kind with its own weights read backward."""

    Config: ClassVar[type[LayerConfig]] = BidirectionalConfig
    config: BidirectionalConfig
    keras_class = "Bidirectional"
    reads_whole_sequence = True
    is_about_steps = True
    hands_mask_on = True

    def __init__(
        self, config: BidirectionalConfig, shape: Shape, source: Shape, forward_layer: Recurrent, backward_layer: Recurrent
    ) -> None:
        super().__init__(config, shape, source)
        require_sequence(shape)
        forward, backward = forward_layer.config, backward_layer.config
        own = "layer" if config.backward_layer is None else "backward_layer"
        differ = forward.go_backwards != backward.go_backwards
        require(differ, own, f"the two layers must differ in go_backwards, both have {str(forward.go_backwards).lower()}")
        for option in ("stateful", "return_sequences", "return_state"):
            same = getattr(forward, option) == getattr(backward, option)
            require(same, own, f"the two layers must have the same {option}")
        if config.merge_mode in ("sum", "mul", "ave"):
            require(forward.units == backward.units, own, f'merge_mode "{config.merge_mode}" needs the same units in both')
        units = forward.units + (backward.units if config.merge_mode == "concat" else 0)
        self.output = forward_layer.output.with_features(units)
        self.forward_layer = forward_layer
        self.backward_layer = backward_layer
        if config.weights is not None:
            self.load_keras_weights([torch.tensor(array).numpy() for array in config.weights])

    @classmethod
    def build(cls, config: BidirectionalConfig, shape: Shape, source: Shape, build_inner: BuildInner) -> Self:
        forward = build_inner("layer", config.layer, shape, Recurrent)
        if config.backward_layer is not None:
            return cls(config, shape, source, forward, build_inner("backward_layer", config.backward_layer, shape, Recurrent))
        # Keras makes the other one from the same options, but that it reads backward.
        return cls(config, shape, source, forward, build_inner("layer", {**config.layer, "go_backwards": True}, shape, Recurrent))

    @classmethod
    def mask_use(cls, config: BidirectionalConfig) -> MaskUse:
        return "carried" if config.layer.get("return_sequences") else "used up"

    @property
    def pair(self) -> tuple[Recurrent, Recurrent]:
        """Forward layer and backward layer."""
        return self.forward_layer, self.backward_layer

    @property
    def returns_sequences(self) -> bool:
        return self.forward_layer.config.return_sequences

    @property
    def is_one_node(self) -> bool:
        """Whether the two are alike enough for one node of the graph."""
        forward, backward = self.pair
        same_form = forward.operator == backward.operator and forward.onnx_attributes == backward.onnx_attributes
        has_node = forward.has_node and backward.has_node
        return same_form and has_node and forward.units == backward.units and not forward.goes_backwards

    @property
    def directions(self) -> tuple[tuple[int, int], ...]:
        forward, backward = self.pair
        if self.config.merge_mode != "concat" or not self.returns_sequences or forward.goes_backwards:
            return ()
        return (forward.units, 1), (backward.units, -1)

    @property
    def weights(self) -> tuple[Weight, ...]:
        return (*self.forward_layer.weights, *self.backward_layer.weights)

    @property
    def others(self) -> tuple[tuple[str, Shape], ...]:
        backward = (("backward", self.backward_layer.output),) if self.config.merge_mode == "none" else ()
        states = [(f"forward_{name}", shape) for name, shape in self.forward_layer.others]
        states += [(f"backward_{name}", shape) for name, shape in self.backward_layer.others]
        return (*backward, *states)

    @property
    def state(self) -> tuple[StatePart, ...]:
        """Only a stateful layer has one: what was read from the end cannot go on with the next piece."""
        if not self.is_stateful:
            return ()
        forward, backward = self.pair
        return (
            *(StatePart(f"forward_{part.name}", part.units) for part in forward.state),
            *(StatePart(f"backward_{part.name}", part.units) for part in backward.state),
        )

    @property
    def is_stateful(self) -> bool:
        return self.forward_layer.config.stateful

    @property
    def notes(self) -> tuple[str, ...]:
        notes = tuple(dict.fromkeys(note for layer in self.pair for note in layer.notes))
        if any(layer.config.zero_output_for_mask != self.returns_sequences for layer in self.pair):
            value = str(self.returns_sequences).lower()
            notes += (f'option "zero_output_for_mask": is {value} inside Bidirectional, as in Keras, whatever is written',)
        return notes

    def check_successor(self) -> None:
        require(self.config.merge_mode != "none", "merge_mode", "none gives two answers, and the next layer reads one")

    def forward(self, signal: Signal, source: Signal, state: LayerState = ()) -> tuple[Signal, LayerState]:
        forward, backward = self.pair
        lengths, num_parts = signal.lengths, len(forward.state)
        needs_final = bool(state) or forward.config.return_state
        # Keras forces zero_output_for_mask to return_sequences here.
        options = {"zeros": self.returns_sequences, "needs_final": needs_final}
        results = forward.read(signal, state[:num_parts], **options), backward.read(signal, state[num_parts:], **options)
        if self.returns_sequences:
            values = [results[0].outputs, ragged.reverse(results[1].outputs, lengths)]
        else:
            values = [result.last for result in results]
        returns_state = forward.config.return_state
        activity: list[Tensor] = []
        for layer, result, output in zip(self.pair, results, values, strict=True):
            others = result.final if returns_state else ()
            activity += layer.measure_activity(layer.config.activity_regularizer, Signal(output, lengths, None, others))
        final = (*results[0].final, *results[1].final)
        merged, *other = self._merge(*values)
        mask = signal.mask if self.returns_sequences else None
        answer = Signal(merged, lengths, mask, (*other, *(final if returns_state else ())))
        activity += self.measure_activity(self.config.activity_regularizer, answer)
        return replace(answer, activity=tuple(activity)), final if state else ()

    def _merge(self, forward: Tensor, backward: Tensor) -> tuple[Tensor, ...]:
        match self.config.merge_mode:
            case "concat":
                return (torch.cat([forward, backward], -1),)
            case "sum":
                return (forward + backward,)
            case "mul":
                return (forward * backward,)
            case "ave":
                return ((forward + backward) / 2,)
            case "none":
                return (forward, backward)

    def write(
        self, graph: GraphBuilder, symbol: Symbol, source: Symbol, state: tuple[str, ...] = ()
    ) -> tuple[Symbol, tuple[str, ...]]:
        forward, _ = self.pair
        needs_final = bool(state) or forward.config.return_state
        merged, final = self._write_one(graph, symbol, state) if self.is_one_node else self._write_two(graph, symbol, state)
        states = final if forward.config.return_state else ()
        mask = symbol.mask if self.returns_sequences else None
        assert not needs_final or final
        return Symbol(merged[0], symbol.lengths, mask, (*merged[1:], *states)), final if state else ()

    def _write_one(self, graph: GraphBuilder, symbol: Symbol, state: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        forward, backward = self.pair
        num_parts = len(forward.state)
        node = write_node(graph, [forward, backward], symbol, [state[:num_parts], state[num_parts:]])
        if self.returns_sequences:
            values = graph.add("Transpose", node.outputs, perm=[2, 0, 1, 3])  # (T, 2, B, H) → (B, T, 2, H)
        else:
            values = graph.add("Transpose", node.finals[0], perm=[1, 0, 2])  # (2, B, H) → (B, 2, H)
        merged = self._write_merge(graph, values)
        # Masked steps and rows without a step are zero in both directions, so they are after merging.
        if node.is_read is not None and self.returns_sequences:
            merged = tuple(ragged.write_spread(graph, part, node.is_read, zeros=True) for part in merged)
        elif node.is_empty is not None:
            merged = tuple(graph.add("Where", node.is_empty, graph.constant(0.0), part) for part in merged)
        if not state and not forward.config.return_state:
            return merged, ()
        final = []
        for direction, layer in enumerate(self.pair):
            for part, _ in enumerate(layer.state):
                value = graph.add("Gather", node.finals[part], graph.constant(direction), axis=0)  # (B, H)
                if node.is_empty is not None:
                    before = state[direction * num_parts + part] if state else graph.constant(0.0)
                    value = graph.add("Where", node.is_empty, before, value)
                final.append(value)
        return merged, tuple(final)

    def _write_merge(self, graph: GraphBuilder, values: str) -> tuple[str, ...]:
        """Merge along the axis before the last."""
        match self.config.merge_mode:
            case "concat":
                axes = [0, 0] if self.returns_sequences else [0]
                return (graph.add("Reshape", values, graph.constant([*axes, self.output.features])),)
            case "sum":
                return (graph.add("ReduceSum", values, graph.constant([-2]), keepdims=0),)
            case "mul":
                return (graph.add("ReduceProd", values, axes=[-2], keepdims=0),)
            case "ave":
                return (graph.add("ReduceMean", values, axes=[-2], keepdims=0),)
            case "none":
                axis = 2 if self.returns_sequences else 1
                return tuple(graph.add("Gather", values, graph.constant(index), axis=axis) for index in (0, 1))

    def _write_two(self, graph: GraphBuilder, symbol: Symbol, state: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        forward, _ = self.pair
        num_parts = len(forward.state)
        values: list[str] = []
        final: list[str] = []
        for name, layer, parts in zip(("forward", "backward"), self.pair, (state[:num_parts], state[num_parts:]), strict=True):
            with graph.scope(name):
                value, after = layer.write_read(graph, symbol, parts, zeros=self.returns_sequences)
            values.append(value)
            final += after
        if self.returns_sequences and forward.config.go_backwards:
            # Keras turns the backward layer's steps round, not the forward layer's: here both end up reversed.
            values = [ragged.write_reverse(graph, value, symbol.lengths) for value in values]
        match self.config.merge_mode:
            case "concat":
                merged: tuple[str, ...] = (graph.add("Concat", *values, axis=-1),)
            case "sum":
                merged = (graph.add("Add", *values),)
            case "mul":
                merged = (graph.add("Mul", *values),)
            case "ave":
                merged = (graph.add("Mul", graph.add("Add", *values), graph.constant(0.5)),)
            case "none":
                merged = tuple(values)
        return merged, tuple(final)
