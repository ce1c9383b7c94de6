"""What is watched of the rows of a batch: a number for each row and feature, from the graph's own inputs and outputs. Pure.

`training/export/statistics.py` measures the training part in the same way; a test holds the two to the same numbers.
"""

from __future__ import annotations

import numpy as np

from service.runtime.tensors import Array

Measures = dict[str, Array]
"""Feature → a value for each row, (B,); what is not finite is left out."""


def last_values(values: Array, lengths: Array) -> Array:
    """The values of each row's last step, (B, F) of (B, T, F)."""
    last: Array = values[np.arange(len(values)), lengths - 1]
    return last


def row_means(values: Array, lengths: Array | None, axis: int | None) -> Array:
    """The mean of each row, (B,); of an array with a time axis only over the row's own steps."""
    if axis is None or lengths is None:
        whole: Array = values.reshape(len(values), -1).mean(axis=1, dtype=np.float64)
        return whole
    moved = np.moveaxis(values, axis, 1).reshape(len(values), values.shape[axis], -1)  # (B, T, N)
    is_own = np.arange(moved.shape[1]) < lengths[:, None]
    sums = np.where(is_own[..., None], moved, 0).sum(axis=(1, 2), dtype=np.float64)
    means: Array = sums / (lengths * moved.shape[2])
    return means
