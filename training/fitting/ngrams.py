"""The weights of a table of n-grams: naive Bayes log-count ratios, scaled by a logistic regression (NB-SVM).

The method is that of Wang and Manning (2012, "Baselines and Bigrams").

A row has a share of each label, 1 of its own where that is known. Reads rows of token ids and knows no texts; what the table
computes is `network/heads/ngrams.py`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import optimize, sparse, special

from training.network.heads.ngrams import LARGEST_CODE, NOWHERE, NgramTable
from training.recipe import NgramSettings

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
ROWS_AT_A_TIME = 256
MAX_ITERATIONS = 200
TOLERANCE = 1e-6
"""Of the largest gradient of the mean loss of a row."""


def fit_ngrams(table: NgramTable, rows: Sequence[Int64], shares: Float64, settings: NgramSettings) -> None:
    """Give `table` its weights, learned from rows of token ids and the probabilities of their labels, `shares` (rows, labels)."""
    features = count_ngrams(table, rows)
    num_logits = table.codes.shape[1]
    weights, shifts = [], []
    for label in range(num_logits):
        # One logit is that of the second of two labels; several are fitted each against the rest.
        found = _fit_one(features, shares[:, 1 if num_logits == 1 else label], settings)
        weights.append(found[0])
        shifts.append(found[1])
    uses = np.bincount(features.indices, minlength=len(table.codes))
    limits = [_best_limit(found, uses) for found in weights]
    stacked = torch.from_numpy(np.stack(weights, 1).astype(np.float32))
    table.set_weights(stacked, torch.tensor(shifts, dtype=torch.float32), torch.tensor(limits, dtype=torch.float32))


def count_ngrams(table: NgramTable, rows: Sequence[Int64]) -> Any:
    """A sparse matrix (rows, buckets): for each different n-gram of a row 1 over the square root of how many those are."""
    order = np.argsort([len(row) for row in rows], kind="stable")
    places, sizes = [np.empty(0, np.int32)] * len(rows), np.zeros(len(rows), np.int64)
    for start in range(0, len(order), ROWS_AT_A_TIME):
        chosen = order[start : start + ROWS_AT_A_TIME]
        lengths = np.array([len(rows[index]) for index in chosen])
        ids = np.zeros((len(chosen), lengths.max()), np.int64)
        for padded, index in zip(ids, chosen, strict=True):
            padded[: len(rows[index])] = rows[index]
        found = table.different_buckets(torch.from_numpy(ids), torch.from_numpy(lengths)).numpy()
        for index, buckets in zip(chosen, found, strict=True):
            places[index] = buckets[buckets != NOWHERE].astype(np.int32)
            sizes[index] = len(places[index])
    values = np.repeat(1 / np.sqrt(np.maximum(sizes, 1)), sizes).astype(np.float32)
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    return sparse.csr_matrix((values, np.concatenate(places), bounds), shape=(len(rows), len(table.codes)))


def _fit_one(features: Any, share: Float64, settings: NgramSettings) -> tuple[Float64, float]:
    """Weights of all buckets and the shift of one logit: of a label, which a row is to its `share` (rows,), against the rest."""
    is_present = features.astype(bool).astype(np.float32).T
    counts = []
    for part in (share, 1 - share):
        count = settings.smoothing + (is_present @ part.astype(np.float32)).astype(np.float64)
        counts.append(count / count.sum())
    ratio = np.log(counts[0] / counts[1])
    weights, shift = fit_logistic((features @ sparse.diags(ratio.astype(np.float32))).tocsr(), share, settings.strength)
    return weights * ratio, shift


def fit_logistic(features: Any, share: Float64, strength: float) -> tuple[Float64, float]:
    """Weights and shift of a logistic regression on a sparse matrix (rows, columns) in FP32, with `strength` as scikit-learn's C.

    Unlike scikit-learn's, of answers that are a share of one label and a share of the other: a row is not needed twice.
    """
    num_rows, num_columns = features.shape
    transposed = features.T

    def objective(values: Float64) -> tuple[float, Float64]:
        weights = values[:-1]
        logits = (features @ weights.astype(np.float32)).astype(np.float64) + values[-1]
        loss = strength * (np.logaddexp(0, logits) - share * logits).sum() + weights @ weights / 2
        errors = strength * (special.expit(logits) - share)
        gradient = np.append((transposed @ errors.astype(np.float32)).astype(np.float64) + weights, errors.sum())
        return loss / num_rows, gradient / num_rows

    found = optimize.minimize(
        objective, np.zeros(num_columns + 1), jac=True, method="L-BFGS-B", options={"maxiter": MAX_ITERATIONS, "gtol": TOLERANCE}
    )
    return found.x[:-1], float(found.x[-1])


def _best_limit(weights: Float64, uses: npt.NDArray[np.int64]) -> float:
    """Where the grid of 8-bit weights should end so that the squared rounding of all n-grams in use is least.

    A few weights are many times the others: a grid that holds them all is too coarse for these.
    """
    largest = float(np.abs(weights).max())
    best = (np.inf, largest)
    for limit in largest * 2.0 ** -np.arange(0, 6, 0.25):
        step = limit / LARGEST_CODE
        rounded = np.clip(np.round(weights / step), -LARGEST_CODE, LARGEST_CODE) * step if step else weights
        best = min(best, (float((uses * (rounded - weights) ** 2).sum()), float(limit)))
    return best[1]
