"""Keras's GRU. The gates are r, z and n, as in torch: reset, update and new (Keras's candidate)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from training.graph.builder import GraphBuilder
from training.layers.base import LayerConfig, LayerState
from training.layers.recurrent import GatedConfig, GatedRecurrent, Product


class GRUConfig(GatedConfig):
    """Keras's GRU; `reset_after = false` (the paper's form) runs step by step while training."""

    type: Literal["gru"]
    reset_after: bool = True


class GRU(GatedRecurrent):
    """Gated recurrent unit (Cho et al. 2014); by default with the reset gate after the product, as Keras and cuDNN."""

    Config: ClassVar[type[LayerConfig]] = GRUConfig
    config: GRUConfig
    keras_class = "GRU"
    operator = "GRU"
    keras_gates = (1, 0, 2)  # torch: r, z, n; Keras: z, r, n
    onnx_gates = (1, 0, 2)

    def make_cell(self) -> Any:
        return nn.GRU(self.input.features, self.config.units, bias=self.config.use_bias, batch_first=True)

    @property
    def has_two_biases(self) -> bool:
        # The reset gate comes between the two biases: both count.
        return self.config.reset_after

    @property
    def is_fused(self) -> bool:
        return super().is_fused and self.config.reset_after

    def step(self, inputs: Tensor, state: LayerState, product: Product) -> LayerState:
        (hidden,) = state
        units = self.config.units
        gate_inputs, n_inputs = torch.split(inputs, [2 * units, units], 1)
        if self.config.reset_after:
            gate_products, n_product = torch.split(product(hidden, 0, 3), [2 * units, units], 1)
            r, z = (self.gate_activation(part) for part in (gate_inputs + gate_products).chunk(2, 1))
            n_product = r * n_product
        else:
            r, z = (self.gate_activation(part) for part in (gate_inputs + product(hidden, 0, 2)).chunk(2, 1))
            n_product = product(r * hidden, 2, 3)
        n = self.config.activation(n_inputs + n_product)
        return (z * hidden + (1 - z) * n,)

    def write_step(self, graph: GraphBuilder, inputs: str, state: tuple[str, ...]) -> tuple[str, ...]:
        (hidden,) = state
        *gate_inputs, n_inputs = self.write_split(graph, inputs, 1, 1, 1)
        if self.config.reset_after:
            *products, n_product = self.write_split(graph, self.write_product(graph, hidden, 0, 3), 1, 1, 1)
            r, z = self._write_gates(graph, gate_inputs, products)
            n_product = graph.add("Mul", r, n_product)
        else:
            products = list(self.write_split(graph, self.write_product(graph, hidden, 0, 2), 1, 1))
            r, z = self._write_gates(graph, gate_inputs, products)
            n_product = self.write_product(graph, graph.add("Mul", r, hidden), 2, 3)
        n = self.config.activation.write(graph, graph.add("Add", n_inputs, n_product))
        kept = graph.add("Mul", z, graph.add("Sub", hidden, n))
        return (graph.add("Add", n, kept),)

    def _write_gates(self, graph: GraphBuilder, inputs: Sequence[str], products: Sequence[str]) -> list[str]:
        sums = [graph.add("Add", *pair) for pair in zip(inputs, products, strict=True)]
        return [self.gate_activation.write(graph, part) for part in sums]

    @property
    def onnx_attributes(self) -> dict[str, Any]:
        return {"linear_before_reset": int(self.config.reset_after)}
