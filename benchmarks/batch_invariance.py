"""Batch invariance: whether a prediction for a row depends on the rows that share its batch.

Rows of mixed lengths are sent at the same time, some in one request, and their predictions compared with those for the same rows,
each sent alone to the idle server. A server that pads without masks, or mixes up rows, differs by far more than the order of
float32 sums does.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import numpy as np

from benchmarks.responses import Prediction, ResponseMismatch
from benchmarks.workloads import Instance

TOLERANCE = 1e-5
"""Relative to the largest value of an output."""
NUM_ROWS, ROUNDS, SEED = 64, 4, 1
REQUEST_SIZES = (1, 1, 1, 5)
"""Rows per request, in turn."""

PredictTogether = Callable[[Sequence[Sequence[Instance]]], Sequence[Sequence[Prediction]]]
"""Requests, each a list of instances, all in flight at the same time → the predictions of each."""


def worst_difference(rows: Sequence[Instance], predict_together: PredictTogether) -> float:
    """The largest relative difference between predictions for rows sent together and for each row alone.

    The rows are sent together `ROUNDS` times, in another order each time. Raises ResponseMismatch where a prediction has another
    form, or is not finite.
    """
    alone = [predict_together([[row]])[0] for row in rows]
    for predictions in alone:
        if len(predictions) != 1:
            raise ResponseMismatch(f"{len(predictions)} predictions for one instance")
    order = list(range(len(rows)))
    shuffle = random.Random(SEED).shuffle
    worst = 0.0
    for _ in range(ROUNDS):
        shuffle(order)
        groups = list(_split(order))
        found = predict_together([[rows[index] for index in group] for group in groups])
        for group, predictions in zip(groups, found, strict=True):
            if len(predictions) != len(group):
                raise ResponseMismatch(f"{len(predictions)} predictions for {len(group)} instances")
            for index, prediction in zip(group, predictions, strict=True):
                worst = max(worst, relative_difference(prediction, alone[index][0]))
    return worst


def relative_difference(found: Prediction, expected: Prediction) -> float:
    """The largest difference between two predictions for one row, relative to the largest value of each output."""
    if [array.shape for array in found] != [array.shape for array in expected]:
        raise ResponseMismatch(f"shapes {[array.shape for array in found]}, alone {[array.shape for array in expected]}")
    worst = 0.0
    for values, alone in zip(found, expected, strict=True):
        difference = float(np.max(np.abs(values - alone)) / max(np.max(np.abs(alone)), np.finfo(np.float32).tiny))
        if not np.isfinite(difference):
            raise ResponseMismatch("a prediction is not finite")
        worst = max(worst, difference)
    return worst


def _split(order: Sequence[int]) -> Iterator[list[int]]:
    """The order in groups of `REQUEST_SIZES`, over and over."""
    rest = iter(order)
    while True:
        for size in REQUEST_SIZES:
            group = list(islice(rest, size))
            if not group:
                return
            yield group
