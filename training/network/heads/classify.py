"""Classes of texts: token ids in, probabilities of the labels out. The layers end in logits, the softmax is the head's.

A table of n-grams may stand beside the layers; how much of both is answered, and how sure, is the head's calibration.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import PositiveInt, model_validator
from torch import Tensor

from training.graph.builder import GraphBuilder
from training.layers.registry import Layer, LayerError, Shape, Signal, Symbol
from training.network.heads.head import (
    Head,
    LayerInput,
    LayerInputSymbol,
    Prediction,
    Tables,
    require_units_last,
    require_vector_last,
)
from training.network.heads.ngrams import MAX_VOCABULARY, NgramSpec, NgramTable
from training.network.spec import NetworkSpec


class ClassifySpec(NetworkSpec):
    """Reads ids below `vocabulary_size`, and gives a probability for each of the labels."""

    task: Literal["classify"] = "classify"
    vocabulary_size: PositiveInt
    labels: tuple[str, ...]
    ngrams: NgramSpec | None = None

    @model_validator(mode="after")
    def _check_labels(self) -> ClassifySpec:
        if self.ngrams is not None and self.vocabulary_size > MAX_VOCABULARY:
            raise ValueError(f"n-grams need a vocabulary of {MAX_VOCABULARY:,} at most, got {self.vocabulary_size:,}")
        if len(set(self.labels)) < 2 or len(set(self.labels)) != len(self.labels):
            raise ValueError(f"classify needs two or more different labels, got {list(self.labels)}")
        return self


class ClassifyHead(Head):
    """`tokens` (B, T) and `lengths` (B,) → `probabilities` (B, labels). One unit is the second of two labels."""

    Spec: ClassVar[type[NetworkSpec]] = ClassifySpec
    spec: ClassifySpec
    factors: Tensor
    shift: Tensor
    slope: Tensor

    def __init__(self, spec: ClassifySpec) -> None:
        super().__init__(spec, "tokens", Shape(("time",), vocabulary=spec.vocabulary_size))
        self.ngrams = None if spec.ngrams is None else NgramTable(spec.ngrams, self.num_logits)
        # Of the layers' and of the n-grams' logits, a shift for each, and what is added to it for each power of e that the text
        # is long: not in checkpoints, for they are fitted at the end.
        self.register_buffer("factors", torch.ones(2), persistent=False)
        self.register_buffer("shift", torch.zeros(self.num_logits), persistent=False)
        self.register_buffer("slope", torch.zeros(self.num_logits), persistent=False)
        self.is_calibrated = False

    @classmethod
    def from_spec(cls, spec: ClassifySpec) -> ClassifyHead:
        return cls(spec)

    @property
    def why_no_pieces(self) -> str:
        return "counts n-grams over the whole text" if self.spec.ngrams is not None else ""

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

    @torch.no_grad()
    def calibrate(self, factors: Tensor, shift: Tensor, slope: Tensor | None = None) -> None:
        """From now on logits are the layers' times `factors[0]`, plus the n-grams' times `factors[1]`, plus `shift` (logits,).

        With a `slope` (logits,), for texts of different lengths only, it times the logarithm of the number of tokens is added.
        """
        self.factors.copy_(factors)
        self.shift.copy_(shift)
        self.slope.copy_(torch.zeros_like(shift) if slope is None else slope)
        self.is_calibrated = True

    def forget_calibration(self) -> None:
        """Before the layers learn on: what they predict are their own logits again."""
        self.is_calibrated = False

    def predict(self, output: Signal, given: LayerInput) -> Tensor:
        """Logits; those of the layers alone until `calibrate` was called, so that each part is fitted without the other."""
        if not self.is_calibrated:
            return output.values
        logits = output.values * self.factors[0]
        if self.ngrams is not None:
            logits = logits + self.ngrams(given.source.values, given.source.lengths) * self.factors[1]
        if self.slope.any():
            logits = logits + given.source.lengths.to(logits.dtype).log().unsqueeze(1) * self.slope
        return logits + self.shift

    def outputs(self, last: Layer) -> dict[str, Shape]:
        return {"probabilities": Shape((len(self.spec.labels),))}

    def answer(self, prediction: Prediction) -> tuple[Tensor, ...]:
        logits = prediction.values
        if self.num_logits == 1:
            positive = torch.sigmoid(logits)
            return (torch.cat([1 - positive, positive], 1),)
        return (torch.softmax(logits, 1),)

    def write_answer(self, graph: GraphBuilder, output: Symbol, given: LayerInputSymbol) -> tuple[str, ...]:
        logits = self._write_calibration(graph, output.values, given) if self.is_calibrated else output.values
        with graph.scope("answer"):
            if self.num_logits > 1:
                return (graph.add("Softmax", logits, axis=-1),)
            positive = graph.add("Sigmoid", logits)
            negative = graph.add("Sub", graph.constant(1.0), positive)
            return (graph.add("Concat", negative, positive, axis=1),)

    def _write_calibration(self, graph: GraphBuilder, values: str, given: LayerInputSymbol) -> str:
        """`predict` in the graph."""
        factors = [graph.constant(self.factors[index : index + 1].cpu().numpy(), "factor") for index in (0, 1)]
        logits = graph.add("Mul", values, factors[0])
        if self.ngrams is not None:
            with graph.scope("ngrams"):
                found = self.ngrams.write(graph, given.source)
            logits = graph.add("Add", logits, graph.add("Mul", found, factors[1]))
        if self.slope.any():
            assert given.source.lengths is not None
            length = graph.add("Unsqueeze", graph.add("Cast", given.source.lengths, to=1), graph.constant([1]))  # (B, 1)
            slope = graph.constant(self.slope.cpu().numpy(), "slope")
            logits = graph.add("Add", logits, graph.add("Mul", graph.add("Log", length), slope))
        return graph.add("Add", logits, graph.constant(self.shift.cpu().numpy(), "shift"))
