"""Quantiles of a forecast beyond the model's own horizon, where each run goes on from the point forecast of the one before. Pure.

The graph gives the quantiles of a run *given* the values that were fed back to it. What was uncertain where the run begins is
added. Where errors of different runs are independent, the squares of their distances from the median add; where they are fully
correlated, as of a trend that each run gets wrong in the same direction, the distances themselves do.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from service.runtime.tensors import Array
from service.tasks.history import FLOAT32_MAX


def join_runs(runs: Sequence[Array], levels: Sequence[float], *, is_never_negative: bool, are_correlated: bool = False) -> Array:
    """The runs (1 + Q [+ 1], H[, targets]) one after the other: point forecast, quantiles at `levels`, a second point forecast.

    A quantile's distance from the median becomes the square root of the sum of its own square and that of the origin, or where
    errors `are_correlated` the sum of both. The origin's is the larger of the last one and the mean one of the run before, as
    widened. Where the history `is_never_negative`, no quantile is moved below zero. The first run stays as it is, and so does
    the order of the quantiles.
    """
    joined = np.concatenate(runs, axis=1)
    if not levels:
        return joined
    rows = slice(1, 1 + len(levels))
    center = 1 + list(levels).index(0.5) if 0.5 in levels else 0
    size = runs[0].shape[1]
    distance = np.abs(runs[0][rows] - runs[0][center])
    for number, run in enumerate(runs[1:], 1):
        at_origin = np.maximum(distance[:, -1:], distance.mean(axis=1, keepdims=True))
        with np.errstate(over="ignore"):  # of values near the largest, which are held below it
            own = run[rows] - run[center]
            distance = np.abs(own) + at_origin if are_correlated else np.hypot(own, at_origin)
            widened = run[center] + np.copysign(distance, _sides(own, levels))
        if is_never_negative:
            widened = np.maximum(widened, np.minimum(run[rows], 0.0))
        joined[rows, number * size : (number + 1) * size] = np.clip(widened, -FLOAT32_MAX, FLOAT32_MAX)
    return joined


def _sides(own: Array, levels: Sequence[float]) -> Array:
    """On which side of the median each quantile lies, by its level where its own distance is zero."""
    by_level = np.array([-1.0 if level < 0.5 else 1.0 for level in levels], own.dtype)
    return np.where(own == 0, by_level.reshape(-1, *(1,) * (own.ndim - 1)), own)
