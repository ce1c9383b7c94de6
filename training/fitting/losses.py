"""What training makes small: the losses of a recipe, by Keras's names.

Forecasts are compared in the network's scaled space, so that a series of millions does not drown one of ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from training.network.network import Network, NetworkError
from training.recipe import Loss

Batch = Mapping[str, Tensor]
EPSILON = 1e-7  # Keras's distance of probabilities from 0 and 1

LossFunction = Callable[[Network, Batch], Tensor]


def forecast_loss(name: Loss, quantiles: Sequence[float]) -> LossFunction:
    """A loss over a batch of `history`, `lengths` and `future` (B, horizon, targets), all raw."""
    levels = torch.tensor(quantiles)

    def loss(network: Network, batch: Batch) -> Tensor:
        prediction, context = network.predict_scaled(batch)
        target = network.scale_target(batch["future"], context)
        match name:
            case "quantile":
                return pinball(prediction, target, levels.to(prediction.device))
            case "mae":
                return functional.l1_loss(prediction, target)
            case "huber":
                return functional.huber_loss(prediction, target)
            case _:
                return functional.mse_loss(prediction, target)

    return loss


def pinball(prediction: Tensor, target: Tensor, levels: Tensor) -> Tensor:
    """Mean quantile loss of (B, horizon, targets, Q) against (B, horizon, targets) (Koenker and Bassett 1978)."""
    error = target.unsqueeze(-1) - prediction  # (B, horizon, targets, Q)
    return torch.maximum(levels * error, (levels - 1) * error).mean()


def classify_loss(name: Loss, label_smoothing: float = 0.0) -> LossFunction:
    """A loss over a batch of `tokens`, `lengths` and `labels` (B,). Raises NetworkError if the head does not fit it."""

    def loss(network: Network, batch: Batch) -> Tensor:
        logits = network.logits(batch)  # (B, labels), or (B, 1) for the second of two
        if (name == "binary_crossentropy") != (logits.shape[1] == 1):
            wanted = 'one unit (activation = "sigmoid")' if name == "binary_crossentropy" else "a unit per label"
            raise NetworkError(f'loss "{name}" needs a last layer with {wanted}, got {logits.shape[1]} units')
        if name == "binary_crossentropy":
            target = batch["labels"].to(logits.dtype) * (1 - label_smoothing) + label_smoothing / 2
            return functional.binary_cross_entropy_with_logits(logits[:, 0], target)
        return functional.cross_entropy(logits, batch["labels"], label_smoothing=label_smoothing)

    return loss


def tensor_loss(name: Loss, given: str, output: str) -> LossFunction:
    """A loss over a batch of the input `given` and `answers`: labels (B,) for crossentropies, else numbers (B, targets).

    Crossentropies are taken of the network's own probabilities, as Keras takes them with from_logits=False.
    """

    def loss(network: Network, batch: Batch) -> Tensor:
        found, answers = network({given: batch[given]})[output], batch["answers"]
        match name:
            case "binary_crossentropy":
                return functional.binary_cross_entropy(found[:, 0].clamp(EPSILON, 1 - EPSILON), answers.to(found.dtype))
            case "categorical_crossentropy":
                return functional.nll_loss(found.clamp(EPSILON, 1 - EPSILON).log(), answers)
            case "mae":
                return functional.l1_loss(found, answers)
            case "huber":
                return functional.huber_loss(found, answers)
            case _:
                return functional.mse_loss(found, answers)

    return loss
