"""Classes of texts: token ids in, probabilities of the labels out. The layers end in logits, the softmax is the head's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import PositiveInt, model_validator
from torch import Tensor

from training.graph.builder import GraphBuilder
from training.layers.registry import Layer, LayerError, Shape, Symbol
from training.network.heads.head import (
    Head,
    LayerInputSymbol,
    Prediction,
    Tables,
    require_units_last,
    require_vector_last,
)
from training.network.spec import NetworkSpec


class ClassifySpec(NetworkSpec):
    """Reads ids below `vocabulary_size`, and gives a probability for each of the labels."""

    task: Literal["classify"] = "classify"
    vocabulary_size: PositiveInt
    labels: tuple[str, ...]

    @model_validator(mode="after")
    def _check_labels(self) -> ClassifySpec:
        if len(set(self.labels)) < 2 or len(set(self.labels)) != len(self.labels):
            raise ValueError(f"classify needs two or more different labels, got {list(self.labels)}")
        return self


class ClassifyHead(Head):
    """`tokens` (B, T) and `lengths` (B,) → `probabilities` (B, labels). One unit is the second of two labels."""

    Spec: ClassVar[type[NetworkSpec]] = ClassifySpec
    spec: ClassifySpec

    def __init__(self, spec: ClassifySpec) -> None:
        super().__init__(spec, "tokens", Shape(("time",), vocabulary=spec.vocabulary_size))

    @classmethod
    def from_spec(cls, spec: ClassifySpec) -> ClassifyHead:
        return cls(spec)

    @property
    def num_logits(self) -> int:
        """Of the last layer: 1 for two labels with a sigmoid, else one per label."""
        last = self.spec.layers[-1]
        units = last.get("units")
        if units is None:
            return 1 if last.get("activation") == "sigmoid" else len(self.spec.labels)
        return int(units)

    def complete(self, tables: Tables) -> Tables:
        """Fill in the units of the last layer, or check them, and take its activation off: what is left are logits."""
        require_units_last(tables)
        *body, last = tables
        where, kind, num_labels = f"layers[{len(body)}]", str(last.get("type", "")), len(self.spec.labels)
        activation, units = last.get("activation"), self.num_logits
        allowed = "sigmoid" if units == 1 else "softmax"
        if units != num_labels and not (units == 1 and num_labels == 2):
            raise LayerError(where, kind, "units", f"{num_labels} labels need {num_labels} units, got {units}")
        if activation not in (None, allowed):
            raise LayerError(where, kind, "activation", f"with {units} units the answer is a {allowed}, got {activation!r}")
        return [*body, {**last, "units": units, "activation": None}]

    def check(self, layers: Sequence[Layer]) -> None:
        require_vector_last(layers)

    def outputs(self, last: Layer) -> dict[str, Shape]:
        return {"probabilities": Shape((len(self.spec.labels),))}

    def answer(self, prediction: Prediction) -> tuple[Tensor, ...]:
        logits = prediction.values
        if self.num_logits == 1:
            positive = torch.sigmoid(logits)
            return (torch.cat([1 - positive, positive], 1),)
        return (torch.softmax(logits, 1),)

    def write_answer(self, graph: GraphBuilder, output: Symbol, given: LayerInputSymbol) -> tuple[str, ...]:
        with graph.scope("answer"):
            if self.num_logits > 1:
                return (graph.add("Softmax", output.values, axis=-1),)
            positive = graph.add("Sigmoid", output.values)
            negative = graph.add("Sub", graph.constant(1.0), positive)
            return (graph.add("Concat", negative, positive, axis=1),)
