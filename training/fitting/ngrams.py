"""The weights of a table of n-grams: naive Bayes log-count ratios, scaled by a logistic regression (NB-SVM).

The method is that of Wang and Manning (2012, "Baselines and Bigrams").

Reads rows of token ids and knows no texts; what the table computes is `network/heads/ngrams.py`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from training.network.heads.ngrams import LARGEST_CODE, NOWHERE, NgramTable
from training.recipe import NgramSettings

Int64 = npt.NDArray[np.int64]
ROWS_AT_A_TIME = 256
MAX_ITERATIONS = 200


def fit_ngrams(table: NgramTable, rows: Sequence[Int64], labels: Int64, settings: NgramSettings) -> None:
    """Give `table` its weights, learned from rows of token ids; a row with a label below 0 is as much of one as of the others."""
    features = count_ngrams(table, rows)
    num_logits = table.codes.shape[1]
    weights, shifts = [], []
    for label in range(num_logits):
        # One logit is that of the second of two labels; several are fitted each against the rest.
        found = _fit_one(features, labels == (1 if num_logits == 1 else label), labels < 0, settings)
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


def _fit_one(
    features: Any, is_label: npt.NDArray[np.bool_], is_neutral: npt.NDArray[np.bool_], settings: NgramSettings
) -> tuple[npt.NDArray[np.float64], float]:
    """Weights of all buckets and the shift of one logit: of `is_label` against all other rows."""
    is_present = features.astype(bool).astype(np.float32)
    counts = []
    for rows in (is_label & ~is_neutral, ~is_label & ~is_neutral):
        count = settings.smoothing + np.asarray(is_present[rows].sum(0), np.float64)[0]
        counts.append(count / count.sum())
    ratio = np.log(counts[0] / counts[1])
    scaled = features @ sparse.diags(ratio.astype(np.float32))
    # A neutral row counts for half with each answer, which is the log loss of an answer of one half.
    every = sparse.vstack([scaled, scaled[is_neutral]]) if is_neutral.any() else scaled
    truth = np.concatenate([np.where(is_neutral, True, is_label), np.zeros(int(is_neutral.sum()), bool)])
    shares = np.concatenate([np.where(is_neutral, 0.5, 1.0), np.full(int(is_neutral.sum()), 0.5)])
    model = LogisticRegression(C=settings.strength, max_iter=MAX_ITERATIONS)
    model.fit(every.tocsr(), truth, shares)
    return model.coef_[0] * ratio, float(model.intercept_[0])


def _best_limit(weights: npt.NDArray[np.float64], uses: npt.NDArray[np.int64]) -> float:
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
