"""How sure a classifier is: factors and a shift of its logits, fitted on texts that its weights did not learn from.

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
    """Logits are `factors[0]` times the layers', plus `factors[1]` times the n-grams', plus `shift`."""

    factors: Tensor  # (2,)
    shift: Tensor  # (logits,)


def fit_calibration(logits: Tensor, ngrams: Tensor | None, labels: Tensor, weights: Tensor) -> Calibration:
    """Minimise the log loss of logits (N, K), and of the n-grams' (N, K) where there are any; `weights` (N,) of the rows.

    No factor becomes negative. One logit is that of the second of two labels.
    """
    parts = torch.stack([logits, torch.zeros_like(logits) if ngrams is None else ngrams]).double()  # (2, N, K)
    share = (weights / weights.sum()).double()
    logarithms = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    shift = torch.zeros(logits.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logarithms, shift], max_iter=MAX_ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        factors = logarithms.exp()
        blended = factors[0] * parts[0] + factors[1] * parts[1] + shift
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
    return Calibration(factors, shift.detach().float())
