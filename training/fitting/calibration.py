"""How sure a classifier is: factors and a shift of its logits, fitted on texts that its weights did not learn from.

The shift may depend on the length of a text, by its logarithm: where short and long texts come from different files, their labels
are seldom equally frequent in training, and what the weights learned of that is wrong for the other ones.

The factor of a network's logits is temperature scaling (Guo et al. 2017, arXiv:1706.04599); of an n-gram table's, how much it
says beside the network. Runs no network.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

MAX_ITERATIONS = 200


@dataclass(frozen=True)
class Calibration:
    """Logits are `factors[0]` times the layers', plus `factors[1]` times the n-grams', plus `shift`, plus `slope` times the
    logarithm of the number of tokens.
    """

    factors: Tensor  # (2,)
    shift: Tensor  # (logits,)
    slope: Tensor  # (logits,)


def fit_calibration(
    logits: Tensor, ngrams: Tensor | None, labels: Tensor, weights: Tensor, lengths: Tensor | None = None
) -> Calibration:
    """Minimise the log loss of logits (N, K), and of the n-grams' (N, K) where there are any; `weights` (N,) of the rows.

    With the rows' `lengths` (N,), in tokens, the shift depends on them. No factor becomes negative. One logit is that of the
    second of two labels.
    """
    parts = torch.stack([logits, torch.zeros_like(logits) if ngrams is None else ngrams]).double()  # (2, N, K)
    share = (weights / weights.sum()).double()
    logarithms = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    shift = torch.zeros(logits.shape[1], dtype=torch.float64, requires_grad=True)
    slope = torch.zeros(logits.shape[1], dtype=torch.float64, requires_grad=lengths is not None)
    # About their mean, or the shift and the slope would hardly move apart.
    logarithm = torch.zeros(len(labels)) if lengths is None else lengths.double().log()
    mean = (share * logarithm).sum()
    distance = (logarithm - mean).unsqueeze(1)  # (N, 1)
    parameters = [logarithms, shift] if lengths is None else [logarithms, shift, slope]
    optimizer = torch.optim.LBFGS(parameters, max_iter=MAX_ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        factors = logarithms.exp()
        blended = factors[0] * parts[0] + factors[1] * parts[1] + shift + slope * distance
        if blended.shape[1] == 1:
            each = functional.binary_cross_entropy_with_logits(blended[:, 0], labels.double(), reduction="none")
        else:
            each = functional.cross_entropy(blended, labels, reduction="none")
        total = (share * each).sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    factors = logarithms.detach().exp().float()
    if ngrams is None:
        factors[1] = 0.0
    found = slope.detach()
    return Calibration(factors, (shift.detach() - found * mean).float(), found.float())
