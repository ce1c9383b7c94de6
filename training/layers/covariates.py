"""Covariates: columns that are known ahead, made into features. `decoder.py` has the layer that reads them.

The statistics are those of the values in the call; that these are the training part only is up to the caller.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor, nn

from training.graph.builder import GraphBuilder


class CovariateConfig(BaseModel):
    """One column: a number, standardised; one of `size` whole numbers from `first` on, one-hot; or a cycle of that length.

    A value that is none of the whole numbers is zeros, as if nothing were known. Of a cycle the features are sine and cosine.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["number", "category", "cycle"] = "number"
    size: PositiveInt = 1
    first: int = 0

    @property
    def num_features(self) -> int:
        return {"number": 1, "category": self.size, "cycle": 2}[self.kind]


class CovariateEncoder(nn.Module):
    """Columns (B, N, C) to features (B, N, E): the numbers first, then each category, then each cycle."""

    offset: Tensor
    scale: Tensor
    is_fitted: Tensor

    def __init__(self, configs: Sequence[CovariateConfig]) -> None:
        super().__init__()
        self.configs = tuple(configs)
        self.numbers = self._places("number")
        self.num_features = sum(config.num_features for config in self.configs)
        self.register_buffer("offset", torch.zeros(len(self.numbers)))
        self.register_buffer("scale", torch.ones(len(self.numbers)))
        self.register_buffer("is_fitted", torch.tensor(not self.numbers))

    def _places(self, kind: str) -> list[int]:
        return [place for place, config in enumerate(self.configs) if config.kind == kind]

    @torch.no_grad()
    def fit(self, values: Tensor) -> None:
        """Take mean and standard deviation of the numbers among columns (N, C). A constant gets the scale 1."""
        if not self.numbers:
            return
        numbers = values[:, self.numbers].double()
        scale = numbers.std(0, correction=0)
        self.offset.copy_(numbers.mean(0))
        self.scale.copy_(torch.where(scale > 0, scale, 1.0))
        self.is_fitted.fill_(True)

    def forward(self, values: Tensor) -> Tensor:
        parts = [(values[..., self.numbers] - self.offset) / self.scale]
        for place in self._places("category"):
            config = self.configs[place]
            numbers = torch.arange(config.first, config.first + config.size, dtype=values.dtype, device=values.device)
            parts.append((values[..., place : place + 1] == numbers).to(values.dtype))
        for place in self._places("cycle"):
            angle = (values[..., place : place + 1] - self.configs[place].first) * (math.tau / self.configs[place].size)
            parts += [angle.sin(), angle.cos()]
        return torch.cat(parts, -1)

    def write(self, graph: GraphBuilder, values: str) -> str:
        """`forward` in the graph."""
        parts = []
        if self.numbers:
            numbers = graph.add("Gather", values, graph.constant(self.numbers), axis=2)
            numbers = graph.add("Sub", numbers, graph.constant(self.offset.cpu().numpy(), "offset"))
            parts.append(graph.add("Div", numbers, graph.constant(self.scale.cpu().numpy(), "scale")))
        for place in self._places("category"):
            config = self.configs[place]
            numbers = graph.constant([float(config.first + number) for number in range(config.size)])
            parts.append(graph.add("Cast", graph.add("Equal", self._write_column(graph, values, place), numbers), to=1))
        for place in self._places("cycle"):
            config = self.configs[place]
            since = graph.add("Sub", self._write_column(graph, values, place), graph.constant(float(config.first)))
            angle = graph.add("Mul", since, graph.constant(math.tau / config.size))
            parts += [graph.add("Sin", angle), graph.add("Cos", angle)]
        return graph.add("Concat", *parts, axis=2) if len(parts) > 1 else parts[0]

    def _write_column(self, graph: GraphBuilder, values: str, place: int) -> str:
        return graph.add("Gather", values, graph.constant([place]), axis=2)
