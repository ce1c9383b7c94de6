"""Small networks of each task, and batches for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from training.network.heads.classify import ClassifySpec
from training.network.heads.forecast import ForecastSpec
from training.network.network import Network

LSTM: dict[str, Any] = {"type": "lstm", "units": 5}
DENSE: dict[str, Any] = {"type": "dense"}
EMBEDDING: dict[str, Any] = {"type": "embedding", "output_dim": 4}


def forecast(*layers: dict[str, Any], **options: Any) -> Network:
    torch.manual_seed(3)
    spec = ForecastSpec(layers=layers or (LSTM, DENSE), **options)
    network = Network(spec).eval()
    generator = torch.Generator().manual_seed(1)
    network.set_statistics(5 + 10 * torch.rand(50, spec.num_features, generator=generator))
    return network


def classify(*layers: dict[str, Any], labels: tuple[str, ...] = ("no", "yes"), **options: Any) -> Network:
    torch.manual_seed(3)
    layers = layers or (EMBEDDING, LSTM, DENSE)
    return Network(ClassifySpec(layers=layers, labels=labels, vocabulary_size=9, **options)).eval()


def histories(lengths: list[int], num_features: int = 1) -> dict[str, Tensor]:
    """Positive values; garbage in the padding."""
    generator = torch.Generator().manual_seed(sum(lengths))
    history = 1 + 20 * torch.rand(len(lengths), max(lengths) + 2, num_features, generator=generator)
    for row, length in enumerate(lengths):
        history[row, length:] = -1e5
    return {"history": history, "lengths": torch.tensor(lengths)}


@torch.no_grad()
def run(network: Network, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    outputs: dict[str, Tensor] = network(inputs)
    return outputs


def tokens(lengths: list[int]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    values = torch.randint(0, 9, (len(lengths), max(lengths) + 2), generator=generator)
    return {"tokens": values, "lengths": torch.tensor(lengths)}
