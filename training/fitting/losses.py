"""What training minimises: the losses of a recipe, by Keras's names.

Forecasts are compared in the network's scaled space, so that a series of millions does not drown one of ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from training.fitting import relative
from training.network.heads.head import Prediction
from training.network.network import Network
from training.network.spec import NetworkError
from training.recipe import Loss

Batch = Mapping[str, Tensor]
EPSILON = 1e-7  # Keras's distance of probabilities from 0 and 1

# The loss of what a network predicts for a batch; the batch holds the network's inputs and the true answers.
LossFunction = Callable[[Network, Prediction, Batch], Tensor]


def forecast_loss(
    name: Loss,
    quantiles: Sequence[float],
    *,
    mape_point: bool = False,
    denominator_gradient: float = 0.0,
    relative_weight: float = 0.0,
) -> LossFunction:
    """Of a batch with `future` (B, horizon, targets), raw; steps of it that are NaN do not count.

    `smape` compares raw values, all others those of the network's scaled space. With `mape_point` the last value of each step
    is a second point forecast, whose absolute percentage error is one more term beside those of the quantiles.
    `denominator_gradient` is that of `relative.symmetric_error`. `relative_weight` is that of a second quantile loss beside
    `quantile`, of the errors over the size of the median forecast in place of the history's scale (`relative.size_weight`); it
    needs histories that are scaled by no more than an offset and a scale of their own.
    """
    levels = torch.tensor(quantiles)
    symmetric_error = partial(relative.symmetric_error, denominator_gradient=denominator_gradient)

    def loss(network: Network, prediction: Prediction, batch: Batch) -> Tensor:
        values, future = prediction.values, batch["future"]
        is_known = future.isfinite()
        future = future.nan_to_num()
        if mape_point:
            raw = network.head.unscale(values, prediction)
            terms = _point_terms(name, network, prediction, values[..., :-1], raw[..., :-1], future, levels, symmetric_error)
            count = values.shape[-1]
            terms = (terms * (count - 1) + relative.percentage_error(raw[..., -1], future)) / count
        else:
            raw = network.head.unscale(values, prediction) if name == "smape" else values
            terms = _point_terms(name, network, prediction, values, raw, future, levels, symmetric_error)
        if relative_weight:
            scale = network.head.target_scale(prediction)
            median = network.head.unscale(values[..., list(quantiles).index(0.5)], prediction)
            terms = terms * (1 + relative_weight * relative.size_weight(median, scale))
        return terms.masked_fill(~is_known, 0.0).sum() / is_known.sum().clamp(min=1)

    return loss


def stream_loss(quantiles: Sequence[float], first: int) -> LossFunction:
    """The quantile loss of a batch with `future` (B, T, horizon, targets), raw: of the forecasts at step `first` and later.

    What is forecast `n` steps ahead weighs 1 / n: near values are forecast far better than later ones, and it is under their
    quantiles that anomaly scores are taken.
    """
    levels = torch.tensor(quantiles)

    def loss(network: Network, prediction: Prediction, batch: Batch) -> Tensor:
        target = network.head.scale_target(batch["future"], prediction)[:, first:]
        error = target.unsqueeze(-1) - prediction.values[:, first:]  # (B, T, horizon, targets, Q)
        losses = _pinball_terms(error, levels.to(target.device)).mean((0, 1, 3))  # (horizon,)
        weights = 1 / torch.arange(1, len(losses) + 1, device=losses.device)
        return (weights * losses).sum() / weights.sum()

    return loss


def _point_terms(
    name: Loss,
    network: Network,
    prediction: Prediction,
    values: Tensor,
    raw: Tensor,
    future: Tensor,
    levels: Tensor,
    symmetric_error: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """The loss of each step, (B, horizon, targets); `raw` are the values in the future's units, where the loss needs them."""
    levels = levels.to(values.device)
    if name == "smape":
        if not len(levels):
            return symmetric_error(raw, future).abs()
        return _pinball_terms(symmetric_error(raw, future.unsqueeze(-1)), levels)
    target = network.head.scale_target(future, prediction)
    match name:
        case "quantile":
            return _pinball_terms(target.unsqueeze(-1) - values, levels)
        case "mae":
            return functional.l1_loss(values, target, reduction="none")
        case "huber":
            return functional.huber_loss(values, target, reduction="none")
        case _:
            return functional.mse_loss(values, target, reduction="none")


def pinball(prediction: Tensor, target: Tensor, levels: Tensor) -> Tensor:
    """Mean quantile loss of (..., targets, Q) against (..., targets) (Koenker and Bassett 1978)."""
    return _pinball_terms(target.unsqueeze(-1) - prediction, levels).mean()


def _pinball_terms(error: Tensor, levels: Tensor) -> Tensor:
    """Of errors (..., Q), truth less forecast: the mean over the levels."""
    return torch.maximum(levels * error, (levels - 1) * error).mean(-1)


def classify_loss(name: Loss, label_smoothing: float = 0.0) -> LossFunction:
    """Of a batch with `shares` (B, labels), the probabilities that are to be answered.

    Raises NetworkError if the network has other logits than it needs.
    """

    def loss(network: Network, prediction: Prediction, batch: Batch) -> Tensor:
        logits = prediction.values.float()  # (B, labels), or (B, 1) for the second of two
        if (name == "binary_crossentropy") != (logits.shape[1] == 1):
            wanted = 'one unit (activation = "sigmoid")' if name == "binary_crossentropy" else "a unit per label"
            raise NetworkError(f'loss "{name}" needs a last layer with {wanted}, got {logits.shape[1]} units')
        shares = batch["shares"].to(logits.dtype)
        shares = shares * (1 - label_smoothing) + label_smoothing / shares.shape[1]
        if name == "binary_crossentropy":
            return functional.binary_cross_entropy_with_logits(logits[:, 0], shares[:, 1])
        return functional.cross_entropy(logits, shares)

    return loss


def tensor_loss(name: Loss) -> LossFunction:
    """Of a batch with `answers`: labels (B,) for crossentropies, else numbers (B, targets).

    Crossentropies are those of the network's own probabilities, as in Keras with from_logits=False.
    """

    def loss(network: Network, prediction: Prediction, batch: Batch) -> Tensor:
        values, answers = prediction.values, batch["answers"]
        match name:
            case "binary_crossentropy":
                # Not torch's own, which raises an error of its own for a probability that is NaN.
                share = values[:, 0].clamp(EPSILON, 1 - EPSILON)
                return -torch.where(answers > 0, share.log(), torch.log1p(-share)).mean()
            case "categorical_crossentropy":
                return functional.nll_loss(values.clamp(EPSILON, 1 - EPSILON).log(), answers)
            case "mae":
                return functional.l1_loss(values, answers)
            case "huber":
                return functional.huber_loss(values, answers)
            case _:
                return functional.mse_loss(values, answers)

    return loss
