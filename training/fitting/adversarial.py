"""Adversarial training of texts: learn to answer the same when token vectors are moved to where the loss grows fastest.

The method is that of Miyato, Dai and Goodfellow (2017, arXiv:1605.07725). Knows no loop and no recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from training.fitting.losses import Batch, LossFunction
from training.network.heads.head import Prediction
from training.network.network import Network

TINY = 1e-12

Predict = Callable[[Tensor], Prediction]
"""What the network says of a batch with this (B, T, D) added to its vectors."""


def zero_perturbation(network: Network, batch: Batch) -> Tensor:
    """Zeros in the shape of a batch's vectors (B, T, D), by which a loss can be differentiated."""
    shape = (*batch["tokens"].shape, network.vectors.shape[1])
    return torch.zeros(shape, device=network.vectors.device, requires_grad=True)


def adversarial_perturbation(network: Network, batch: Batch, gradient: Tensor, size: float) -> Tensor:
    """What raises each row's loss most, to first order, by its `gradient` (B, T, D).

    Its length over all steps of a row is `size` times the root mean square of the numbers in the batch's vectors; of a row whose
    gradient is zero it is zero.
    """
    tokens, lengths = batch["tokens"], batch["lengths"]
    is_real = torch.arange(tokens.shape[1], device=tokens.device) < lengths.unsqueeze(1)
    unit = nn.functional.embedding(tokens[is_real], network.vectors.detach()).square().mean().sqrt()
    length = gradient.flatten(1).norm(dim=1).view(-1, 1, 1)
    perturbation: Tensor = size * unit * gradient / (length + TINY)
    return perturbation


def add_adversarial_loss(
    loss_of: LossFunction, network: Network, batch: Batch, predict: Predict, prediction: Prediction, start: Tensor, size: float
) -> Tensor:
    """The loss of a batch, plus that of the same batch with its adversarial perturbation.

    `prediction` is `predict(start)`, and `start` is `zero_perturbation`. One pass back through `prediction` gives both the
    perturbation and the first loss's gradients, which the returned value hands on.
    """
    loss = loss_of(network, prediction, batch)
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    # What activity regularizers add to the loss goes back through the prediction once more.
    gradient, *found = torch.autograd.grad(loss, [start, *parameters], allow_unused=True, retain_graph=_has_activity(prediction))
    worst = adversarial_perturbation(network, batch, gradient, size)
    second = loss_of(network, predict(worst), batch)
    carried = _with_gradients(parameters, found)
    return loss.detach() + second + (carried - carried.detach())


def _has_activity(prediction: Prediction) -> bool:
    return any(terms for terms in prediction.activity)


def _with_gradients(parameters: Iterable[Tensor], gradients: Iterable[Tensor | None]) -> Tensor:
    """A number with these gradients by the parameters."""
    pairs = zip(parameters, gradients, strict=True)
    return torch.stack([(parameter * gradient).sum() for parameter, gradient in pairs if gradient is not None]).sum()
